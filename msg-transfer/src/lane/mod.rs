//! A lane: one task with one database connection. Records with the same key are in the same lane, in order. While the
//! lane stores a batch, the records of the next one gather, so batches grow with the load, and a single message does
//! not wait.

mod blocked;
pub(crate) mod connection;
pub(crate) mod decoded;
pub(crate) mod headers;
pub(crate) mod item;
mod letters;
pub mod sql;
pub(crate) mod statements;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::Reason;
use machine::consumer::Event;
use machine::error::ErrorClass;
use machine::lane::{BatchError, Entry, Machine, Outcome, Request, Response};
use msg_common::admin::Readiness;
use msg_common::hint::record_hash;
use msg_common::repeat::Repeats;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use self::blocked::BlockedInboxes;
use self::connection::Connection;
use self::decoded::DecodedRecord;
use self::item::{Item, RawRecord};
use crate::hints::{Hints, StoredRow};
use crate::{backoff, metrics};

#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub items: mpsc::Sender<Item>,
    /// Notified when the lane may write the dead letters that it requested.
    pub approved: Arc<Notify>,
}

/// The repeated log lines of all lanes, for batches that cannot be stored and for dead letters.
static BATCH_FAILURES: Repeats = Repeats::new();
static DEAD_LETTERS: Repeats = Repeats::new();

/// The number of consecutive conflicts from which the cause is not another owner of the partition, but for example a
/// unique index that is not ours.
const MANY_CONFLICTS: usize = 5;

/// How large a batch may get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    pub records: usize,
    /// Maximum bytes of keys, values and headers, which the last record may exceed.
    pub bytes: usize,
    /// Minimum time between the starts of two batches, after a batch of `BUSY_BATCH` or more records, unless a batch is
    /// full.
    pub interval: Duration,
}

/// The number of records in a batch from which a lane is busy. A lane that stores fewer starts its next batch sooner: the
/// server has time for it, and the records do not wait. After a single record the lane does not wait.
const BUSY_BATCH: usize = 8;

impl BatchLimits {
    /// Returns the minimum time from the start of a batch with this number of records to the start of the next one.
    fn interval_after(&self, records: usize) -> Duration {
        let busy = (records.clamp(1, BUSY_BATCH) - 1) as f64 / (BUSY_BATCH - 1) as f64;
        self.interval.mul_f64(busy)
    }
}

#[derive(Debug)]
pub(crate) struct Lane {
    pub machine: Machine<DecodedRecord>,
    /// Receives the consumer's records. Its capacity is above the consumer's limit, so the consumer never waits to
    /// send.
    pub waiting: mpsc::Receiver<Item>,
    /// Notified when the lane may write the dead letters that it requested.
    pub approved: Arc<Notify>,
    pub events: std::sync::mpsc::Sender<Event>,
    pub connection: Connection,
    /// How large a batch may get.
    pub limits: BatchLimits,
    /// Sends hints, unless they are switched off.
    pub hints: Option<Hints>,
    /// Receives the reason while the database does not accept rows.
    pub readiness: Readiness,
    /// Ends the retries: the process abandons the records that are not completed.
    pub abandon: CancellationToken,
}

impl Lane {
    /// Stores records until the consumer has dropped the handle, or until `abandon` is cancelled.
    pub(crate) async fn run(mut self) {
        let mut items = Vec::new();
        let mut next = tokio::time::Instant::now();
        let mut blocked = BlockedInboxes::new(self.machine.number(), self.readiness.clone());
        loop {
            if !self.retry_blocked(&mut blocked).await {
                return;
            }
            let received = match blocked.wake() {
                // If records wait, an attempt for a blocked inbox is made between two batches.
                Some(wake) => tokio::time::timeout_at(wake.into(), self.waiting.recv()).await,
                None => Ok(self.waiting.recv().await),
            };
            let first = match received {
                Ok(Some(first)) => first,
                Ok(None) => return,
                Err(_) => continue,
            };
            let mut bytes = first.record_ref().bytes;
            items.push(first);
            self.gather(&mut items, &mut bytes);
            if self.has_capacity(&items, bytes) && tokio::time::Instant::now() < next {
                // A transaction costs the server the same for five rows as for fifty. A record that follows a longer
                // pause does not wait here.
                tokio::time::sleep_until(next).await;
                self.gather(&mut items, &mut bytes);
            }
            next = tokio::time::Instant::now() + self.limits.interval_after(items.len());
            let stored = self.abandon.clone().run_until_cancelled_owned(self.store(&mut items)).await;
            if stored.is_none() {
                return;
            }
            blocked.update(self.machine.blocked());
        }
    }

