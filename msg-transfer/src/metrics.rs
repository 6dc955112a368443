//! The transfer's metrics, with their units and descriptions.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use machine::Partition;
use machine::error::ErrorClass;
use machine::lane::Outcome;

const CONSUMED: &str = "msg_transfer_consumed_records_total";
const STORED: &str = "msg_transfer_stored_messages_total";
const DUPLICATES: &str = "msg_transfer_duplicate_messages_total";
const DEAD_LETTERS: &str = "msg_transfer_dead_letters_total";
const REDUCED: &str = "msg_transfer_dead_letters_reduced_total";
const BATCH: &str = "msg_transfer_batch_rows";
const STORE_DURATION: &str = "msg_transfer_store_duration_seconds";
const FAILURES: &str = "msg_transfer_store_failures_total";
const INFLIGHT_BYTES: &str = "msg_transfer_inflight_bytes";
const INFLIGHT: &str = "msg_transfer_inflight_records";
const FETCH_ERRORS: &str = "msg_transfer_fetch_errors_total";
const HALTED: &str = "msg_transfer_halted_partitions";
const THROTTLED: &str = "msg_transfer_throttled_partitions";
const BLOCKED: &str = "msg_transfer_blocked_inboxes";
const BLOCKED_RECORDS: &str = "msg_transfer_blocked_records";
const BLOCKED_RETRIES: &str = "msg_transfer_blocked_retries_total";
const REBALANCES: &str = "msg_transfer_rebalances_total";
const WARNINGS: &str = "msg_transfer_commit_warnings_total";
const WORKER_CHANGES: &str = "msg_transfer_worker_changes_total";
const COMMITS: &str = "msg_transfer_commits_total";
const LOST_OFFSETS: &str = "msg_transfer_lost_offsets_total";
const CLIENT_RESTARTS: &str = "msg_transfer_client_restarts_total";
const HINTS: &str = "msg_transfer_hints_total";

/// Describes every metric. Has to be called once per process.
pub fn describe() {
    describe_counter!(CONSUMED, Unit::Count, "Records consumed from Kafka, including those consumed again");
    describe_counter!(STORED, Unit::Count, "Messages stored, each as one row");
    describe_counter!(DUPLICATES, Unit::Count, "Records of messages that were stored already");
    describe_counter!(DEAD_LETTERS, Unit::Count, "Dead letters, by reason");
    describe_counter!(
        REDUCED,
        Unit::Count,
        "Dead letters that were stored without parts of their records, because the table rejected them"
    );
    describe_histogram!(BATCH, Unit::Count, "Records in a stored batch");
    describe_histogram!(
        STORE_DURATION,
        Unit::Seconds,
        "Time to store a batch, from its first statement to the result of COMMIT"
    );
    describe_counter!(FAILURES, Unit::Count, "Failed attempts to store a batch, by error class");
    describe_gauge!(INFLIGHT_BYTES, Unit::Bytes, "Bytes of records that are consumed and not completed");
    describe_gauge!(INFLIGHT, Unit::Count, "Records that are consumed and not completed");
    describe_counter!(
        FETCH_ERRORS,
        Unit::Count,
        "Errors from fetching a partition or the topic, by Kafka's error code"
    );
    describe_gauge!(HALTED, Unit::Count, "Partitions that are halted until an operator acts");
    describe_gauge!(
        THROTTLED,
        Unit::Count,
        "Partitions whose records are not passed to the lanes because they used up their share of a budget"
    );
    describe_gauge!(
        BLOCKED,
        Unit::Count,
        "Inboxes whose rows or dead letters the database does not accept while it accepts those of others"
    );
    describe_gauge!(BLOCKED_RECORDS, Unit::Count, "Records that wait in blocked inboxes");
    describe_counter!(BLOCKED_RETRIES, Unit::Count, "Attempts to store a blocked inbox");
    describe_counter!(REBALANCES, Unit::Count, "Partitions assigned, revoked and lost, by kind");
    describe_counter!(
        WARNINGS,
        Unit::Count,
        "COMMITs with a warning, by what was committed: the rows may not be on a standby"
    );
    describe_counter!(
        WORKER_CHANGES,
        Unit::Count,
        "Times that a worker of a Citus was found to be another server, or promoted: its last rows may be lost"
    );
    describe_counter!(COMMITS, Unit::Count, "Offset commits, by result");
    describe_counter!(
        LOST_OFFSETS,
        Unit::Count,
        "Offsets of the partition that Kafka lost: its log ended before, or differed from, the records that were read"
    );
    describe_counter!(
        CLIENT_RESTARTS,
        Unit::Count,
        "Restarts of all Kafka clients and lanes, because the topic was recreated or the consumer was stalled"
    );
    describe_counter!(HINTS, Unit::Count, "Hints sent to gateways, by outcome. No promise depends on them");
}

pub(crate) fn consumed(count: usize) {
    counter!(CONSUMED).increment(count as u64);
}

pub(crate) fn batch_stored(records: usize, outcome: &Outcome, elapsed: Duration) {
    counter!(STORED).increment(outcome.stored as u64);
    counter!(DUPLICATES).increment(outcome.duplicates as u64);
    for reason in &outcome.dead_letters {
        counter!(DEAD_LETTERS, "reason" => reason.name()).increment(1);
    }
    histogram!(BATCH).record(records as f64);
    histogram!(STORE_DURATION).record(elapsed);
}

pub(crate) fn dead_letter_reduced() {
    counter!(REDUCED).increment(1);
}

pub(crate) fn store_failed(class: ErrorClass) {
    counter!(FAILURES, "class" => class.name()).increment(1);
}

pub(crate) fn inflight(bytes: usize, records: usize) {
    gauge!(INFLIGHT_BYTES).set(bytes as f64);
    gauge!(INFLIGHT).set(records as f64);
}

pub(crate) fn fetch_failed(code: &'static str) {
    counter!(FETCH_ERRORS, "code" => code).increment(1);
}

pub(crate) fn throttled(partitions: usize) {
    gauge!(THROTTLED).set(partitions as f64);
}

/// Adds to both gauges, because each lane counts its own inboxes.
pub(crate) fn blocked(inboxes: f64, records: f64) {
    gauge!(BLOCKED).increment(inboxes);
    gauge!(BLOCKED_RECORDS).increment(records);
}

pub(crate) fn blocked_retried() {
    counter!(BLOCKED_RETRIES).increment(1);
}

pub(crate) fn halted(partitions: usize) {
    gauge!(HALTED).set(partitions as f64);
}

pub(crate) fn rebalanced(kind: &'static str, partitions: usize) {
    counter!(REBALANCES, "kind" => kind).increment(partitions as u64);
}

pub(crate) fn commit_warned(what: &'static str) {
    counter!(WARNINGS, "what" => what).increment(1);
}

pub(crate) fn worker_changed(worker: &str) {
    counter!(WORKER_CHANGES, "worker" => worker.to_owned()).increment(1);
}

pub(crate) fn committed(ok: bool) {
    counter!(COMMITS, "result" => if ok { "ok" } else { "failed" }).increment(1);
}

pub(crate) fn offsets_lost(partition: Partition, count: u64) {
    counter!(LOST_OFFSETS, "partition" => partition.to_string()).increment(count);
}

pub(crate) fn client_restarted() {
    counter!(CLIENT_RESTARTS).increment(1);
}

pub(crate) fn hinted(outcome: &'static str) {
    counter!(HINTS, "outcome" => outcome).increment(1);
}
