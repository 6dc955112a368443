//! `dead-letters replay`: sends records to Kafka again, each as it was, to the end of its key's partition. A letter is marked
//! only after the brokers confirmed its record: a kill between the two means one more repeat, which is stored once.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use msg_common::partition::Partition;
use msg_common::postgres::{Object, Purpose};
use msg_common::shutdown;
use serde::Serialize;
use uuid::Uuid;

use super::filter::{Filter, Walk};
use super::letter::{Letter, Place, Summary};
use super::send::Sender;
use crate::commands::access::{connect, lag_reader, pool};
use crate::commands::error::{CommandError, ReplayError};
use crate::commands::output::{OutputOptions, Table};
use crate::config::Config;

/// Records that are sent before their answers are awaited, …
const CHUNK: usize = 100;
/// … and their bytes, one record excepted.
const CHUNK_BYTES: i64 = 8 << 20;

const MARK: &str = "
    UPDATE dead_letters d SET replayed_at = now()
    FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::integer[])
         AS t (topic_id, kafka_partition, kafka_offset, leader_epoch)
    WHERE d.topic_id = t.topic_id AND d.kafka_partition = t.kafka_partition AND d.kafka_offset = t.kafka_offset
      AND d.leader_epoch = t.leader_epoch";

/// Its flags.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Which.
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
    /// The result's form.
    #[command(flatten)]
    pub output: OutputOptions,
}

impl Options {
    /// What is wrong with them.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.filter.problems();
        if self.filter.is_empty() && !self.all {
            problems.push("dead-letters replay needs something that chooses, or --all".into());
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
    /// A signal ended it before it was through.
    stopped: bool,
    replayed: u64,
    /// Of those, records that a transfer of this build would keep aside again.
    unreadable: u64,
    /// Of those, records whose id a different message has: they are kept aside again as long as that one is stored.
    conflicts: u64,
    /// Not replayed: their content was not kept.
    without_content: u64,
}

/// Replays them.
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
        tracing::info!(replayed = report.replayed, "replaying");
    }
    if report.unreadable + report.conflicts > 0 {
        tracing::warn!(
            unreadable = report.unreadable,
            conflicts = report.conflicts,
            "some of these records are as they were, and will come back as new dead letters"
        );
    }
    options.output.print(&report, || table(&report))?;
    Ok(ExitCode::SUCCESS)
}

/// The gateways' count has to fit the topic, as they demand it themselves.
async fn sender(config: &Config, options: &Options) -> Result<Sender, CommandError> {
    let topic = lag_reader(config, pool(config, Purpose::Write)?)?.topic().await?;
    let (found, wanted) = (topic.partitions, options.topic_partitions);
    if found < wanted {
        return Err(ReplayError::Partitions { topic: config.kafka.kafka_topic.clone(), found, wanted }.into());
    }
    Ok(Sender::new(&config.kafka, topic.max_message_bytes, wanted)?)
}

/// What comes back as a new dead letter meanwhile is not replayed again, for ever.
async fn until_now(client: &Object, options: &Options) -> Result<Filter, tokio_postgres::Error> {
    let now: SystemTime = client.query_one("SELECT now()", &[]).await?.get(0);
    let mut filter = options.filter.clone();
    filter.until = Some(filter.until.map_or(now, |until| until.min(now)));
    filter.not_replayed = !options.again;
    Ok(filter)
}

/// In order, and bounded.
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

/// Sends these, waits for the brokers, and marks those that they have. The first that they do not have ends the run.
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
        // One that is gone meanwhile was purged, so it had been replayed.
        let found = Letter::fetch(client, &report.topic, summary.place).await?;
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
            Ok(answer) => sent.push((summary.place, answer)),
            Err(error) => {
                failed = Some((summary.place, error));
                break;
            }
        }
    }
    let mut confirmed = Vec::with_capacity(sent.len());
    for (place, answer) in sent {
        match answer.confirmed().await {
            Ok((partition, offset)) => {
                tracing::debug!(from = ?place, partition, offset, "replayed");
                confirmed.push(place);
            }
            Err(error) => failed = failed.or(Some((place, error.into()))),
        }
    }
    let marked = mark(client, &confirmed).await;
    marked.map_err(|error| ReplayError::NotMarked { sent: confirmed.len(), source: error.into() })?;
    report.replayed += confirmed.len() as u64;
    match failed {
        None => Ok(()),
        Some((Place { partition, offset, .. }, source)) => {
            Err(ReplayError::NotSent { partition, offset, replayed: report.replayed, source }.into())
        }
    }
}

async fn mark(client: &Object, places: &[Place]) -> Result<(), tokio_postgres::Error> {
    if places.is_empty() {
        return Ok(());
    }
    let topic_ids: Vec<Uuid> = places.iter().map(|place| place.topic_id).collect();
    let partitions: Vec<Partition> = places.iter().map(|place| place.partition).collect();
    let offsets: Vec<i64> = places.iter().map(|place| place.offset).collect();
    let leader_epochs: Vec<i32> = places.iter().map(|place| place.leader_epoch).collect();
    client.execute(MARK, &[&topic_ids, &partitions, &offsets, &leader_epochs]).await?;
    Ok(())
}

fn table(report: &Report) -> String {
    let mut table = Table::new(&["", ""]);
    let replayed = if report.dry_run { "would be replayed" } else { "replayed" };
    for (name, value) in [
        (replayed, report.replayed.to_string()),
        ("of those unreadable: dead-lettered again", report.unreadable.to_string()),
        ("of those in conflict: may be dead-lettered again", report.conflicts.to_string()),
        ("not replayed, without content", report.without_content.to_string()),
        ("stopped by a signal", if report.stopped { "yes" } else { "no" }.to_owned()),
    ] {
        table.row([name.to_owned(), value]);
    }
    table.text().trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(bytes: i32) -> Summary {
        Summary {
            place: Place { topic_id: Uuid::nil(), partition: 0, offset: 0, leader_epoch: 0 },
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
    fn chunks_are_bounded_by_count_and_by_bytes_and_none_is_empty() {
        let sizes = |page: &[Summary]| chunks(page).iter().map(|chunk| chunk.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&vec![letter(1); 250]), [100, 100, 50]);
        assert_eq!(sizes(&[letter(9 << 20), letter(1), letter(9 << 20)]), [1, 1, 1]);
        assert_eq!(sizes(&[letter(4 << 20), letter(4 << 20), letter(1)]), [2, 1]);
    }
}
