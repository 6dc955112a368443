//! The one-shot commands for operators, a file or folder each. A command writes only its result to standard output, and
//! logs its progress to standard error.

mod access;
mod audited;
mod check;
mod dead_letters;
mod error;
mod lag;
mod output;
mod purge;
mod resume;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use msg_common::error::chain;

pub use self::error::CommandError;
use crate::config::Config;
use crate::schema::{self, SchemaError};

/// A one-shot command with its flags.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Migrate the database's schema to this build's version, and exit
    Migrate,
    /// Check whether the service on this machine is ready: exit code 0 if it is, 1 if not
    Healthcheck,
    /// Check Kafka, the topic, the group and the database, and list each problem with what to do: exit code 1 if a
    /// check failed. The running group is not affected
    Check(check::Options),
    /// Show the lag of each partition in records and time, and its retention headroom
    Lag(lag::Options),
    /// Delete old messages, from the lowest `seq` of each inbox on. The newest message of an inbox is always kept
    Purge(purge::Options),
    /// List, show, replay, export and discard dead letters
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Resume halted partitions, for instance after the dead-letter limit
    Resume(resume::Options),
}

/// How long `migrate` retries while another session holds a lock that it needs.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);

/// Runs the command, and returns the exit code of the process.
pub async fn run(config: &Config, command: &Command) -> Result<ExitCode, CommandError> {
    let audited = audited::audited(command);
    if let Some(audited) = &audited {
        audited.started();
    }
    let result = carry_out(config, command).await;
    if let Some(audited) = &audited {
        audited.ended(result.is_ok());
    }
    result
}

async fn carry_out(config: &Config, command: &Command) -> Result<ExitCode, CommandError> {
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
    let deadline = Instant::now() + LOCK_TIMEOUT;
    let applied = loop {
        match schema::migrate(&config.database).await {
            Ok(applied) => break applied,
            Err(error @ (SchemaError::Migrating | SchemaError::Locked { .. })) if Instant::now() < deadline => {
                tracing::warn!(error = chain(&error), "could not migrate the schema yet, will be retried");
            }
            Err(error) => return Err(error.into()),
        }
    };
    tracing::info!(?applied, version = schema::needed(), "schema is up to date");
    Ok(ExitCode::SUCCESS)
}

async fn healthcheck(config: &Config) -> Result<ExitCode, CommandError> {
    match msg_common::admin::probe_service(&config.admin_listen, &config.admin_tls, "/readyz").await {
        Ok((200, _)) => Ok(ExitCode::SUCCESS),
        Ok((_, reasons)) => Err(CommandError::NotReady(reasons.trim_end().to_owned())),
        Err(source) => Err(CommandError::Probe { address: config.admin_listen.to_string(), source }),
    }
}
