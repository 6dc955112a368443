//! A lane's blocked inboxes, as its task sees them: when the next one is tried, and what readiness, the log and the metrics
//! say of them. Never an inbox's name.

use std::time::{Duration, Instant};

use machine::failure::Class;
use machine::lane::BlockedInbox;
use msg_common::admin::Readiness;

use crate::{backoff, metrics};

/// An attempt that took so long is followed by nine times as long without one: the rest of the lane has nine tenths of its
/// time, however many of its inboxes wait for a lock.
const PAUSE_FACTOR: u32 = 9;

/// How often records that may not be written any more are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Another owner who was faster is no blocked inbox. So many attempts tell.
const SURE: usize = 2;

/// What is known of them since the last batch.
#[derive(Debug)]
pub(super) struct BlockedInboxes {
    component: String,
    readiness: Readiness,
    count: usize,
    records: usize,
    /// When the next one is tried.
    next: Instant,
    /// What readiness says.
    told: Option<String>,
}

impl BlockedInboxes {
    pub(super) fn new(lane: usize, readiness: Readiness) -> Self {
        let component = format!("inbox (lane {lane})");
        BlockedInboxes { component, readiness, count: 0, records: 0, next: Instant::now(), told: None }
    }

    /// When to wake up, if anything waits: to try the next one, or to look for what need not wait any more.
    pub(super) fn wake(&self) -> Option<Instant> {
        (self.count > 0).then(|| self.next.min(Instant::now() + SWEEP))
    }

    pub(super) fn is_due(&self) -> bool {
        self.count > 0 && self.next <= Instant::now()
    }

    /// After an attempt that took so long: when the next one comes, by how often the one that is next has been tried.
    pub(super) fn tried(&mut self, took: Duration, blocked: impl Iterator<Item = BlockedInbox>) {
        self.plan(took, blocked.map(|inbox| inbox.attempts).next());
    }

    fn plan(&mut self, took: Duration, attempts: Option<usize>) {
        let count = u32::try_from(self.count.max(1)).unwrap_or(u32::MAX);
        let each = backoff::ceiling(Class::Transient, attempts.unwrap_or_default() + 1) / count;
        self.next = Instant::now() + backoff::jittered(each).max(PAUSE_FACTOR * took);
    }

    /// What the lane's machine has now.
    pub(super) fn update(&mut self, blocked: impl Iterator<Item = BlockedInbox>) {
        let blocked: Vec<BlockedInbox> = blocked.collect();
        let (count, records) = (blocked.len(), blocked.iter().map(|inbox| inbox.records).sum());
        metrics::blocked(difference(count, self.count), difference(records, self.records));
        let more = count > self.count;
        // Those found just now are first.
        for inbox in blocked.iter().take(count.saturating_sub(self.count)) {
            metrics::store_failed(inbox.failure.class);
        }
        (self.count, self.records) = (count, records);
        if more {
            self.plan(Duration::ZERO, blocked.first().map(|inbox| inbox.attempts));
        }
        // The longest known one: what is said stays the same while it waits.
        let sure = |inbox: &&BlockedInbox| inbox.failure.class != Class::Conflict || inbox.attempts >= SURE;
        let first = blocked.iter().filter(sure).max_by_key(|inbox| (inbox.attempts, inbox.partition, inbox.offset));
        let told = first.map(|inbox| reason(inbox, count));
        if told != self.told {
            match &told {
                Some(reason) => self.readiness.not_ready(&self.component, reason),
                None => self.readiness.ready(&self.component),
            }
            self.told = told;
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

/// What an operator has to know.
fn reason(inbox: &BlockedInbox, count: usize) -> String {
    let BlockedInbox { partition, offset, failure, .. } = inbox;
    let more = if count > 1 { format!(", and {} more inboxes of this lane", count - 1) } else { String::new() };
    let advice = match failure.class {
        Class::Conflict => "drop the unique index that is not msg-transfer's",
        Class::Locked => "end the transaction that holds the lock (pg_locks, pg_stat_activity)",
        Class::Heavy => {
            "find out what a row of this inbox waits for (a trigger, a lock), or raise DATABASE_STATEMENT_TIMEOUT"
        }
        _ => "let the database take its rows again",
    };
    format!(
        "the inbox of the record at partition {partition}, offset {offset} cannot be written{more}: {}; all others are \
         stored, this one waits and is tried again: {advice}",
        failure.text
    )
}

#[cfg(test)]
mod tests {
    use machine::RecordOffset;
    use machine::lane::Failure;

    use super::*;

    fn inbox(class: Class, attempts: usize) -> BlockedInbox {
        let failure = Failure { class, text: "no (55P03)".into() };
        BlockedInbox { partition: 3, offset: RecordOffset(17), records: 2, failure, attempts }
    }

    #[test]
    fn readiness_names_position_cause_and_advice_until_stored() {
        let readiness = Readiness::waiting_for(&[]);
        let mut blocked = BlockedInboxes::new(1, readiness.clone());
        assert_eq!(blocked.wake(), None);
        blocked.update([inbox(Class::Locked, 0)].into_iter());
        let reasons = readiness.reasons();
        let reason = &reasons["inbox (lane 1)"];
        assert!(reason.contains("partition 3, offset 17") && reason.contains("no (55P03)"), "{reason}");
        assert!(reason.contains("pg_locks"), "{reason}");
        assert!(blocked.wake().is_some());
        blocked.update(std::iter::empty());
        assert!(readiness.reasons().is_empty());
    }

    #[test]
    fn first_conflicts_are_another_owners() {
        let readiness = Readiness::waiting_for(&[]);
        let mut blocked = BlockedInboxes::new(1, readiness.clone());
        blocked.update([inbox(Class::Conflict, 0)].into_iter());
        assert!(readiness.reasons().is_empty());
        blocked.update([inbox(Class::Conflict, SURE)].into_iter());
        assert!(readiness.reasons()["inbox (lane 1)"].contains("unique index"));
        drop(blocked);
        assert!(readiness.reasons().is_empty(), "a lane that ends says no more");
    }

    #[test]
    fn attempts_leave_the_lane_most_of_its_time() {
        let mut blocked = BlockedInboxes::new(1, Readiness::waiting_for(&[]));
        blocked.update([inbox(Class::Locked, 0)].into_iter());
        assert!(blocked.next <= Instant::now() + Duration::from_millis(50));
        blocked.tried(Duration::from_secs(10), [inbox(Class::Locked, 5)].into_iter());
        assert!(blocked.next > Instant::now() + Duration::from_secs(89));
    }
}
