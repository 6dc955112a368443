//! `msg-dev demo`: replays a real chat log through both services, kills the transfer midway, and checks every promise.
//! The messages are sent by the fault lab's load, and judged by its checker. The order of the steps is here.
#![allow(clippy::print_stdout, reason = "a command line tool that prints what it does and finds")]

mod chitchat;
mod conversation;
mod error;
mod figures;
mod file;
mod log;
mod plan;
mod screen;
mod services;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use msg_lab::text::grouped;
use msg_lab::{Finding, PlannedLoad, settle};
use msg_stack::process::first_to_die;
use msg_stack::{Offsets, Services, Signal, Stack, StackOptions, StopSignals};
use tempfile::TempDir;
use tokio_postgres::Client as Database;

pub(crate) use self::error::DemoError;
use self::figures::{Figures, Run};
use self::log::Log;
use self::screen::Screen;
use self::services::{GROUP, PARTITIONS, TOPIC};
use crate::cli::DemoArgs;

/// The time for PostgreSQL to end without writing its data.
const QUIT_WITHIN: Duration = Duration::from_secs(5);
/// The interval at which the progress of the load is read.
const POLL: Duration = Duration::from_millis(20);

/// Runs the demo in a temporary folder, and stops all processes that it started, even after an error.
pub(crate) async fn run(args: DemoArgs) -> Result<(), DemoError> {
    let mut stop = StopSignals::listen()?;
    let screen = Screen::new();
    let folder = tempfile::Builder::new().prefix("msg-demo-").tempdir();
    let folder = folder.map_err(DemoError::io("create a folder in", std::env::temp_dir()))?;
    let options = StackOptions { cache: args.fetch.folder(), ..StackOptions::new(folder.path()) };
    let stack = tokio::select! {
        stack = Box::pin(Stack::reserve(options)) => stack?,
        () = stop.requested() => return Err(DemoError::Interrupted),
    };
    // The future of `work` owns the services: when either branch ends, it is dropped and kills them.
    let ran = tokio::select! {
        ran = Box::pin(work(&stack, &args, &screen)) => ran,
        () = stop.requested() => Err(DemoError::Interrupted),
    };
    screen.remove_bar();
    let keep = args.keep || matches!(ran, Err(DemoError::Broken { .. }));
    end(&stack, folder, keep, &screen).await;
    ran
}

/// Stops Kafka and PostgreSQL, and removes the folder.
async fn end(stack: &Stack, folder: TempDir, keep: bool, screen: &Screen) {
    if keep {
        stack.stop().await;
        let folder = folder.keep();
        screen.say(&format!("data and logs are kept in {}", folder.display()));
        return;
    }
    // Their data is removed, so do not wait until it is written. PostgreSQL gets SIGQUIT: a SIGKILL would leave its
    // shared memory behind.
    let brokers = stack.kafka().processes();
    for broker in &brokers {
        broker.signal(Signal::Kill);
    }
    if let Some(postgres) = stack.postgres().process() {
        postgres.signal(Signal::Quit);
        if tokio::time::timeout(QUIT_WITHIN, postgres.wait()).await.is_err() {
            postgres.kill().await;
        }
    }
    for broker in &brokers {
        broker.wait().await;
    }
    if let Err(error) = folder.close() {
        tracing::warn!("cannot remove the temporary folder: {error}");
    }
}

/// Starts the stack and the services, and replays the log.
async fn work(stack: &Stack, args: &DemoArgs, screen: &Screen) -> Result<(), DemoError> {
    screen.say("starting a real Kafka and a real PostgreSQL, and reading the chat log");
    let (log, started) = tokio::join!(load(args, screen), stack.launch());
    let log = log?;
    started?;
    screen.say("Kafka and PostgreSQL are up");
    let (services, database_url) = Box::pin(services::start(stack)).await?;
    let database = stack.postgres().connect(&database_url).await?;
    screen.say("msg-gateway and msg-transfer are ready");
    let mut never_killed = stack.processes();
    never_killed.extend(services.gateway.process());
    let done = tokio::select! {
        done = Box::pin(replay(stack, &services, &database, log, args, screen)) => done,
        died = first_to_die(&never_killed) => Err(died.into()),
    };
    if args.keep {
        services.stop().await;
    }
    done
}

