//! `dead-letters discard`: deletes dead letters by reason and age. They cannot be restored: afterwards the message is
//! neither stored nor a dead letter.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use msg_common::config::parse_duration;
use msg_common::postgres::Purpose;
use msg_common::shutdown;
use serde::Serialize;

use super::filter::{Filter, Walk};
use super::letter::execute_at;
use crate::commands::access::connect;
use crate::commands::error::{CommandError, horizon};
use crate::commands::output::{self, OutputOptions, rfc3339};
use crate::config::Config;

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    pub filter: Filter,
    /// Only dead letters that were first seen longer ago than this, such as 30days
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub older_than: Duration,
    /// Only count the dead letters that would be deleted
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: OutputOptions,
}

impl Options {
    /// Returns the problems of the flags.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.filter.problems();
        if self.filter.reason.is_none() {
            problems
                .push("dead-letters discard needs --reason: it deletes dead letters of one reason at a time".into());
        }
        if SystemTime::now().checked_sub(self.older_than).is_none_or(|horizon| horizon < SystemTime::UNIX_EPOCH) {
            problems.push("--older-than reaches back to before 1970".into());
        }
        problems
    }
}

#[derive(Debug, Serialize)]
struct Report {
    topic: String,
    reason: &'static str,
    /// Dead letters that were first seen before this time are deleted.
    horizon: String,
    dry_run: bool,
    /// Whether a signal ended the command early.
    stopped: bool,
    discarded: u64,
    /// How many of the discarded ones were never replayed.
    never_replayed: u64,
}

/// Deletes the dead letters, one page in each transaction.
pub(super) async fn run(config: &Config, options: &Options) -> Result<ExitCode, CommandError> {
    let stop = shutdown::between_steps();
    let client = connect(config, Purpose::Write).await?;
    // The server's clock, because it wrote the times.
    let now: SystemTime = client.query_one("SELECT now()", &[]).await?.get(0);
    let horizon = horizon(now, options.older_than)?;
    let until = options.filter.until.map_or(horizon, |until| until.min(horizon));
    let filter = Filter { until: Some(until), ..options.filter.clone() };
    let mut report = Report {
        topic: config.kafka.kafka_topic.clone(),
        reason: filter.reason.unwrap_or_default(),
        horizon: rfc3339(until),
        dry_run: options.dry_run,
        stopped: false,
        discarded: 0,
        never_replayed: 0,
    };
    let mut walk = Walk::new(&config.kafka.kafka_topic, &filter);
    loop {
        if stop.is_cancelled() {
            report.stopped = true;
            break;
        }
        let page = walk.next(&client).await?;
        if page.is_empty() {
            break;
        }
        if !options.dry_run {
            let positions: Vec<_> = page.iter().map(|letter| letter.position).collect();
            execute_at(&client, "DELETE FROM dead_letters d", &positions).await?;
        }
        report.discarded += page.len() as u64;
        report.never_replayed += page.iter().filter(|letter| letter.replayed_at.is_none()).count() as u64;
        tracing::info!(discarded = report.discarded, dry_run = options.dry_run, "discarded a page of dead letters");
    }
    options.output.print(&report, || table(&report))?;
    Ok(ExitCode::SUCCESS)
}

fn table(report: &Report) -> String {
    let discarded = if report.dry_run { "would be discarded" } else { "discarded" };
    output::pairs([
        ("reason", report.reason.to_owned()),
        ("first seen before", report.horizon.clone()),
        (discarded, report.discarded.to_string()),
        ("of those never replayed", report.never_replayed.to_string()),
        ("stopped by a signal", output::yes_or_no(report.stopped)),
    ])
}
