//! `msg-transfer lag`: the records of each partition that are not stored yet, and how old they are.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use msg_common::config::parse_duration;
use msg_common::error::chain;
use msg_common::partition::Partition;
use msg_common::postgres::Purpose;
use msg_common::shutdown;
use serde::Serialize;

use super::access::{lag_reader, pool};
use super::error::CommandError;
use super::output::{OutputOptions, Table, for_people, or_dash};
use crate::config::Config;
use crate::lag::{Lag, LagReader, PartitionLag};
use crate::schema;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Repeat at this interval until a signal; 5s if no value is given
    #[arg(long, value_parser = parse_duration, num_args = 0..=1, default_missing_value = "5s", value_name = "TIME")]
    pub watch: Option<Duration>,
    #[command(flatten)]
    pub output: OutputOptions,
}

/// The JSON result. Times are in seconds, and null if they do not apply or are not known.
#[derive(Serialize)]
struct Report {
    topic: String,
    group: String,
    retention_seconds: Option<f64>,
    total: Sum,
    partitions: Vec<Line>,
    unreachable_partitions: Vec<Partition>,
}

#[derive(Serialize)]
struct Sum {
    lag_records: i64,
    lag_seconds: Option<f64>,
    retention_headroom_seconds: Option<f64>,
    expired_unstored_records: i64,
}

#[derive(Serialize)]
struct Line {
    partition: Partition,
    committed: Option<i64>,
    progress: Option<i64>,
    start: i64,
    end: i64,
    lag_records: i64,
    lag_seconds: Option<f64>,
    retention_headroom_seconds: Option<f64>,
    expired_unstored_records: i64,
}

/// Prints the lag once, or at an interval until a signal.
pub(super) async fn run(config: &Config, options: &Options) -> Result<ExitCode, CommandError> {
    let pool = pool(config, Purpose::ReadPrimary)?;
    schema::check(&pool).await?;
    let reader = lag_reader(config, pool).await?;
    let Some(every) = options.watch else {
        let lag = reader.read().await?;
        options.output.print(&Report::of(&lag, config), || table(&lag))?;
        return Ok(ExitCode::SUCCESS);
    };
    let stop = shutdown::between_steps();
    let watching = watch(&reader, config, options.output, every);
    match stop.run_until_cancelled(watching).await {
        Some(Err(error)) => Err(error),
        Some(Ok(())) | None => Ok(ExitCode::SUCCESS),
    }
}

/// Prints the lag at an interval. Returns only an error of standard output.
async fn watch(
    reader: &LagReader,
    config: &Config,
    output: OutputOptions,
    every: Duration,
) -> Result<(), CommandError> {
    loop {
        match reader.read().await {
            Ok(lag) => output.print(&Report::of(&lag, config), || table(&lag) + "\n")?,
            Err(error) => tracing::warn!(error = chain(&error), "could not read the lag, will be retried"),
        }
        tokio::time::sleep(every).await;
    }
}

impl Report {
    fn of(lag: &Lag, config: &Config) -> Self {
        let now = SystemTime::now();
        let retention = lag.topic.retention;
        let line = |of: &PartitionLag| Line {
            partition: of.partition,
            committed: of.committed,
            progress: of.progress,
            start: of.start,
            end: of.end,
            lag_records: of.records(),
            lag_seconds: of.age(now).map(|age| age.as_secs_f64()),
            retention_headroom_seconds: of.retention_headroom(now, retention).map(|left| left.as_secs_f64()),
            expired_unstored_records: of.expired_unstored(),
        };
        let longest = lag.longest_age(now).map(|age| age.as_secs_f64());
        let headroom = lag.least_headroom(now).map(|left| left.as_secs_f64());
        Report {
            topic: config.kafka.kafka_topic.clone(),
            group: config.consumer.group_id.clone(),
            retention_seconds: retention.map(|retention| retention.as_secs_f64()),
            total: Sum {
                lag_records: lag.records(),
                lag_seconds: longest,
                retention_headroom_seconds: headroom,
                expired_unstored_records: lag.expired_unstored(),
            },
            partitions: lag.partitions.iter().map(line).collect(),
            unreachable_partitions: lag.unreachable.clone(),
        }
    }
}

fn table(lag: &Lag) -> String {
    let now = SystemTime::now();
    let mut table = Table::new(&[
        "partition",
        "committed",
        "progress",
        "end",
        "lag",
        "lag time",
        "retention headroom",
        "expired unstored",
    ]);
    for of in &lag.partitions {
        table.row([
            of.partition.to_string(),
            or_dash(of.committed),
            or_dash(of.progress),
            of.end.to_string(),
            of.records().to_string(),
            of.age(now).map_or_else(|| "?".to_owned(), for_people),
            or_dash(of.retention_headroom(now, lag.topic.retention).map(for_people)),
            of.expired_unstored().to_string(),
        ]);
    }
    for partition in &lag.unreachable {
        table.row([partition.to_string(), "has no leader that responds".to_owned()]);
    }
    table.row([
        "total".to_owned(),
        String::new(),
        String::new(),
        String::new(),
        lag.records().to_string(),
        lag.longest_age(now).map_or_else(|| "?".to_owned(), for_people),
        or_dash(lag.least_headroom(now).map(for_people)),
        lag.expired_unstored().to_string(),
    ]);
    table.text()
}
