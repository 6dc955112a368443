//! The lag, as metrics of the running service.
//!
//! Every process reports every partition of the topic, also those that other processes own: use the maximum over the
//! processes.

use std::time::{Duration, SystemTime};

use metrics::{Unit, describe_gauge, gauge};
use msg_common::partition::Partition;

use super::Lag;

const LAG_RECORDS: &str = "msg_transfer_lag_records";
const LAG_SECONDS: &str = "msg_transfer_lag_seconds";
const RETENTION_HEADROOM: &str = "msg_transfer_retention_headroom_seconds";
const STALLED: &str = "msg_transfer_stalled_partitions";

/// Describes every gauge. Has to be called once, before a gauge is set.
pub fn describe() {
    describe_gauge!(
        LAG_RECORDS,
        Unit::Count,
        "Records of the partition from its progress row to its end offset. Each process reports all partitions"
    );
    describe_gauge!(
        STALLED,
        Unit::Count,
        "Partitions in which records wait and none was stored for STALL_TIMEOUT, also if an open transaction holds them. \
         Each process reports all partitions"
    );
    describe_gauge!(
        LAG_SECONDS,
        Unit::Seconds,
        "Age of the partition's oldest record that is not completed; 0 if none waits. Each process reports all \
         partitions"
    );
    describe_gauge!(
        RETENTION_HEADROOM,
        Unit::Seconds,
        "Time until the topic's retention may delete the partition's oldest record that is not completed; infinite if \
         none waits or retention is unlimited. Each process reports all partitions"
    );
}

pub(crate) fn records(lag: &Lag) {
    for partition in &lag.partitions {
        gauge!(LAG_RECORDS, "partition" => partition.partition.to_string()).set(partition.records() as f64);
    }
}

/// Sets the lag time and the retention headroom. If the age of a record cannot be read, its lag time is at least the
/// time `waited` that this process has seen it wait; without that, both keep their values.
pub(crate) fn ages(lag: &Lag, now: SystemTime, waited: impl Fn(Partition) -> Option<Duration>) {
    for partition in &lag.partitions {
        let label = partition.partition.to_string();
        let Some(age) = partition.age(now) else {
            if let Some(waited) = waited(partition.partition) {
                gauge!(LAG_SECONDS, "partition" => label).set(waited.as_secs_f64());
            }
            continue;
        };
        let retention_headroom = partition.retention_headroom(now, lag.topic.retention);
        gauge!(LAG_SECONDS, "partition" => label.clone()).set(age.as_secs_f64());
        gauge!(RETENTION_HEADROOM, "partition" => label)
            .set(retention_headroom.map_or(f64::INFINITY, |left| left.as_secs_f64()));
    }
}

pub(crate) fn stalled(partitions: usize) {
    gauge!(STALLED).set(partitions as f64);
}
