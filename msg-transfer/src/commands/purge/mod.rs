//! `msg-transfer purge`: deletes old messages. It deletes a prefix of each inbox, never its newest row, and never a
//! message whose record Kafka may still hold.

mod floor;
mod inboxes;
mod letters;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use msg_common::config::parse_duration;
use msg_common::postgres::{Object, Purpose};
use msg_common::shutdown;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::access::connect;
use super::error::{CommandError, horizon};
use super::output::{self, OutputOptions, rfc3339};
use crate::config::Config;

/// The interval between two progress logs.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Delete messages that were stored longer ago than this, such as 90days; not less than the topic's retention
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub older_than: Duration,
    /// Only count the rows that would be deleted
    #[arg(long)]
    pub dry_run: bool,
    /// Maximum number of rows that one transaction deletes; up to 100000
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub batch_rows: u32,
    /// Also delete the topic's dead letters that were replayed and were first seen longer ago than that
    #[arg(long)]
    pub dead_letters: bool,
    #[command(flatten)]
    pub output: OutputOptions,
}

impl Options {
    /// Returns the problems of the flags.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=100_000).contains(&self.batch_rows) {
            problems.push("--batch-rows must be 1 to 100000".into());
        }
        if SystemTime::now().checked_sub(self.older_than).is_none_or(|horizon| horizon < SystemTime::UNIX_EPOCH) {
            problems.push("--older-than reaches back to before 1970".into());
        }
        problems
    }
}

#[derive(Debug, Serialize)]
struct Report {
    /// Messages that were stored before this time are old.
    horizon: String,
    dry_run: bool,
    /// Whether a signal ended the command early.
    stopped: bool,
    inboxes_seen: u64,
    inboxes_purged: u64,
    messages_deleted: u64,
    dead_letters_deleted: u64,
    transactions: u64,
}

struct Purge {
    client: Object,
    horizon: SystemTime,
    batch_rows: usize,
    stop: CancellationToken,
    report: Report,
    last_log: Instant,
}

/// Deletes old messages, and dead letters if configured, and prints their numbers.
pub(super) async fn run(config: &Config, options: &Options) -> Result<ExitCode, CommandError> {
    let stop = shutdown::between_steps();
    let client = connect(config, Purpose::Write).await?;
    floor::check(config, options.older_than).await?;
    // The server's clock, because it wrote the times.
    let now: SystemTime = client.query_one("SELECT now()", &[]).await?.get(0);
    let horizon = horizon(now, options.older_than)?;
    let mut purge = Purge {
        client,
        horizon,
        batch_rows: usize::try_from(options.batch_rows).expect("at most 100000"),
        stop,
        report: Report {
            horizon: rfc3339(horizon),
            dry_run: options.dry_run,
            stopped: false,
            inboxes_seen: 0,
            inboxes_purged: 0,
            messages_deleted: 0,
            dead_letters_deleted: 0,
            transactions: 0,
        },
        last_log: Instant::now(),
    };
    purge.messages().await?;
    if options.dead_letters {
        purge.dead_letters(&config.kafka.kafka_topic).await?;
    }
    let report = purge.report;
    options.output.print(&report, || table(&report))?;
    Ok(ExitCode::SUCCESS)
}

impl Purge {
    /// Returns whether a signal requests the command to stop. It is called between two transactions, and logs the
    /// progress every 5 s.
    fn stopped(&mut self) -> bool {
        if self.last_log.elapsed() >= LOG_INTERVAL {
            self.last_log = Instant::now();
            tracing::info!(
                inboxes = self.report.inboxes_seen,
                messages_deleted = self.report.messages_deleted,
                dead_letters_deleted = self.report.dead_letters_deleted,
                "deleted messages"
            );
        }
        self.report.stopped = self.stop.is_cancelled();
        self.report.stopped
    }
}

fn table(report: &Report) -> String {
    let deleted = if report.dry_run { "would be deleted" } else { "deleted" };
    output::pairs([
        ("stored before".to_owned(), report.horizon.clone()),
        ("inboxes checked".to_owned(), report.inboxes_seen.to_string()),
        ("inboxes with old messages".to_owned(), report.inboxes_purged.to_string()),
        (format!("messages {deleted}"), report.messages_deleted.to_string()),
        (format!("dead letters {deleted}"), report.dead_letters_deleted.to_string()),
        ("transactions".to_owned(), report.transactions.to_string()),
        ("stopped by a signal".to_owned(), output::yes_or_no(report.stopped)),
    ])
}
