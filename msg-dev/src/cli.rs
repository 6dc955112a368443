//! Owns the command line: one subcommand each in a file of its own.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use msg_bench::BenchCommand;
use msg_lab::{LabArgs, LoadArgs};
use msg_stack::{ClusterOptions, FetchArgs, StackOptions, State};

/// The local stack for developers: a real Kafka, a real PostgreSQL, and the services on top of them.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start Kafka, PostgreSQL, msg-transfer and msg-gateway, and keep them running until Ctrl-C
    Up(UpArgs),
    /// Fetch and check Kafka and PostgreSQL, and start nothing
    Fetch(FetchArgs),
    /// Measure how fast the pipe is, beside limits of the same run
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Replay a real chat log through the whole pipe, kill msg-transfer in the middle, and check every promise against
    /// the database; the exit code is 0 only when all hold
    Demo(DemoArgs),
    /// Break brokers, databases, services and networks under load, and check every promise
    Lab(LabArgs),
    /// The lab's clients
    #[command(hide = true)]
    LabLoad(LoadArgs),
}

/// Where Kafka and PostgreSQL come from and where they live; for every subcommand that starts them.
#[derive(Debug, Args)]
pub(crate) struct StackArgs {
    /// Brokers to start: 1, or 3 for a topic that survives the loss of one
    #[arg(long, default_value_t = 1, value_parser = one_or_three)]
    pub(crate) brokers: usize,
    /// Folder for data, settings and logs; data is kept between runs [default: /var/lib/msg-dev as root, else state in the cache folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Begin with an empty state folder
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Use the Kafka at this address (host:port, with commas) and start none
    #[arg(long, value_name = "ADDR")]
    pub(crate) kafka: Option<String>,
    /// Use the PostgreSQL database at this URL and start none
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
}

/// `msg-dev up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) stack: StackArgs,
    /// The topic; it is created where there is none
    #[arg(long, default_value = "msgs")]
    pub(crate) topic: String,
    /// Partitions of the topic when it is created
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub(crate) partitions: i32,
    /// The gateway's gRPC port [default: 50051, or any free one when that is taken]
    #[arg(long, value_name = "PORT")]
    pub(crate) gateway_port: Option<u16>,
    /// Start Kafka and PostgreSQL only
    #[arg(long)]
    pub(crate) no_services: bool,
}

/// `msg-dev demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Replay this log instead: JSON Lines (objects with `from`, `to`, `text` and optionally `time`), or CSV (`.csv`) whose
    /// header has these names; in the file's order
    #[arg(long, value_name = "FILE", conflicts_with = "excerpt")]
    pub(crate) file: Option<PathBuf>,
    /// Replay the excerpt of the chat log that is kept in the repository, and fetch nothing
    #[arg(long)]
    pub(crate) excerpt: bool,
    /// Send only the first so many messages of the log
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) messages: Option<usize>,
    /// How many speakers talk at the same time; what one says in one conversation is sent one after the other
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    pub(crate) at_once: usize,
    /// Keep the folder with data and logs
    #[arg(long)]
    pub(crate) keep: bool,
    /// Write the figures and the verdict to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("a number from 1".to_owned()),
    }
}

fn one_or_three(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3".to_owned()),
    }
}

impl StackArgs {
    /// The library's options.
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
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        Cli::try_parse_from(["msg-dev", "up", "--brokers", "2"]).expect_err("1 or 3");
        Cli::try_parse_from(["msg-dev", "up", "--brokers", "3", "--no-services"]).expect("valid");
        Cli::try_parse_from(["msg-dev", "demo", "--excerpt", "--file", "x"]).expect_err("one or the other");
        Cli::try_parse_from(["msg-dev", "demo", "--messages", "0"]).expect_err("from 1");
    }
}
