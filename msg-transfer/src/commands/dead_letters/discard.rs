//! `dead-letters discard`: deletes dead letters by reason and age. They cannot be restored: afterwards the message is
//! neither stored nor a dead letter.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use msg_common::config::parse_duration;
use msg_common::partition::Partition;
use msg_common::postgres::{Object, Purpose};
use msg_common::shutdown;
use serde::Serialize;
use uuid::Uuid;

use super::filter::{Filter, Walk};
use super::letter::Summary;
use crate::commands::access::connect;
use crate::commands::error::{CommandError, horizon};
use crate::commands::output::{OutputOptions, Table, rfc3339};
use crate::config::Config;

const DELETE: &str = "
    DELETE FROM dead_letters d
    USING unnest($1::uuid[], $2::integer[], $3::bigint[], $4::integer[])
          AS t (topic_id, kafka_partition, kafka_offset, leader_epoch)
    WHERE d.topic_id = t.topic_id AND d.kafka_partition = t.kafka_partition AND d.kafka_offset = t.kafka_offset
      AND d.leader_epoch = t.leader_epoch";

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
            delete(&client, &page).await?;
        }
        report.discarded += page.len() as u64;
        report.never_replayed += page.iter().filter(|letter| letter.replayed_at.is_none()).count() as u64;
        tracing::info!(discarded = report.discarded, dry_run = options.dry_run, "discarded a page of dead letters");
    }
    options.output.print(&report, || table(&report))?;
    Ok(ExitCode::SUCCESS)
}

async fn delete(client: &Object, page: &[Summary]) -> Result<(), tokio_postgres::Error> {
    let topic_ids: Vec<Uuid> = page.iter().map(|letter| letter.position.topic_id).collect();
    let partitions: Vec<Partition> = page.iter().map(|letter| letter.position.partition).collect();
    let offsets: Vec<i64> = page.iter().map(|letter| letter.position.offset).collect();
    let leader_epochs: Vec<i32> = page.iter().map(|letter| letter.position.leader_epoch).collect();
    client.execute(DELETE, &[&topic_ids, &partitions, &offsets, &leader_epochs]).await?;
    Ok(())
}

fn table(report: &Report) -> String {
    let mut table = Table::new(&["", ""]);
    let discarded = if report.dry_run { "would be discarded" } else { "discarded" };
    for (name, value) in [
        ("reason", report.reason.to_owned()),
        ("first seen before", report.horizon.clone()),
        (discarded, report.discarded.to_string()),
        ("of those never replayed", report.never_replayed.to_string()),
        ("stopped by a signal", if report.stopped { "yes" } else { "no" }.to_owned()),
    ] {
        table.row([name.to_owned(), value]);
    }
    table.text().trim_start().to_owned()
}