    /// Retries the next blocked inbox if it is due, and drops records that may no longer be written. Returns false if
    /// `abandon` was cancelled.
    async fn retry_blocked(&mut self, blocked: &mut BlockedInboxes) -> bool {
        if blocked.wake().is_none() {
            return true;
        }
        let mut events = Vec::new();
        self.machine.sweep(&mut events);
        if blocked.is_due() {
            let start = Instant::now();
            if let Some(request) = self.machine.retry(&mut events) {
                metrics::blocked_retried();
                let abandon = self.abandon.clone();
                let attempt = self.carry_out(request, events);
                let Some(outcome) = abandon.run_until_cancelled_owned(attempt).await else { return false };
                if outcome == Outcome::default()
                    && let Some(still) = self.machine.blocked().last()
                {
                    metrics::store_failed(still.error.class);
                }
                self.report(outcome.stored + outcome.duplicates, &outcome, start.elapsed());
                events = Vec::new();
            }
            blocked.tried(start.elapsed(), self.machine.blocked());
        }
        for event in events {
            self.send(event);
        }
        blocked.update(self.machine.blocked());
        true
    }

    /// Adds the records that wait, up to the limits.
    fn gather(&mut self, items: &mut Vec<Item>, bytes: &mut usize) {
        while self.has_capacity(items, *bytes) {
            let Ok(item) = self.waiting.try_recv() else { break };
            *bytes += item.record_ref().bytes;
            items.push(item);
        }
    }

    fn has_capacity(&self, items: &[Item], bytes: usize) -> bool {
        items.len() < self.limits.records && bytes < self.limits.bytes
    }

    /// Returns when each item is completed or dropped. Retries without limit while the database is unavailable.
    async fn store(&mut self, items: &mut Vec<Item>) {
        let (count, start) = (items.len(), Instant::now());
        let mut events = Vec::new();
        let request = self.machine.begin(items.drain(..).map(DecodedRecord::read).collect(), &mut events);
        let outcome = self.carry_out(request, events).await;
        // Except for blocked inboxes, no record of this lane waits for the database any more.
        self.readiness.ready(&self.component());
        self.report(count, &outcome, start.elapsed());
    }

    /// Carries out the machine's requests until it is done.
    async fn carry_out(&mut self, mut request: Request, mut events: Vec<Event>) -> Outcome {
        loop {
            for event in events.drain(..) {
                self.send(event);
            }
            let response = match request {
                Request::Done(outcome) => return outcome,
                Request::ApproveDeadLetters(dead) => {
                    self.send(Event::DeadLettersRequested { lane: self.machine.number(), dead });
                    self.approved.notified().await;
                    Response::Ok
                }
                Request::Wait(failed) => {
                    self.wait(&failed).await;
                    Response::Ok
                }
                request => {
                    if let (Request::BeginSearch, Some(cause)) = (&request, self.machine.searching()) {
                        // The search may need several timeouts.
                        self.readiness.not_ready(&self.component(), &cause.text);
                    }
                    let response = self.connection.carry_out(&request, self.machine.entries()).await;
                    if (&request, &response) == (&Request::Commit, &Response::Ok) {
                        self.hint();
                    }
                    response
                }
            };
            request = self.machine.handle(response, &mut events);
        }
    }

