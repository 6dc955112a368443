//! `msg-transfer dead-letters`: the records that were kept aside, and how they get a second chance.

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

use crate::config::Config;

/// What to do with them.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List them, in the order of their places in Kafka
    List(list::Options),
    /// Show one, with its headers and the message in it
    Show(show::Options),
    /// Send their records to Kafka again. Each takes a new place at the end of its partition: what was stored meanwhile
    /// stays before it. One that is already stored is not stored twice
    Replay(replay::Options),
    /// Write them as JSON lines, complete enough to build each record again
    Export(export::Options),
    /// Delete those with one reason that are older than a time, replayed or not: for good. Export them first
    Discard(discard::Options),
}

impl Command {
    /// What is wrong with its flags.
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

/// Carries it out.
pub async fn run(config: &Config, command: &Command) -> Result<ExitCode, String> {
    match command {
        Command::List(options) => list::run(config, options).await,
        Command::Show(options) => show::run(config, options).await,
        Command::Replay(options) => replay::run(config, options).await,
        Command::Export(options) => export::run(config, options).await,
        Command::Discard(options) => discard::run(config, options).await,
    }
}
