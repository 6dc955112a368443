//! The lag, as metrics of the running service.
//!
//! Every process reports every partition of the topic, also those that other processes own: use the maximum over the
//! processes.

use std::time::SystemTime;

use metrics::{Unit, describe_gauge, gauge};

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
        "Partitions in which records wait and none was stored for STALL_TIMEOUT. Each process reports all partitions"
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

/// Sets the lag in records.
pub(crate) fn records(lag: &Lag) {
    for partition in &lag.partitions {
        gauge!(LAG_RECORDS, "partition" => partition.partition.to_string()).set(partition.records() as f64);
    }
}

/// Sets the lag time and the retention headroom.
pub(crate) fn ages(lag: &Lag, now: SystemTime) {
    for partition in &lag.partitions {
        // The age could not be read: the previous value is the best estimate.
        let Some(age) = partition.age(now) else { continue };
        let retention_headroom = partition.retention_headroom(now, lag.topic.retention);
        let label = partition.partition.to_string();
        gauge!(LAG_SECONDS, "partition" => label.clone()).set(age.as_secs_f64());
        gauge!(RETENTION_HEADROOM, "partition" => label)
            .set(retention_headroom.map_or(f64::INFINITY, |left| left.as_secs_f64()));
    }
}

/// Sets the number of stalled partitions.
pub(crate) fn stalled(partitions: usize) {
    gauge!(STALLED).set(partitions as f64);
}
