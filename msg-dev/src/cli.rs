//! Owns the command line. Each subcommand has a file or a package of its own.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use msg_lab::{LabArgs, LoadArgs};
use msg_stack::{ClusterOptions, FetchArgs, StackOptions, State};

/// The local stack for developers: a real Kafka, a real PostgreSQL, and the services on top of them.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start Kafka, PostgreSQL, msg-transfer and msg-gateway, and keep them running until Ctrl-C
    Up(UpArgs),
    /// Replay a real chat log through gateway and transfer, kill msg-transfer partway, and check every promise against
    /// the database; the exit code is 0 only if every promise holds
    Demo(DemoArgs),
    /// Break brokers, databases, services and networks under load, and check every promise
    Lab(LabArgs),
    /// Run the callers of the fault lab
    #[command(hide = true)]
    LabLoad(LoadArgs),
}

/// Arguments of every subcommand that starts Kafka and PostgreSQL.
#[derive(Debug, Args)]
pub(crate) struct StackArgs {
    /// Number of brokers to start: 1, or 3 for a topic that survives the loss of one
    #[arg(long, default_value_t = 1, value_parser = one_or_three)]
    pub(crate) brokers: usize,
    /// Folder for data, settings and logs; the data stays between runs [default: /var/lib/msg-dev as root, else state
    /// in the cache folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Start with an empty state folder
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Use the Kafka at this address (host:port, several with commas) and start no broker
    #[arg(long, value_name = "ADDR")]
    pub(crate) kafka: Option<String>,
    /// Use the PostgreSQL database at this URL and start no server
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) stack: StackArgs,
    /// Name of the topic; it is created if it does not exist
    #[arg(long, default_value = "msgs")]
    pub(crate) topic: String,
    /// Number of partitions, if the topic is created
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub(crate) partitions: i32,
    /// The gateway's gRPC port [default: 50051, or a free port if 50051 is in use]
    #[arg(long, value_name = "PORT")]
    pub(crate) gateway_port: Option<u16>,
    /// Start Kafka and PostgreSQL only
    #[arg(long)]
    pub(crate) no_services: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Replay this log instead, in the order of the file: JSON Lines (objects with `from`, `to`, `text` and optionally
    /// `time`), or CSV (`.csv`) whose header has these names
    #[arg(long, value_name = "FILE", conflicts_with = "excerpt")]
    pub(crate) file: Option<PathBuf>,
    /// Replay the excerpt of the chat log that is in the repository, and fetch nothing
    #[arg(long)]
    pub(crate) excerpt: bool,
    /// Maximum number of messages to send, from the start of the log
    #[arg(long, value_name = "N", default_value = "30000")]
    pub(crate) messages: NonZeroUsize,
    /// Number of speakers that send at the same time; the messages of one speaker in one conversation are sent in order
    #[arg(long, value_name = "N", default_value = "256")]
    pub(crate) concurrency: NonZeroUsize,
    /// Do not remove the folder with data and logs
    #[arg(long)]
    pub(crate) keep: bool,
    /// Write the measurements and the verdict to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
}

fn one_or_three(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| [1, 3].contains(count)).ok_or_else(|| "expected 1 or 3".to_owned())
}

impl StackArgs {
    pub(crate) fn options(&self) -> StackOptions {
        StackOptions {
            state: self.state.clone().unwrap_or_else(State::default_folder),
            fresh: self.fresh,
            cache: self.fetch.folder(),
            brokers: self.brokers,
            cluster: ClusterOptions::default(),
            kafka: self.kafka.clone(),
            database_url: self.database_url.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
        Cli::try_parse_from(["msg-dev", "up", "--brokers", "2"]).expect_err("2 is not allowed");
        Cli::try_parse_from(["msg-dev", "up", "--brokers", "3", "--no-services"]).expect("valid");
        Cli::try_parse_from(["msg-dev", "demo", "--excerpt", "--file", "x"])
            .expect_err("--excerpt and --file conflict");
        Cli::try_parse_from(["msg-dev", "demo", "--messages", "0"]).expect_err("0 is not allowed");
    }
}
