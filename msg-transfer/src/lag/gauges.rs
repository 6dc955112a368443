//! The lag, as metrics of the running service.
//!
//! Every process reports every partition of the topic, whoever owns it: take the maximum over the processes.

use std::time::SystemTime;

use metrics::{Unit, describe_gauge, gauge};

use super::Lag;

const LAG_RECORDS: &str = "msg_transfer_lag_records";
const LAG_SECONDS: &str = "msg_transfer_lag_seconds";
const RETENTION_HEADROOM: &str = "msg_transfer_retention_headroom_seconds";
const STALLED: &str = "msg_transfer_stalled_partitions";

/// Once, before any is set.
pub fn describe() {
    describe_gauge!(
        LAG_RECORDS,
        Unit::Count,
        "Records of the partition that are in Kafka and not stored, whoever fetches it; each process reports all partitions"
    );
    describe_gauge!(
        STALLED,
        Unit::Count,
        "Partitions in which records wait and none was stored for STALL_TIMEOUT; each process reports all of the topic"
    );
    describe_gauge!(
        LAG_SECONDS,
        Unit::Seconds,
        "Age of the partition's oldest record that is not stored, 0 if there is none; each process reports all partitions"
    );
    describe_gauge!(
        RETENTION_HEADROOM,
        Unit::Seconds,
        "Time until the topic's retention may delete the partition's oldest record that is not stored; infinite if there \
         is none or it is kept for ever; each process reports all partitions"
    );
}

/// How many records wait.
pub fn records(lag: &Lag) {
    for partition in &lag.partitions {
        gauge!(LAG_RECORDS, "partition" => partition.partition.to_string()).set(partition.behind() as f64);
    }
}

/// For how long they have waited.
pub fn ages(lag: &Lag, now: SystemTime) {
    for partition in &lag.partitions {
        // Not known this time: the last value is nearer to the truth than any other.
        let Some(age) = partition.age(now) else { continue };
        let until_deleted = partition.until_deleted(now, lag.topic.retention);
        let label = partition.partition.to_string();
        gauge!(LAG_SECONDS, "partition" => label.clone()).set(age.as_secs_f64());
        gauge!(RETENTION_HEADROOM, "partition" => label)
            .set(until_deleted.map_or(f64::INFINITY, |left| left.as_secs_f64()));
    }
}

/// Where they wait and none is stored.
pub fn stalled(partitions: usize) {
    gauge!(STALLED).set(partitions as f64);
}
