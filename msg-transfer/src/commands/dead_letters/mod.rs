//! `msg-transfer dead-letters`: lists, shows, replays, exports and discards dead letters.

mod discard;
mod export;
mod filter;
mod letter;
mod list;
mod replay;
mod send;
mod show;

use std::process::ExitCode;

use clap::Subcommand;

pub(super) use self::filter::Filter;
use super::error::CommandError;
use crate::config::Config;

#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List dead letters, in the order of their positions in Kafka
    List(list::Options),
    /// Show one dead letter, with its headers and its message
    Show(show::Options),
    /// Send the records of dead letters to Kafka again. Each gets a new position at the end of its partition, behind
    /// messages that were stored in the meantime. A message that is already stored is not stored twice
    Replay(replay::Options),
    /// Write dead letters as JSON lines, from which each record can be rebuilt
    Export(export::Options),
    /// Delete the dead letters with one reason that are older than a time, replayed or not. They cannot be restored:
    /// export them first
    Discard(discard::Options),
}

impl Command {
    /// Returns the problems of the command's flags.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Command::List(options) => options.filter.problems(),
            Command::Show(_) => Vec::new(),
            Command::Replay(options) => options.problems(),
            Command::Export(options) => options.filter.problems(),
            Command::Discard(options) => options.problems(),
        }
    }
}

pub(super) async fn run(config: &Config, command: &Command) -> Result<ExitCode, CommandError> {
    match command {
        Command::List(options) => list::run(config, options).await,
        Command::Show(options) => show::run(config, options).await,
        Command::Replay(options) => replay::run(config, options).await,
        Command::Export(options) => export::run(config, options).await,
        Command::Discard(options) => discard::run(config, options).await,
    }
}
