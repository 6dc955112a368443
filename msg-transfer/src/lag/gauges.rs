//! The lag in time, as metrics of the running service.
//!
//! Every process reports every partition of the topic, whoever owns it: take the maximum over the processes.

use std::time::{Duration, SystemTime};

use metrics::{Unit, describe_gauge, gauge};
use tokio::time::MissedTickBehavior;

use super::{Lag, LagReader};

const LAG_SECONDS: &str = "msg_transfer_lag_seconds";
const UNTIL_DELETED: &str = "msg_transfer_seconds_until_deleted";

/// How often. Each time costs a few requests to Kafka for each partition.
const EVERY: Duration = Duration::from_secs(30);

/// Looks regularly, until it is dropped.
pub async fn watch(reader: LagReader) {
    describe();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match reader.read().await {
            Ok(lag) => set(&lag, SystemTime::now()),
            // The gauges keep their last values; readiness speaks of what is away.
            Err(error) => tracing::warn!(%error, "the lag in time could not be measured, will be tried again"),
        }
    }
}

fn describe() {
    describe_gauge!(
        LAG_SECONDS,
        Unit::Seconds,
        "Age of the partition's oldest record that is not stored, 0 if there is none; each process reports all partitions"
    );
    describe_gauge!(
        UNTIL_DELETED,
        Unit::Seconds,
        "Time until the topic's retention may delete the partition's oldest record that is not stored; infinite if there \
         is none or it is kept for ever; each process reports all partitions"
    );
}

fn set(lag: &Lag, now: SystemTime) {
    for partition in &lag.partitions {
        // Not known this time: the last value is nearer to the truth than any other.
        let Some(age) = partition.age(now) else { continue };
        let until_deleted = partition.until_deleted(now, lag.topic.retention);
        let label = partition.partition.to_string();
        gauge!(LAG_SECONDS, "partition" => label.clone()).set(age.as_secs_f64());
        gauge!(UNTIL_DELETED, "partition" => label).set(until_deleted.map_or(f64::INFINITY, |left| left.as_secs_f64()));
    }
}
