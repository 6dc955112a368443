//! `msg-dev demo`: replays a real chat log through the whole pipe, kills the transfer in the middle, and checks every
//! promise against the database. The order of things is here; each thing is in a file of its own.
#![allow(clippy::print_stdout, reason = "a command line tool that tells what it does and finds")]

mod check;
mod chitchat;
mod conversation;
mod error;
mod figures;
mod file;
mod log;
mod pipe;
mod plan;
mod screen;
mod send;
mod table;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use msg_stack::{Offsets, Signal, Stack, StackOptions};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio_postgres::Client as Database;

use self::check::{Evidence, Finding};
pub(crate) use self::error::DemoError;
use self::figures::{Figures, Run};
use self::log::Log;
use self::pipe::{GROUP, PARTITIONS, Pipe, TOPIC};
use self::screen::Screen;
use self::send::Counters;
use crate::cli::DemoArgs;
use msg_lab::text::grouped;

/// For the transfer to store what is left when the last OK is there.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(120);
/// For PostgreSQL to end without writing anything.
const QUIT_WITHIN: Duration = Duration::from_secs(5);
/// The pause between two looks at the progress.
const POLL: Duration = Duration::from_millis(20);

/// Runs the demo in a temporary folder, and ends all that it started, whatever happens.
pub(crate) async fn run(args: DemoArgs) -> Result<(), DemoError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DemoError::io("listen for", "SIGINT"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::io("listen for", "SIGTERM"))?;
    let mut asked_to_stop = std::pin::pin!(async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    let screen = Screen::new();
    let folder = tempfile::Builder::new().prefix("msg-demo-").tempdir();
    let folder = folder.map_err(DemoError::io("create a folder in", std::env::temp_dir()))?;
    let options = StackOptions { cache: args.fetch.folder(), ..StackOptions::new(folder.path()) };
    let stack = tokio::select! {
        stack = Box::pin(Stack::reserve(options)) => stack?,
        () = &mut asked_to_stop => return Err(DemoError::Interrupted),
    };
    // Its future holds the services: whichever branch ends first, they are gone after it.
    let ran = tokio::select! {
        ran = Box::pin(work(&stack, &args, &screen)) => ran,
        () = &mut asked_to_stop => Err(DemoError::Interrupted),
    };
    screen.sent();
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
    // What they hold is thrown away, so nothing waits until it is written. A killed PostgreSQL would leave shared memory
    // behind, therefore the other signal.
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

/// Everything but the beginning and the end.
async fn work(stack: &Stack, args: &DemoArgs, screen: &Screen) -> Result<(), DemoError> {
    screen.say("starting a real Kafka and a real PostgreSQL, and reading the chat log");
    let (log, started) = tokio::join!(load(args, screen), stack.launch());
    let log = log?;
    started?;
    screen.say("Kafka and PostgreSQL are up");
    let pipe = Box::pin(Pipe::start(stack)).await?;
    screen.say("msg-gateway and msg-transfer are ready");
    let done = tokio::select! {
        done = Box::pin(replay(stack, &pipe, log, args, screen)) => done,
        died = pipe.first_to_die(stack) => Err(died.into()),
    };
    if args.keep {
        pipe.stop().await;
    }
    done
}

/// The log that was asked for, and the words about it.
async fn load(args: &DemoArgs, screen: &Screen) -> Result<Log, DemoError> {
    let mut log = match &args.file {
        Some(file) => file::load(file)?,
        None if args.excerpt => chitchat::excerpt("as --excerpt asks").await?,
        None => chitchat::load(&args.fetch.folder()).await?,
    };
    screen.say(&format!("the log: {}; {} messages", log.about, grouped(log.lines.len() as u64)));
    if let Some(limit) = args.messages.filter(|limit| *limit < log.lines.len()) {
        log.lines.truncate(limit);
        screen.say(&format!("only its first {} are sent, as --messages asks", grouped(limit as u64)));
    }
    Ok(log)
}

/// Sends the log, with the crash in the middle; waits until it is stored; checks; tells.
async fn replay(stack: &Stack, pipe: &Pipe, log: Log, args: &DemoArgs, screen: &Screen) -> Result<(), DemoError> {
    let (about, shown) = (log.about.clone(), plan::pick_conversation(&log.lines));
    let plan = plan::plan(log);
    let (messages, messages_of_log) = (plan.from_log + plan.besides, plan.from_log);
    let counters = Arc::new(Counters::new(messages));
    let mut clients = send::connect(&pipe.grpc).await?;
    let database = stack.postgres().connect(&pipe.database_url).await?;
    let offsets = Offsets::new(stack.kafka().bootstrap(), GROUP, TOPIC, PARTITIONS)?;
    // Connects it: at the crash the answer must not wait for that.
    offsets.committed().await?;
    screen.say(&format!(
        "sending {} messages, {} speakers at a time, some messages twice, some again with another body",
        grouped(messages as u64),
        args.at_once
    ));

    let crash = async {
        counters.half_way.notified().await;
        let crashed = pipe.crash(&offsets).await?;
        let ready = crashed.1.as_secs_f64();
        screen.say(&format!("msg-transfer was killed (SIGKILL) half way and started again: ready after {ready:.2} s"));
        Ok(crashed)
    };
    let sending = send::send_all(&clients, plan.streams, args.at_once, &counters);
    let partitions = usize::try_from(PARTITIONS).expect("it is positive");
    let (history, (crash, ready, dead_memory)) = tokio::select! {
        both = async { tokio::try_join!(Box::pin(sending), Box::pin(crash)) } => both?,
        () = screen.follow(&counters, messages, partitions, &database) => unreachable!("it shows as long as it is polled"),
    };
    screen.sent();
    let last_ok = Instant::now();
    screen.say("every message has its OK");
    let ends = offsets.ends().await?;
    catch_up(pipe, &database, &ends).await?;
    let caught_up = last_ok.elapsed();
    screen.say("everything is stored; checking every row against what was sent");

    let (gateway, mut transfer) = (pipe::memory(&pipe.gateway), pipe::memory(&pipe.transfer));
    transfer.peak = transfer.peak.max(dead_memory.peak);
    // The commit before the progress row: a row that is read later can only be further.
    let committed = offsets.committed().await?;
    let progress = table::progress(&database, partitions).await?;
    let table = table::read(&database).await?;
    let sent = &history.sent;
    let evidence =
        Evidence { sent, table: &table, crash: &crash, committed: &committed, progress: &progress, ends: &ends };
    let findings = check::check(&evidence);
    let said = conversation::read_back(&mut clients[0], &shown).await?;
    let (history, counters, table, crash) = (&history, &*counters, &table, &crash);
    let figures = Figures::of(Run {
        log: about,
        messages_of_log,
        history,
        counters,
        table,
        crash,
        ready,
        caught_up,
        gateway,
        transfer,
    });
    tell(&figures, &findings, &said);
    if let Some(path) = &args.json {
        write_json(path, &figures, &findings, screen.elapsed())?;
    }
    match findings.iter().filter(|finding| finding.broken > 0).count() {
        0 => {
            screen.say("every promise holds");
            Ok(())
        }
        broken => Err(DemoError::Broken { broken }),
    }
}

/// Waits until the transfer has stored all that the topic holds.
async fn catch_up(pipe: &Pipe, database: &Database, ends: &[i64]) -> Result<(), DemoError> {
    let give_up = Instant::now() + CATCH_UP_WITHIN;
    loop {
        let progress = table::progress(database, ends.len()).await?;
        let behind: i64 = ends.iter().zip(&progress).map(|(end, next)| (end - next).max(0)).sum();
        if behind == 0 {
            return Ok(());
        }
        if let Some(process) = pipe.transfer.process()
            && let Some(status) = process.exit_status()
        {
            return Err(process.died(status).into());
        }
        if Instant::now() > give_up {
            return Err(DemoError::Behind { seconds: CATCH_UP_WITHIN.as_secs(), behind });
        }
        tokio::time::sleep(POLL).await;
    }
}

fn tell(figures: &Figures, findings: &[Finding], said: &[String]) {
    println!();
    for line in figures.lines() {
        println!("  {line}");
    }
    println!("\n  {:<84} {:>9}", "what must hold", "checked");
    for line in figures::verdict(findings) {
        println!("  {line}");
    }
    println!("\n  a conversation of the log, as PullMsgs gives it back:");
    for line in said {
        println!("  {line}");
    }
    println!();
}

fn write_json(path: &Path, figures: &Figures, findings: &[Finding], total: Duration) -> Result<(), DemoError> {
    let text = format!("{:#}\n", figures.json(findings, total));
    fs::write(path, text).map_err(DemoError::io("write", path))
}
