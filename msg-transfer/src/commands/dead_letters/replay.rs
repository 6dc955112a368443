//! `dead-letters replay`: sends the records of dead letters to Kafka again, unchanged, to the end of their key's
//! partition. A dead letter is marked only after its record is confirmed. If the process is killed in between, the next
//! run sends the record once more, and the transfer stores it once.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use msg_common::partition::Partition;
use msg_common::postgres::{Object, Purpose};
use msg_common::shutdown;
use serde::Serialize;

use super::filter::{Filter, Walk};
use super::letter::{Letter, Position, Summary, execute_at};
use super::send::Sender;
use crate::commands::access::{connect, lag_reader, pool};
use crate::commands::error::{CommandError, ReplayError};
use crate::commands::output::{self, OutputOptions};
use crate::config::Config;

/// Maximum number of records that are sent before their delivery reports are awaited.
const CHUNK: usize = 100;
/// Maximum number of their bytes; one larger record is sent by itself.
const CHUNK_BYTES: i64 = 8 << 20;

const MARK: &str = "UPDATE dead_letters d SET replayed_at = now()";

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    pub filter: Filter,
    /// Replay all dead letters of the topic. Without it, a filter is needed
    #[arg(long)]
    pub all: bool,
    /// Also replay dead letters that were replayed before
    #[arg(long)]
    pub again: bool,
    /// Only count the dead letters that would be replayed
    #[arg(long)]
    pub dry_run: bool,
    /// Number of partitions that inboxes are distributed over: the same as in the gateways
    #[arg(long, env = "TOPIC_PARTITIONS", default_value_t = 16, value_name = "N")]
    pub topic_partitions: Partition,
    #[command(flatten)]
    pub output: OutputOptions,
}

impl Options {
    /// Returns the problems of the flags.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.filter.problems();
        if self.filter.is_empty() && !self.all {
            problems.push("dead-letters replay needs a flag that selects dead letters, or --all".into());
        }
        if self.again && self.filter.not_replayed {
            problems.push("--again and --not-replayed exclude each other".into());
        }
        if self.topic_partitions < 1 {
            problems.push("--topic-partitions must be at least 1".into());
        }
        problems
    }
}

#[derive(Debug, Default, Serialize)]
struct Report {
    topic: String,
    dry_run: bool,
    /// Whether a signal ended the command early.
    stopped: bool,
    replayed: u64,
    /// How many of the replayed records this build cannot decode, so that they become dead letters again.
    unreadable: u64,
    /// How many of the replayed records have the ID of a message with different content. They are dead-lettered again
    /// while that message is stored.
    conflicts: u64,
    /// How many dead letters were not replayed because their content was not kept.
    without_content: u64,
}

/// Replays the dead letters chunk by chunk.
pub(super) async fn run(config: &Config, options: &Options) -> Result<ExitCode, CommandError> {
    let stop = shutdown::between_steps();
    let client = connect(config, Purpose::Write).await?;
    let sender = sender(config, options).await?;
    let topic = &config.kafka.kafka_topic;
    let filter = until_now(&client, options).await?;
    let mut report = Report { topic: topic.clone(), dry_run: options.dry_run, ..Report::default() };
    let mut walk = Walk::new(topic, &filter);
    'walk: loop {
        let page = walk.next(&client).await?;
        if page.is_empty() {
            break;
        }
        for chunk in chunks(&page) {
            if stop.is_cancelled() {
                report.stopped = true;
                break 'walk;
            }
            replay(&client, &sender, options.dry_run, chunk, &mut report).await?;
        }
        tracing::info!(replayed = report.replayed, "replayed a page of dead letters");
    }
    if report.unreadable + report.conflicts > 0 {
        tracing::warn!(
            unreadable = report.unreadable,
            conflicts = report.conflicts,
            "replayed records that will be dead-lettered again, because their errors remain"
        );
    }
    options.output.print(&report, || table(&report))?;
    Ok(ExitCode::SUCCESS)
}

/// Creates the sender. Returns an error if the topic has fewer partitions than the gateways use, which the gateways
/// reject too.
async fn sender(config: &Config, options: &Options) -> Result<Sender, CommandError> {
    let topic = lag_reader(config, pool(config, Purpose::Write)?).await?.topic().await?;
    let (found, wanted) = (topic.partitions, options.topic_partitions);
    if found < wanted {
        return Err(ReplayError::Partitions { topic: config.kafka.kafka_topic.clone(), found, wanted }.into());
    }
    Ok(Sender::new(&config.kafka, topic.max_message_bytes, wanted)?)
}

