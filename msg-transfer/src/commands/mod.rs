//! The one-shot commands for operators, a file or folder each. Only a command's result goes to standard output; what it
//! has to tell meanwhile is logged, to standard error.

pub mod check;
pub mod dead_letters;
pub mod lag;
pub mod output;
pub mod purge;
pub mod resume;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use msg_common::config::parse_duration;
use msg_common::postgres::{Object, Pool, Purpose, describe_pool};

use crate::config::{Command, Config};
use crate::lag::LagReader;
use crate::schema::SchemaError;
use crate::{failure, schema, session};

/// How long `migrate` waits for those who hold a lock that it needs.
const LOCKED_FOR: Duration = Duration::from_secs(300);

/// Carries the command out. An error is one that the command has no better way to tell.
pub async fn run(config: &Config, command: &Command) -> Result<ExitCode, String> {
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

async fn migrate(config: &Config) -> Result<ExitCode, String> {
    let deadline = Instant::now() + LOCKED_FOR;
    let applied = loop {
        match schema::migrate(&config.database).await {
            Ok(applied) => break applied,
            Err(error @ SchemaError::Locked(_)) if Instant::now() < deadline => {
                tracing::warn!(%error, "the schema cannot be migrated yet, will be tried again");
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    tracing::info!(?applied, version = schema::needed(), "schema is up to date");
    Ok(ExitCode::SUCCESS)
}

async fn healthcheck(config: &Config) -> Result<ExitCode, String> {
    match msg_common::admin::probe(config.admin_listen, "/readyz").await {
        Ok((200, _)) => Ok(ExitCode::SUCCESS),
        Ok((_, reasons)) => Err(reasons.trim_end().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// One connection, made when first used.
fn pool(config: &Config, purpose: Purpose) -> Result<Pool, String> {
    config.database.pool("msg-transfer", 1, &session::settings(&config.database), purpose)
}

/// The connection, to a database whose schema is this build's.
async fn connect(config: &Config, purpose: Purpose) -> Result<Object, String> {
    let pool = pool(config, purpose)?;
    schema::check(&pool).await.map_err(|error| error.to_string())?;
    pool.get().await.map_err(|error| describe_pool(&error))
}

/// Who tells of the topic and how far it is stored.
fn lag_reader(config: &Config, pool: Pool) -> Result<LagReader, String> {
    let reader = LagReader::new(&config.lookup_config(), config.kafka.kafka_topic.clone(), pool);
    reader.map_err(|error| format!("kafka: {error}"))
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn database_says(error: tokio_postgres::Error) -> String {
    format!("database: {}", failure::describe(&error))
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
