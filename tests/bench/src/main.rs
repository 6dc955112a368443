//! `msg-bench` measures the throughput of the services on this machine, and compares each value with a limit that
//! the same run has measured.
#![allow(clippy::print_stdout, reason = "a command line tool that prints figures")]

mod callers;
mod check;
mod cost;
mod cpu;
mod drain;
mod fairness;
mod figure;
mod greedy;
mod idle;
mod instructions;
mod latency;
mod librdkafka;
mod limit;
mod load;
mod peers;
mod pipe;
mod pure;
mod report;
mod results;
mod rounds;
mod secure;
mod send;
mod size;
mod statement;
mod watch;

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use figure::{Figure, Output};
use load::Load;
use msg_stack::{ClusterOptions, Jvm, Service, Services, Stack, StackOptions};
use results::Run;

/// Any error that ends the benchmark.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// Measures how fast the services are on this machine, against limits that the same run measures.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Write the figures to this file, too, as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the transfer alone while it drains a backlog; the limits are the bare INSERT
    /// statement and COPY on the same server
    Drain(Load),
    /// Measure from SendMsg to the row with everything on this machine; the limit is a server that does nothing
    Pipe(Load),
    /// Measure what TLS and tokens cost; the limit is a gateway without them
    Secure(Load),
    /// Measure single calls, batches and streams until Kafka has every message; the limits are a server that does nothing,
    /// a bare gateway, and librdkafka alone
    Send(Load),
    /// Measure the latency of single calls: until the message is stored with callers that wait for their response, and
    /// until Kafka has it at fixed rates; the limits are a bare gateway and librdkafka alone
    Latency(latency::Latency),
    /// Measure the CPU time of each process while nothing is sent
    Idle(idle::Idle),
    /// Measure the latency of callers next to a greedy one, without and with CALLER_SHARE
    Fairness(fairness::Fairness),
    /// Measure the transfer with a backlog while the table is small and while it is large
    Size(size::Size),
    /// Measure the time from stored to delivered for watched messages, and the memory that watchers need
    Watch(watch::Watching),
    /// Count the instructions of both services for a message without I/O, and compare them with the recorded ones. Needs
    /// valgrind
    Instructions(check::Check),
    /// Measure the CPU time of both services for a message, and compare it with the recorded one
    Cpu(cpu::Cpu),
    /// Write a page with the figures of several runs; with --json, write them to one file, too
    Report(report::Report),
    /// Serve as a limit; a benchmark starts it as a process of its own
    #[command(hide = true)]
    Limit(limit::LimitArgs),
    /// Send as much as the gateway accepts; a benchmark starts it as a process of its own
    #[command(hide = true)]
    Greedy(greedy::GreedyArgs),
    /// Run the code without I/O; `instructions` starts it as a process of its own
    #[command(hide = true)]
    Pure(pure::PureArgs),
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let Cli { command, json } = Cli::parse();
    let runs = match &command {
        Command::Limit(args) => return limit::serve(args).await,
        Command::Greedy(args) => return greedy::run(args).await,
        Command::Instructions(check) => return instructions::run(check),
        Command::Pure(args) => {
            pure::run(args);
            return Ok(());
        }
        Command::Report(options) => report::run(options)?,
        command => vec![Run::new(measure(command).await?)],
    };
    match json {
        Some(path) => results::save(&path, &runs),
        None => Ok(()),
    }
}

/// Runs a benchmark on a new stack, and removes the stack afterwards.
async fn measure(command: &Command) -> Result<Vec<Figure>, Error> {
    let folder = tempfile::Builder::new().prefix("msg-bench-").tempdir()?;
    let cluster = ClusterOptions { jvm: Jvm::Usual, ..ClusterOptions::default() };
    let stack = Stack::start(StackOptions { cluster, ..StackOptions::new(folder.path()) }).await?;
    let mut output = Output::default();
    match command {
        Command::Drain(load) => drain::run(&stack, load, &mut output).await?,
        Command::Pipe(load) => pipe::run(&stack, load, &mut output).await?,
        Command::Secure(load) => secure::run(&stack, load, &mut output).await?,
        Command::Send(load) => send::run(&stack, load, &mut output).await?,
        Command::Latency(options) => latency::run(&stack, options, &mut output).await?,
        Command::Idle(options) => idle::run(&stack, options, &mut output).await?,
        Command::Fairness(options) => fairness::run(&stack, options, &mut output).await?,
        Command::Size(options) => size::run(&stack, options, &mut output).await?,
        Command::Watch(options) => watch::run(&stack, options, &mut output).await?,
        Command::Cpu(options) => cpu::run(&stack, options, &mut output).await?,
        Command::Report(_) | Command::Limit(_) | Command::Greedy(_) | Command::Instructions(_) | Command::Pure(_) => {
            unreachable!("they need no stack")
        }
    }
    stack.stop().await;
    Ok(output.figures)
}

const TOPIC: &str = "bench";
/// The number of partitions, unless `--partitions` has another one.
const PARTITIONS: i32 = 16;

/// Starts both services on an empty topic and an empty database of this name, with these settings of `--set`.
async fn start(stack: &Stack, database: &str, partitions: i32, set: &[String]) -> Result<Services, Error> {
    stack.kafka().create_topic(TOPIC, partitions, &[]).await?;
    let url = stack.postgres().create_database(database).await?;
    Ok(stack.pipe(TOPIC, partitions, &url).start(stack.logs(), &settings(set)?).await?)
}

fn settings(set: &[String]) -> Result<Vec<(&str, &str)>, Error> {
    let split = |setting: &'_ String| setting.split_once('=').map(|(name, _)| name.len());
    set.iter()
        .map(|setting| {
            let at = split(setting).ok_or_else(|| format!("--set {setting} is not NAME=VALUE"))?;
            Ok((&setting[..at], &setting[at + 1..]))
        })
        .collect()
}

/// Waits until `holds` returns true, or returns an error after the timeout `within`.
async fn until(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> Result<bool, Error>) -> Result<(), Error> {
    let waiting = async {
        while !holds().await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<(), Error>(())
    };
    tokio::time::timeout(within, waiting).await.map_err(|_| format!("{what}: not within {within:?}"))?
}

/// Returns the resident memory of the service in MB, now and at its peak.
fn memory(service: &Service) -> (f64, f64) {
    let memory = service.memory();
    let megabytes = |bytes: u64| (bytes >> 10) as f64 / 1000.0;
    (megabytes(memory.resident), megabytes(memory.peak))
}

fn line(what: &str, value: impl Display) {
    println!("  {what:<46} {value}");
}

fn rate(count: usize, duration: Duration) -> f64 {
    count as f64 / duration.as_secs_f64()
}
