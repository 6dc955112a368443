//! `msg-dev bench`: how fast the pipe is on this machine, each figure beside a limit that was measured in the same run.
#![allow(clippy::print_stdout, reason = "a command line tool that prints figures")]

mod drain;
mod pipe;
mod send;
mod statement;
mod watch;

use std::fmt::Display;
use std::time::Duration;

use clap::{Args, Subcommand};
use msg_stack::{Service, Services, Stack, StackOptions};

/// Why there are no figures.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The transfer alone draining a backlog, beside the bare INSERT statement on the same server
    Drain(Load),
    /// From SendMsg to the row with everything on this machine, beside a call that does nothing
    Pipe(Load),
    /// Single calls, batches and streams until Kafka has every message, beside librdkafka alone; then single calls until each
    /// is stored
    Send(Load),
    /// How long after it was stored a message is with its watcher, and what watchers cost
    Watch(watch::Watching),
}

/// What is sent.
#[derive(Clone, Debug, Args)]
pub struct Load {
    /// Messages
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) messages: usize,
    /// Inboxes that they are spread over
    #[arg(long, default_value_t = 20_000)]
    pub(crate) inboxes: usize,
    /// Bytes of each body
    #[arg(long, default_value_t = 256)]
    pub(crate) body: usize,
    /// Callers at the same time (pipe), each waiting for its answer
    #[arg(long, default_value_t = 256)]
    pub(crate) callers: usize,
    /// What each guard of the transfer costs, one after the other on the same backlog (drain)
    #[arg(long)]
    pub(crate) variants: bool,
    /// Another build's msg-transfer, to be measured last (drain, with --variants)
    #[arg(long, value_name = "FILE", requires = "variants")]
    pub(crate) against: Option<String>,
    /// Further settings of the services, as NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
}

impl Load {
    /// A body that compresses about as little as text does: random letters.
    pub(crate) fn random_body(&self) -> Vec<u8> {
        (0..self.body).map(|_| rand::random_range(b'a'..=b'z')).collect()
    }

    /// The inbox of the nth message: spread, and not in the order of the index.
    pub(crate) fn inbox(&self, n: usize) -> String {
        format!("inbox-{}", n.wrapping_mul(7919) % self.inboxes)
    }
}

/// Runs one of them on a stack of its own, which is gone afterwards.
pub async fn run(command: &BenchCommand) -> Result<(), Error> {
    let folder = tempfile::Builder::new().prefix("msg-bench-").tempdir()?;
    let stack = Stack::start(StackOptions::new(folder.path())).await?;
    match command {
        BenchCommand::Drain(load) => drain::run(&stack, load).await?,
        BenchCommand::Pipe(load) => pipe::run(&stack, load).await?,
        BenchCommand::Send(load) => send::run(&stack, load).await?,
        BenchCommand::Watch(options) => watch::run(&stack, options).await?,
    }
    stack.stop().await;
    Ok(())
}

const TOPIC: &str = "bench";
const PARTITIONS: i32 = 16;

/// Starts both services on an empty topic and an empty database of this name, with these settings of `--set`.
async fn start(stack: &Stack, database: &str, set: &[String]) -> Result<Services, Error> {
    stack.kafka().create_topic(TOPIC, PARTITIONS, &[]).await?;
    let url = stack.postgres().create_database(database).await?;
    Ok(stack.pipe(TOPIC, PARTITIONS, &url).start(stack.logs(), &settings(set)?).await?)
}

/// Splits each NAME=VALUE.
fn settings(set: &[String]) -> Result<Vec<(&str, &str)>, Error> {
    let split = |setting: &'_ String| setting.split_once('=').map(|(name, _)| name.len());
    set.iter()
        .map(|setting| {
            let at = split(setting).ok_or_else(|| format!("--set {setting} is not NAME=VALUE"))?;
            Ok((&setting[..at], &setting[at + 1..]))
        })
        .collect()
}

/// Asks until the answer is there, for as long as things move.
async fn until(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> Result<bool, Error>) -> Result<(), Error> {
    let waiting = async {
        while !holds().await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<(), Error>(())
    };
    tokio::time::timeout(within, waiting).await.map_err(|_| format!("{what}: not within {within:?}"))?
}

/// One of the service's counters, over all its labels.
async fn counter(service: &Service, name: &str) -> Result<f64, Error> {
    let metrics = service.metrics().await?;
    let lines = metrics.lines().filter(|line| line.split([' ', '{']).next() == Some(name));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Resident memory of the service in MB, now and at its peak.
fn memory(service: &Service) -> (f64, f64) {
    let memory = service.memory();
    let megabytes = |bytes: u64| (bytes >> 10) as f64 / 1000.0;
    (megabytes(memory.resident), megabytes(memory.peak))
}

fn line(what: &str, value: impl Display) {
    println!("  {what:<46} {value}");
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}