/// Limits the filter to dead letters that exist now. Otherwise records that are dead-lettered again would be replayed
/// without end.
async fn until_now(client: &Object, options: &Options) -> Result<Filter, tokio_postgres::Error> {
    let now: SystemTime = client.query_one("SELECT now()", &[]).await?.get(0);
    let mut filter = options.filter.clone();
    filter.until = Some(filter.until.map_or(now, |until| until.min(now)));
    filter.not_replayed = !options.again;
    Ok(filter)
}

/// Splits a page into chunks, in order, each within `CHUNK` and `CHUNK_BYTES`.
fn chunks(page: &[Summary]) -> Vec<&[Summary]> {
    let mut chunks = Vec::new();
    let mut rest = page;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |letter: &&Summary| {
            bytes += i64::from(letter.bytes);
            bytes <= CHUNK_BYTES
        };
        let count = rest.iter().take(CHUNK).take_while(fits).count().max(1);
        let (chunk, after) = rest.split_at(count);
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

/// Sends the records of a chunk, waits for their delivery reports, and marks those that are confirmed. The first one
/// that is not confirmed ends the run.
async fn replay(
    client: &Object,
    sender: &Sender,
    dry_run: bool,
    chunk: &[Summary],
    report: &mut Report,
) -> Result<(), CommandError> {
    let mut sent = Vec::with_capacity(chunk.len());
    let mut failed = None;
    for summary in chunk {
        // A dead letter that was deleted in the meantime was purged, so it was replayed before.
        let found = Letter::fetch(client, &report.topic, summary.position).await?;
        let Some(letter) = found else { continue };
        if letter.has_lost_content() {
            report.without_content += 1;
            continue;
        }
        if letter.decode().is_err() {
            report.unreadable += 1;
        } else if summary.reason == "IDEMPOTENCY_CONFLICT" {
            report.conflicts += 1;
        }
        if dry_run {
            report.replayed += 1;
            continue;
        }
        match sender.send(&report.topic, &letter) {
            Ok(record) => sent.push((summary.position, record)),
            Err(error) => {
                failed = Some((summary.position, error));
                break;
            }
        }
    }
    let mut confirmed = Vec::with_capacity(sent.len());
    for (position, record) in sent {
        match record.confirmed().await {
            Ok((partition, offset)) => {
                tracing::debug!(from = ?position, partition, offset, "replayed");
                confirmed.push(position);
            }
            Err(error) => failed = failed.or(Some((position, error.into()))),
        }
    }
    let marked = execute_at(client, MARK, &confirmed).await;
    marked.map_err(|error| ReplayError::NotMarked { sent: confirmed.len(), source: error.into() })?;
    report.replayed += confirmed.len() as u64;
    match failed {
        None => Ok(()),
        Some((Position { partition, offset, .. }, source)) => {
            Err(ReplayError::NotSent { partition, offset, replayed: report.replayed, source }.into())
        }
    }
}

fn table(report: &Report) -> String {
    let replayed = if report.dry_run { "would be replayed" } else { "replayed" };
    output::pairs([
        (replayed, report.replayed.to_string()),
        ("of those unreadable: dead-lettered again", report.unreadable.to_string()),
        ("of those in conflict: may be dead-lettered again", report.conflicts.to_string()),
        ("not replayed, without content", report.without_content.to_string()),
        ("stopped by a signal", output::yes_or_no(report.stopped)),
    ])
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn letter(bytes: i32) -> Summary {
        Summary {
            position: Position { topic_id: Uuid::nil(), partition: 0, offset: 0, leader_epoch: 0 },
            recv_id: None,
            msg_id: None,
            reason: String::new(),
            detail: String::new(),
            first_seen: SystemTime::UNIX_EPOCH,
            replayed_at: None,
            bytes,
        }
    }

    #[test]
    fn chunks_are_bounded_by_count_and_bytes_and_never_empty() {
        let sizes = |page: &[Summary]| chunks(page).iter().map(|chunk| chunk.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&vec![letter(1); 250]), [100, 100, 50]);
        assert_eq!(sizes(&[letter(9 << 20), letter(1), letter(9 << 20)]), [1, 1, 1]);
        assert_eq!(sizes(&[letter(4 << 20), letter(4 << 20), letter(1)]), [2, 1]);
    }
}