    /// Sends hints after a COMMIT succeeded: all entries are completed, and the numbered ones are rows.
    fn hint(&self) {
        let Some(hints) = &self.hints else { return };
        let (entries, numbered) = (self.machine.entries(), self.machine.numbered());
        let rows: Vec<StoredRow<'_>> = numbered.iter().map(|row| stored_row(&entries[row.entry], row.seq)).collect();
        let mut without_row = BTreeSet::new();
        // Entries without a row are rare: duplicates and dead letters.
        if numbered.len() < entries.len() {
            let stored: HashSet<usize> = numbered.iter().map(|row| row.entry).collect();
            let others = entries.iter().enumerate().filter(|(index, _)| !stored.contains(index));
            without_row.extend(others.filter_map(|(_, entry)| entry.body.known_recv_id()));
        }
        hints.send(&rows, without_row, self.connection.stored());
    }

    fn report(&self, records: usize, outcome: &Outcome, elapsed: Duration) {
        if *outcome != Outcome::default() {
            metrics::batch_stored(records, outcome, elapsed);
        }
        if !outcome.dead_letters.is_empty() {
            let count = outcome.dead_letters.len();
            // Callers cause conflicts, and get them in their response or status. An operator has to check the other
            // dead letters.
            let conflicts =
                outcome.dead_letters.iter().filter(|reason| **reason == Reason::IdempotencyConflict).count();
            if count == conflicts {
                tracing::debug!(lane = self.machine.number(), count, "dead-lettered records as conflicts");
            } else if let Some(repeated) = DEAD_LETTERS.occurred("") {
                tracing::warn!(lane = self.machine.number(), count, conflicts, repeated, "dead-lettered records");
            }
        }
    }

    async fn wait(&self, BatchError { error, attempts }: &BatchError) {
        let (lane, error, class) = (self.machine.number(), error.text.as_str(), error.class);
        metrics::store_failed(class);
        // All lanes use the same database, so they meet the same error, each at every attempt.
        let repeated = BATCH_FAILURES.occurred(error);
        match class {
            // Another owner of the partition was faster, so the last `seq` is read again. If conflicts continue, the
            // cause is something else.
            ErrorClass::Conflict if *attempts < MANY_CONFLICTS => {
                tracing::info!(lane, error, "another owner wrote the same inbox, will be retried");
            }
            ErrorClass::Fatal => {
                if let Some(repeated) = repeated {
                    tracing::error!(
                        lane,
                        error,
                        repeated,
                        "database rejected the batch until an operator acts, will be retried"
                    );
                }
                self.readiness.not_ready(&self.component(), error);
            }
            _ => {
                if let Some(repeated) = repeated {
                    tracing::warn!(lane, error, ?class, repeated, "batch not stored, will be retried");
                }
                self.readiness.not_ready(&self.component(), error);
            }
        }
        backoff::wait(class, *attempts).await;
    }

    fn component(&self) -> String {
        format!("database (lane {})", self.machine.number())
    }

    fn send(&self, event: Event) {
        // The consumer drops the receiver only when the process ends.
        let _ = self.events.send(event);
    }
}

/// Returns the row that a COMMIT stored of this entry.
fn stored_row(entry: &Entry<DecodedRecord>, seq: i64) -> StoredRow<'_> {
    let (record, RawRecord { partition, offset, .. }) = (entry.body.record(), &entry.body.item.record);
    StoredRow {
        recv_id: &record.msg.recv_id,
        seq,
        topic_id: entry.assignment.topic_id(),
        partition: *partition,
        offset: offset.0,
        send_time_ms: record.send_time_ms,
        hash: record_hash(record.msg_id, record.send_time_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_after_a_small_batch_is_short() {
        let limits = BatchLimits { records: 2000, bytes: 1 << 20, interval: Duration::from_millis(7) };
        let micros = |records| limits.interval_after(records).as_micros();
        assert_eq!([1, 2, 5, 8, 2000].map(micros), [0, 1000, 4000, 7000, 7000]);
    }
}
