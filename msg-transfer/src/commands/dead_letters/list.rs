//! `dead-letters list`: prints dead letters without their records.

use std::process::ExitCode;

use clap::Args;
use msg_common::partition::Partition;
use msg_common::postgres::Purpose;
use serde::Serialize;

use super::filter::{Filter, Walk};
use super::letter::Summary;
use crate::commands::access::connect;
use crate::commands::error::CommandError;
use crate::commands::output::{OutputOptions, Table, harmless, or_dash, rfc3339};
use crate::config::Config;

const LIMIT: u32 = 100;

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    pub filter: Filter,
    #[command(flatten)]
    pub output: OutputOptions,
}

#[derive(Serialize)]
struct Report {
    topic: String,
    dead_letters: Vec<Line>,
    /// Whether the filter selects more dead letters than the limit.
    more: bool,
}

#[derive(Serialize)]
struct Line {
    topic_id: String,
    partition: Partition,
    offset: i64,
    reason: String,
    detail: String,
    recv_id: Option<String>,
    msg_id: Option<String>,
    bytes: i32,
    first_seen: String,
    replayed_at: Option<String>,
}

pub(super) async fn run(config: &Config, options: &Options) -> Result<ExitCode, CommandError> {
    let client = connect(config, Purpose::ReadPrimary).await?;
    let limit = options.filter.limit.unwrap_or(LIMIT);
    // One more than the limit shows whether there are more.
    let filter = Filter { limit: Some(limit.saturating_add(1)), ..options.filter.clone() };
    let mut walk = Walk::new(&config.kafka.kafka_topic, &filter);
    let mut found = Vec::new();
    loop {
        let page = walk.next(&client).await?;
        if page.is_empty() {
            break;
        }
        found.extend(page);
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    found.truncate(limit);
    if more {
        tracing::warn!(limit, "listed not all dead letters: raise --limit, or use other flags to select fewer");
    }
    let report =
        Report { topic: config.kafka.kafka_topic.clone(), dead_letters: found.iter().map(Line::of).collect(), more };
    options.output.print(&report, || table(&report))?;
    Ok(ExitCode::SUCCESS)
}

impl Line {
    fn of(letter: &Summary) -> Self {
        Line {
            topic_id: letter.position.topic_id.to_string(),
            partition: letter.position.partition,
            offset: letter.position.offset,
            reason: letter.reason.clone(),
            detail: letter.detail.clone(),
            recv_id: letter.recv_id.clone(),
            msg_id: letter.msg_id.map(|id| id.to_string()),
            bytes: letter.bytes,
            first_seen: rfc3339(letter.first_seen),
            replayed_at: letter.replayed_at.map(rfc3339),
        }
    }
}

fn table(report: &Report) -> String {
    let mut table =
        Table::new(&["partition", "offset", "reason", "first seen", "replayed", "bytes", "recv_id", "detail"]);
    for letter in &report.dead_letters {
        table.row([
            letter.partition.to_string(),
            letter.offset.to_string(),
            letter.reason.clone(),
            letter.first_seen.clone(),
            or_dash(letter.replayed_at.as_ref()),
            letter.bytes.to_string(),
            or_dash(letter.recv_id.as_deref().map(harmless)),
            harmless(&letter.detail).into_owned(),
        ]);
    }
    table.text()
}
