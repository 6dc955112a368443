//! The one-shot commands for operators, a file or folder each. Only a command's result goes to standard output; what it
//! has to tell meanwhile is logged, to standard error.

pub mod check;
pub mod dead_letters;
mod error;
pub mod lag;
pub mod output;
pub mod purge;
pub mod resume;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use msg_common::config::{SettingError, parse_duration};
use msg_common::error::chain;
use msg_common::kafka::RequestError;
use msg_common::postgres::{Object, Pool, Purpose};

pub use self::error::CommandError;
use crate::config::{Command, Config};
use crate::lag::LagReader;
use crate::schema::SchemaError;
use crate::{schema, session};

/// How long `migrate` waits for those who hold a lock that it needs.
const LOCKED_FOR: Duration = Duration::from_secs(300);

/// Runs the command.
pub async fn run(config: &Config, command: &Command) -> Result<ExitCode, CommandError> {
    match command {
        Command::Migrate => migrate(config).await,
        Command::Healthcheck => healthcheck(config).await,
        Command::Check(options) => check::run(config, options).await,
        Command::Lag(options) => lag::run(config, options).await,
        Command::Purge(options) => purge::run(config, options).await,
        Command::DeadLetters(command) => dead_letters::run(config, command).await,
        Command::Resume(options) => resume::run(config, options).await,
    }
}

async fn migrate(config: &Config) -> Result<ExitCode, CommandError> {
    let deadline = Instant::now() + LOCKED_FOR;
    let applied = loop {
        match schema::migrate(&config.database).await {
            Ok(applied) => break applied,
            Err(error @ (SchemaError::Migrating | SchemaError::Locked { .. })) if Instant::now() < deadline => {
                tracing::warn!(error = chain(&error), "the schema cannot be migrated yet, will be retried");
            }
            Err(error) => return Err(error.into()),
        }
    };
    tracing::info!(?applied, version = schema::needed(), "schema is up to date");
    Ok(ExitCode::SUCCESS)
}

async fn healthcheck(config: &Config) -> Result<ExitCode, CommandError> {
    match msg_common::admin::probe(config.admin_listen, "/readyz").await {
        Ok((200, _)) => Ok(ExitCode::SUCCESS),
        Ok((_, reasons)) => Err(CommandError::NotReady(reasons.trim_end().to_owned())),
        Err(source) => Err(CommandError::Probe { address: config.admin_listen, source }),
    }
}

/// One connection, made when first used.
fn pool(config: &Config, purpose: Purpose) -> Result<Pool, SettingError> {
    config.database.pool("msg-transfer", 1, &session::settings(&config.database), purpose)
}

/// The connection, to a database whose schema is this build's.
async fn connect(config: &Config, purpose: Purpose) -> Result<Object, CommandError> {
    let pool = pool(config, purpose)?;
    schema::check(&pool).await?;
    Ok(pool.get().await?)
}

/// Reads the topic, and how far it is stored.
fn lag_reader(config: &Config, pool: Pool) -> Result<LagReader, RequestError> {
    LagReader::new(&config.lookup_config(), config.kafka.kafka_topic.clone(), pool)
}

/// Parses a moment: `2026-11-23T10:00:00Z`, or how long ago, such as `2h`.
fn parse_moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(moment) = humantime::parse_rfc3339_weak(text) {
        return Ok(moment);
    }
    let ago = parse_duration(text)
        .map_err(|_| "needs a time such as 2026-11-23T10:00:00Z, or how long ago, such as 2h".to_owned())?;
    SystemTime::now().checked_sub(ago).ok_or_else(|| "is too long ago".to_owned())
}

/// Whole seconds, for people; the part below a second of what is shorter.
fn for_people(time: Duration) -> String {
    let time = if time < Duration::from_secs(1) {
        Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(0))
    } else {
        Duration::from_secs(time.as_secs())
    };
    humantime::format_duration(time).to_string()
}

/// A time, in UTC.
fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
