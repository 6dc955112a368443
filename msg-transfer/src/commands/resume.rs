//! `msg-transfer resume`: an operator resumes halted partitions. The running transfer reads this from their progress
//! rows.

use std::process::ExitCode;

use clap::Args;
use msg_common::partition::Partition;
use msg_common::postgres::{Object, Purpose};
use serde::Serialize;
use uuid::Uuid;

use super::access::{lag_reader, pool};
use super::error::CommandError;
use super::output::{OutputOptions, Table};
use crate::config::Config;
use crate::schema;

/// The progress rows, each with the number of dead letters that count for the limit until now. The rows are locked, so
/// that both statements see the same ones.
const COUNT: &str = "
    SELECT p.kafka_partition,
           (SELECT count(*) FROM dead_letters d
            WHERE d.topic_id = p.topic_id AND d.kafka_partition = p.kafka_partition
              AND d.first_seen > coalesce(p.resumed_at, '-infinity'))
    FROM progress p
    WHERE p.topic_id = $1 AND ($2::integer[] IS NULL OR p.kafka_partition = ANY($2))
    ORDER BY p.kafka_partition
    FOR UPDATE OF p";

/// `clock_timestamp()` and not `now()`: dead letters that were written while this transaction waited for the rows do
/// not count either.
const RESUME: &str =
    "UPDATE progress SET resumed_at = clock_timestamp() WHERE topic_id = $1 AND kafka_partition = ANY($2)";

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Partition to resume; may be given more than once
    #[arg(long = "topic-partition", value_name = "P", conflicts_with = "all")]
    pub partitions: Vec<Partition>,
    /// Resume all partitions of the topic that have a progress row
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub output: OutputOptions,
}

impl Options {
    /// Returns the problems of the flags.
    pub fn problems(&self) -> Vec<String> {
        let nothing = self.partitions.is_empty() && !self.all;
        nothing.then(|| "resume needs --topic-partition P, or --all".to_owned()).into_iter().collect()
    }
}

#[derive(Serialize)]
struct Report {
    topic: String,
    resumed: Vec<Resumed>,
    /// Requested partitions without a progress row: none of their records was ever stored.
    without_progress: Vec<Partition>,
}

#[derive(Serialize)]
struct Resumed {
    partition: Partition,
    dead_letters: i64,
}

/// Resumes the partitions, and prints them.
pub(super) async fn run(config: &Config, options: &Options) -> Result<ExitCode, CommandError> {
    let pool = pool(config, Purpose::Write)?;
    schema::check(&pool).await?;
    let topic_id = lag_reader(config, pool.clone()).await?.topic_id().await?;
    let mut client = pool.get().await?;
    let requested = (!options.all).then_some(options.partitions.as_slice());
    let resumed = resume(&mut client, topic_id, requested).await?;
    let found = |partition: &Partition| resumed.iter().any(|resumed| resumed.partition == *partition);
    let without_progress: Vec<Partition> = options.partitions.iter().copied().filter(|p| !found(p)).collect();
    for partition in &without_progress {
        tracing::error!(
            partition,
            "resumed nothing: the partition has no progress row, because none of its records was ever stored"
        );
    }
    if resumed.is_empty() && options.all {
        tracing::error!(topic = config.kafka.kafka_topic, "resumed nothing: the topic has no progress row");
    }
    let complete = without_progress.is_empty() && !resumed.is_empty();
    let report = Report { topic: config.kafka.kafka_topic.clone(), resumed, without_progress };
    options.output.print(&report, || table(&report))?;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn resume(
    client: &mut Object,
    topic_id: Uuid,
    requested: Option<&[Partition]>,
) -> Result<Vec<Resumed>, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    let rows = transaction.query(COUNT, &[&topic_id, &requested]).await?;
    let resumed: Vec<Resumed> =
        rows.iter().map(|row| Resumed { partition: row.get(0), dead_letters: row.get(1) }).collect();
    let partitions: Vec<Partition> = resumed.iter().map(|resumed| resumed.partition).collect();
    transaction.execute(RESUME, &[&topic_id, &partitions]).await?;
    transaction.commit().await?;
    Ok(resumed)
}

fn table(report: &Report) -> String {
    let mut table = Table::new(&["partition", "result", "dead letters since it was last resumed"]);
    for resumed in &report.resumed {
        table.row([resumed.partition.to_string(), "resumed".to_owned(), resumed.dead_letters.to_string()]);
    }
    for partition in &report.without_progress {
        table.row([partition.to_string(), "no progress row".to_owned(), "-".to_owned()]);
    }
    table.text()
}