/// Reads the log that the arguments name, and prints its description.
async fn load(args: &DemoArgs, screen: &Screen) -> Result<Log, DemoError> {
    let mut log = match &args.file {
        Some(file) => file::load(file)?,
        None if args.excerpt => chitchat::excerpt("as --excerpt requests").await?,
        None => chitchat::load(&args.fetch.folder()).await?,
    };
    screen.say(&format!("the log: {}; {} messages", log.about, grouped(log.lines.len() as u64)));
    let limit = args.messages.get();
    if limit < log.lines.len() {
        log.lines.truncate(limit);
        screen.say(&format!("its first {} are sent; more with --messages", grouped(limit as u64)));
    }
    Ok(log)
}

/// Sends the log, with the crash midway; waits until everything is stored; checks; prints the report.
async fn replay(
    stack: &Stack,
    services: &Services,
    database: &Database,
    log: Log,
    args: &DemoArgs,
    screen: &Screen,
) -> Result<(), DemoError> {
    let (about, shown) = (log.about.clone(), plan::pick_conversation(&log.lines));
    let messages_of_log = log.lines.len();
    let load = PlannedLoad::new(&services.grpc, plan::plan(log))?;
    let messages = load.messages();
    let offsets = Offsets::new(stack.kafka().bootstrap(), GROUP, TOPIC, PARTITIONS)?;
    // Connect to Kafka now, so that the request after the crash does not wait for the connection.
    offsets.committed().await?;
    screen.say(&format!(
        "sending {} messages, {} speakers at a time, some messages twice, some again with other content",
        grouped(messages as u64),
        args.concurrency
    ));

    let crash = async {
        while load.settled() < (messages as u64).div_ceil(2) {
            tokio::time::sleep(POLL).await;
        }
        let crash = services::crash(services, &offsets).await?;
        let ready = crash.ready.as_secs_f64();
        screen.say(&format!("msg-transfer was killed (SIGKILL) midway and started again: ready after {ready:.2} s"));
        Ok(crash)
    };
    let sending = async { load.send(args.concurrency.get()).await.map_err(DemoError::from) };
    let partitions = usize::try_from(PARTITIONS).expect("it is positive");
    let ((), crash) = tokio::select! {
        both = async { tokio::try_join!(Box::pin(sending), Box::pin(crash)) } => both?,
        () = screen.follow(&load, partitions, database) => unreachable!("it runs for as long as it is polled"),
    };
    screen.remove_bar();
    let last_ok = Instant::now();
    screen.say("every message is accepted");
    let transfer = services.transfer.process();
    tokio::select! {
        stored = settle::until_stored(&offsets) => stored?,
        died = first_to_die(transfer.as_slice()) => return Err(died.into()),
    }
    let caught_up = last_ok.elapsed();
    screen.say("everything is stored; checking every row against what was sent");

    let (gateway, mut transfer) = (services.gateway.memory(), services.transfer.memory());
    transfer.peak = transfer.peak.max(crash.memory.peak);
    let verdict = load.judge(database, &offsets, vec![(crash.at, crash.committed.clone())]).await?;
    let said = conversation::read_back(&mut load.client(), &shown).await?;
    let run =
        Run { log: about, messages, messages_of_log, verdict: &verdict, crash: &crash, caught_up, gateway, transfer };
    let figures = Figures::of(run);
    // Leave out the findings without cases: the demo has no watches, no measurements and no faults of the lab.
    let findings: Vec<&Finding> = verdict.findings.iter().filter(|finding| finding.checked > 0).collect();
    print_report(&figures, &findings, &said);
    if let Some(path) = &args.json {
        write_json(path, &figures, &findings, screen.elapsed())?;
    }
    match findings.iter().filter(|finding| !finding.holds()).count() {
        0 => {
            screen.say("every promise holds");
            Ok(())
        }
        broken => Err(DemoError::Broken { broken }),
    }
}

fn print_report(figures: &Figures, findings: &[&Finding], said: &[String]) {
    println!();
    for line in figures.lines() {
        println!("  {line}");
    }
    println!();
    for line in msg_lab::verdict(findings) {
        println!("  {line}");
    }
    println!("\n  a conversation of the log, as PullMsgs returns it:");
    for line in said {
        println!("  {line}");
    }
    println!();
}

fn write_json(path: &Path, figures: &Figures, findings: &[&Finding], total: Duration) -> Result<(), DemoError> {
    let text = format!("{:#}\n", figures.json(findings, total));
    fs::write(path, text).map_err(DemoError::io("write", path))
}
