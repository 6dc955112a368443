//! Decides when progress becomes durable, and in which order: the messages are stored already, then the progress rows
//! are written, then the offsets are committed to Kafka. One round runs at a time.

use super::Action;
use crate::{Epoch, LeaderEpoch, Millis, NextOffset, Partition, Progress};

/// The next offset that may be committed for one assignment of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitPoint {
    pub partition: Partition,
    pub epoch: Epoch,
    /// All records below this offset are completed.
    pub next: NextOffset,
    /// The leader epoch of the last record below `next`.
    pub leader_epoch: LeaderEpoch,
}

impl CommitPoint {
    /// Returns the contents of its progress row.
    pub fn progress(&self) -> Progress {
        Progress { next: self.next, leader_epoch: self.leader_epoch }
    }
}

/// Decides when a round starts and which action comes next in it.
#[derive(Debug)]
pub(super) struct Committer {
    every_records: usize,
    interval: Millis,
    round: Round,
    completed: usize,
    hurried: bool,
    last: Millis,
    /// The previous round failed: the next one starts no earlier than this.
    not_before: Millis,
}

#[derive(Debug)]
enum Round {
    Idle,
    Saving(Vec<CommitPoint>),
    Saved(Vec<CommitPoint>),
    Committing(Vec<CommitPoint>),
}

impl Committer {
    /// Creates a committer that starts a round after `every_records` completed records or after `interval`, whichever
    /// is first.
    pub(super) fn new(every_records: usize, interval: Millis) -> Self {
        Committer { every_records, interval, round: Round::Idle, completed: 0, hurried: false, last: 0, not_before: 0 }
    }

    pub(super) fn completed(&mut self, count: usize) {
        self.completed += count;
    }

    /// Starts the next round without waiting for the interval.
    pub(super) fn hurry(&mut self) {
        self.hurried = true;
    }

    /// Records that the progress rows of this round were written.
    pub(super) fn saved(&mut self) {
        self.round = match std::mem::replace(&mut self.round, Round::Idle) {
            Round::Saving(points) => Round::Saved(points),
            other => other,
        };
    }

    /// Abandons this round: a step failed or timed out. The next round starts an interval later, with the points of
    /// that time.
    pub(super) fn failed(&mut self, now: Millis) {
        self.round = Round::Idle;
        self.not_before = now + self.interval;
        self.hurried = true;
    }

    /// Ends this round and returns the points that were committed.
    pub(super) fn committed(&mut self, now: Millis) -> Vec<CommitPoint> {
        self.last = now;
        match std::mem::replace(&mut self.round, Round::Idle) {
            Round::Committing(points) => points,
            other => {
                self.round = other;
                Vec::new()
            }
        }
    }

    /// Returns the next action of the round, if one is due. `points` returns the points to commit; `is_current` returns
    /// whether the assignment of a point has not ended.
    pub(super) fn advance(
        &mut self,
        now: Millis,
        points: impl Fn() -> Vec<CommitPoint>,
        is_current: impl Fn(&CommitPoint) -> bool,
    ) -> Option<Action> {
        if let Round::Saved(points) = &mut self.round {
            let mut points = std::mem::take(points);
            // A partition that was lost meanwhile may have another owner: committing it could move its offset back.
            points.retain(is_current);
            if !points.is_empty() {
                self.round = Round::Committing(points.clone());
                return Some(Action::Commit(points));
            }
            self.round = Round::Idle;
        }
        let due = self.hurried || self.completed >= self.every_records || now >= self.last + self.interval;
        if !matches!(self.round, Round::Idle) || !due || now < self.not_before {
            return None;
        }
        let points = points();
        self.hurried = false;
        self.completed = 0;
        self.last = now;
        if points.is_empty() {
            return None;
        }
        self.round = Round::Saving(points.clone());
        Some(Action::SaveProgress(points))
    }
}
