//! A lane's blocked inboxes: when the next one is retried, and what readiness and the metrics report of them. The name
//! of an inbox is never reported.

use std::time::{Duration, Instant};

use machine::error::ErrorClass;
use machine::lane::BlockedInbox;
use msg_common::admin::Readiness;

use crate::{backoff, metrics};

/// After an attempt, the lane makes no further one for nine times the attempt's duration. So the other inboxes have
/// nine tenths of the lane's time, however many inboxes wait for a lock.
const PAUSE_FACTOR: u32 = 9;

/// The interval at which records that may no longer be written are dropped.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The number of conflicts from which an inbox counts as blocked. Fewer may mean that another owner of the partition
/// was faster.
const MIN_CONFLICTS: usize = 2;

/// The blocked inboxes after the last batch.
#[derive(Debug)]
pub(super) struct BlockedInboxes {
    component: String,
    readiness: Readiness,
    count: usize,
    records: usize,
    next: Instant,
    reported: Option<String>,
}

impl BlockedInboxes {
    pub(super) fn new(lane: usize, readiness: Readiness) -> Self {
        let component = format!("inbox (lane {lane})");
        BlockedInboxes { component, readiness, count: 0, records: 0, next: Instant::now(), reported: None }
    }

    /// Returns when to wake up, if an inbox is blocked: to retry the next one, or to drop records that may no longer be
    /// written.
    pub(super) fn wake(&self) -> Option<Instant> {
        (self.count > 0).then(|| self.next.min(Instant::now() + SWEEP_INTERVAL))
    }

    pub(super) fn is_due(&self) -> bool {
        self.count > 0 && self.next <= Instant::now()
    }

    /// Schedules the next attempt after one that needed this time, by the number of attempts of the next inbox.
    pub(super) fn tried(&mut self, elapsed: Duration, blocked: impl Iterator<Item = BlockedInbox>) {
        self.plan(elapsed, blocked.map(|inbox| inbox.attempts).next());
    }

    fn plan(&mut self, elapsed: Duration, attempts: Option<usize>) {
        let count = u32::try_from(self.count.max(1)).unwrap_or(u32::MAX);
        let each = backoff::ceiling(ErrorClass::Transient, attempts.unwrap_or_default() + 1) / count;
        self.next = Instant::now() + backoff::jittered(each).max(PAUSE_FACTOR * elapsed);
    }

    /// Updates the inboxes to those that the lane's machine has now.
    pub(super) fn update(&mut self, blocked: impl Iterator<Item = BlockedInbox>) {
        let blocked: Vec<BlockedInbox> = blocked.collect();
        let (count, records) = (blocked.len(), blocked.iter().map(|inbox| inbox.records).sum());
        metrics::blocked(difference(count, self.count), difference(records, self.records));
        let grew = count > self.count;
        // The new ones are first.
        for inbox in blocked.iter().take(count.saturating_sub(self.count)) {
            metrics::store_failed(inbox.error.class);
        }
        (self.count, self.records) = (count, records);
        if grew {
            self.plan(Duration::ZERO, blocked.first().map(|inbox| inbox.attempts));
        }
        // The inbox with the most attempts is reported, so that the reason stays the same while it waits.
        let counts =
            |inbox: &&BlockedInbox| inbox.error.class != ErrorClass::Conflict || inbox.attempts >= MIN_CONFLICTS;
        let first = blocked.iter().filter(counts).max_by_key(|inbox| (inbox.attempts, inbox.partition, inbox.offset));
        let reported = first.map(|inbox| reason(inbox, count));
        if reported != self.reported {
            match &reported {
                Some(reason) => self.readiness.not_ready(&self.component, reason),
                None => self.readiness.ready(&self.component),
            }
            self.reported = reported;
        }
    }
}

impl Drop for BlockedInboxes {
    fn drop(&mut self) {
        self.update(std::iter::empty());
    }
}

fn difference(now: usize, before: usize) -> f64 {
    now as f64 - before as f64
}

/// Returns the reason for readiness: the position of the inbox's first record, the cause, and what an operator has to
/// do.
fn reason(inbox: &BlockedInbox, count: usize) -> String {
    let BlockedInbox { partition, offset, error, .. } = inbox;
    let more = if count > 1 { format!(", and {} more inboxes of this lane", count - 1) } else { String::new() };
    let advice = match error.class {
        ErrorClass::Conflict => "drop the unique index that is not msg-transfer's",
        ErrorClass::Locked => "end the transaction that holds the lock (pg_locks, pg_stat_activity)",
        ErrorClass::Heavy => {
            "find out what a row of this inbox waits for (a trigger, a lock), or raise DATABASE_STATEMENT_TIMEOUT"
        }
        _ => "make the database accept it again",
    };
    format!(
        "the record at partition {partition}, offset {offset} cannot be stored{more}: {}; it waits with the later records \
         of its inbox and is retried, all others are stored: {advice}",
        error.text
    )
}

#[cfg(test)]
mod tests {
    use machine::RecordOffset;
    use machine::error::ClassifiedError;

    use super::*;

    fn inbox(class: ErrorClass, attempts: usize) -> BlockedInbox {
        let error = ClassifiedError { class, text: "no (55P03)".into() };
        BlockedInbox { partition: 3, offset: RecordOffset(17), records: 2, error, attempts }
    }

    #[test]
    fn readiness_names_position_cause_and_advice_until_stored() {
        let readiness = Readiness::waiting_for(&[]);
        let mut blocked = BlockedInboxes::new(1, readiness.clone());
        assert_eq!(blocked.wake(), None);
        blocked.update([inbox(ErrorClass::Locked, 0)].into_iter());
        let reasons = readiness.reasons();
        let reason = &reasons["inbox (lane 1)"];
        assert!(reason.contains("partition 3, offset 17") && reason.contains("no (55P03)"), "{reason}");
        assert!(reason.contains("pg_locks"), "{reason}");
        assert!(blocked.wake().is_some());
        blocked.update(std::iter::empty());
        assert!(readiness.reasons().is_empty());
    }

    #[test]
    fn first_conflicts_of_an_inbox_are_not_reported() {
        let readiness = Readiness::waiting_for(&[]);
        let mut blocked = BlockedInboxes::new(1, readiness.clone());
        blocked.update([inbox(ErrorClass::Conflict, 0)].into_iter());
        assert!(readiness.reasons().is_empty());
        blocked.update([inbox(ErrorClass::Conflict, MIN_CONFLICTS)].into_iter());
        assert!(readiness.reasons()["inbox (lane 1)"].contains("unique index"));
        drop(blocked);
        assert!(readiness.reasons().is_empty(), "a lane that ends clears its reason");
    }

    #[test]
    fn attempts_leave_the_lane_most_of_its_time() {
        let mut blocked = BlockedInboxes::new(1, Readiness::waiting_for(&[]));
        blocked.update([inbox(ErrorClass::Locked, 0)].into_iter());
        assert!(blocked.next <= Instant::now() + Duration::from_millis(50));
        blocked.tried(Duration::from_secs(10), [inbox(ErrorClass::Locked, 5)].into_iter());
        assert!(blocked.next > Instant::now() + Duration::from_secs(89));
    }
}
