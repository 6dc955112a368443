//! The transfer's metrics: names with their units, described once.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use machine::Partition;
use machine::failure::Class;
use machine::lane::Outcome;

const CONSUMED: &str = "msg_transfer_consumed_records_total";
const STORED: &str = "msg_transfer_stored_messages_total";
const DUPLICATES: &str = "msg_transfer_duplicate_messages_total";
const DEAD_LETTERS: &str = "msg_transfer_dead_letters_total";
const REDUCED: &str = "msg_transfer_dead_letters_reduced_total";
const BATCH: &str = "msg_transfer_batch_rows";
const STORE: &str = "msg_transfer_store_seconds";
const FAILURES: &str = "msg_transfer_store_failures_total";
const INFLIGHT_BYTES: &str = "msg_transfer_inflight_bytes";
const INFLIGHT: &str = "msg_transfer_inflight_records";
const FETCH_ERRORS: &str = "msg_transfer_fetch_errors_total";
const HALTED: &str = "msg_transfer_halted_partitions";
const PAUSED: &str = "msg_transfer_paused_partitions";
const BLOCKED: &str = "msg_transfer_blocked_inboxes";
const BLOCKED_RECORDS: &str = "msg_transfer_blocked_records";
const BLOCKED_RETRIES: &str = "msg_transfer_blocked_retries_total";
const REBALANCES: &str = "msg_transfer_rebalances_total";
const WARNINGS: &str = "msg_transfer_commit_warnings_total";
const COMMITS: &str = "msg_transfer_commits_total";
const LOST_OFFSETS: &str = "msg_transfer_lost_offsets_total";
const BEGUN_ANEW: &str = "msg_transfer_begun_anew_total";
const HINTS: &str = "msg_transfer_hints_total";

/// Describes all of them. Once a process.
pub fn describe() {
    describe_counter!(CONSUMED, Unit::Count, "Records taken from Kafka, repeats included");
    describe_counter!(STORED, Unit::Count, "Rows written");
    describe_counter!(DUPLICATES, Unit::Count, "Messages that were stored already");
    describe_counter!(DEAD_LETTERS, Unit::Count, "Records kept as dead letters, by reason");
    describe_counter!(REDUCED, Unit::Count, "Dead letters whose table refused them as they are, stored with less");
    describe_histogram!(BATCH, Unit::Count, "Records in a stored batch");
    describe_histogram!(STORE, Unit::Seconds, "Time to store a batch, from its first statement to the COMMIT's answer");
    describe_counter!(FAILURES, Unit::Count, "Attempts to store a batch that failed, by class");
    describe_gauge!(INFLIGHT_BYTES, Unit::Bytes, "Bytes between Kafka and the table");
    describe_gauge!(INFLIGHT, Unit::Count, "Records between Kafka and the table");
    describe_counter!(FETCH_ERRORS, Unit::Count, "Errors of fetching a partition or the topic, by Kafka's code");
    describe_gauge!(HALTED, Unit::Count, "Partitions that stand still until somebody looks");
    describe_gauge!(PAUSED, Unit::Count, "Partitions held back: they have their part of the limits in the lanes");
    describe_gauge!(
        BLOCKED,
        Unit::Count,
        "Inboxes that the database does not take rows of while it takes those of others"
    );
    describe_gauge!(BLOCKED_RECORDS, Unit::Count, "Records that wait in blocked inboxes");
    describe_counter!(BLOCKED_RETRIES, Unit::Count, "Attempts to store a blocked inbox");
    describe_counter!(REBALANCES, Unit::Count, "Partitions assigned, revoked and lost, by kind");
    describe_counter!(
        WARNINGS,
        Unit::Count,
        "COMMITs that the database answered with a warning, by what was committed: perhaps not on a standby"
    );
    describe_counter!(COMMITS, Unit::Count, "Offset commits, by result");
    describe_counter!(
        LOST_OFFSETS,
        Unit::Count,
        "Offsets of the partition that Kafka had and lost: its log ended or differed below what was read of it"
    );
    describe_counter!(
        BEGUN_ANEW,
        Unit::Count,
        "Times that everything began anew, because the topic was another or Kafka's client stood still"
    );
    describe_counter!(
        HINTS,
        Unit::Count,
        "Hints to the gateways of what is stored, by outcome; nothing depends on them"
    );
}

pub(crate) fn consumed(count: usize) {
    counter!(CONSUMED).increment(count as u64);
}

pub(crate) fn batch_stored(records: usize, outcome: &Outcome, took: Duration) {
    counter!(STORED).increment(outcome.stored as u64);
    counter!(DUPLICATES).increment(outcome.duplicates as u64);
    for reason in &outcome.dead_letters {
        counter!(DEAD_LETTERS, "reason" => reason.name()).increment(1);
    }
    histogram!(BATCH).record(records as f64);
    histogram!(STORE).record(took);
}

pub(crate) fn dead_letter_reduced() {
    counter!(REDUCED).increment(1);
}

pub(crate) fn store_failed(class: Class) {
    counter!(FAILURES, "class" => class.name()).increment(1);
}

pub(crate) fn inflight(bytes: usize, records: usize) {
    gauge!(INFLIGHT_BYTES).set(bytes as f64);
    gauge!(INFLIGHT).set(records as f64);
}

pub(crate) fn fetch_failed(code: &'static str) {
    counter!(FETCH_ERRORS, "code" => code).increment(1);
}

pub(crate) fn paused(partitions: usize) {
    gauge!(PAUSED).set(partitions as f64);
}

/// Changes both gauges by so much: each lane counts its own.
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

pub(crate) fn committed(ok: bool) {
    counter!(COMMITS, "result" => if ok { "ok" } else { "failed" }).increment(1);
}

pub(crate) fn offsets_lost(partition: Partition, count: u64) {
    counter!(LOST_OFFSETS, "partition" => partition.to_string()).increment(count);
}

pub(crate) fn client_restarted() {
    counter!(BEGUN_ANEW).increment(1);
}

pub(crate) fn hinted(outcome: &'static str) {
    counter!(HINTS, "outcome" => outcome).increment(1);
}
