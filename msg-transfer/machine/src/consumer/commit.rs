//! When and in which order progress is made durable: the rows are there already, then the progress row, then Kafka's
//! offset. One round at a time.

use super::Action;
use crate::{Epoch, LeaderEpoch, Millis, NextOffset, Partition, Progress};

/// How far one assignment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitPoint {
    /// The partition.
    pub partition: Partition,
    /// The assignment.
    pub epoch: Epoch,
    /// Everything below is completed.
    pub next: NextOffset,
    /// That of the last record below.
    pub leader_epoch: LeaderEpoch,
}

impl CommitPoint {
    /// What its progress row is to hold.
    pub fn progress(&self) -> Progress {
        Progress { next: self.next, leader_epoch: self.leader_epoch }
    }
}

/// Decides when a round begins and what comes next in it.
#[derive(Debug)]
pub struct Committer {
    every_records: usize,
    interval: Millis,
    round: Round,
    completed: usize,
    hurried: bool,
    last: Millis,
    /// Not before this: the round before has failed.
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
    /// Nothing to commit yet.
    pub fn new(every_records: usize, interval: Millis) -> Self {
        Committer { every_records, interval, round: Round::Idle, completed: 0, hurried: false, last: 0, not_before: 0 }
    }

    /// So many more records are completed.
    pub fn completed(&mut self, count: usize) {
        self.completed += count;
    }

    /// Do not wait for the interval.
    pub fn hurry(&mut self) {
        self.hurried = true;
    }

    /// The progress rows of this round are written.
    pub fn saved(&mut self) {
        self.round = match std::mem::replace(&mut self.round, Round::Idle) {
            Round::Saving(points) => Round::Saved(points),
            other => other,
        };
    }

    /// This round may not have come to its end; the next one begins an interval later, with what holds by then.
    pub fn failed(&mut self, now: Millis) {
        self.round = Round::Idle;
        self.not_before = now + self.interval;
        self.hurried = true;
    }

    /// The coordinator has this round's offsets, which are returned.
    pub fn committed(&mut self, now: Millis) -> Vec<CommitPoint> {
        self.last = now;
        match std::mem::replace(&mut self.round, Round::Idle) {
            Round::Committing(points) => points,
            other => {
                self.round = other;
                Vec::new()
            }
        }
    }

    /// What to do now, if anything. `points` tells what is to be committed; `is_current` whether an assignment still is.
    pub fn advance(
        &mut self,
        now: Millis,
        points: impl Fn() -> Vec<CommitPoint>,
        is_current: impl Fn(&CommitPoint) -> bool,
    ) -> Option<Action> {
        if let Round::Saved(points) = &mut self.round {
            let mut points = std::mem::take(points);
            // What was lost meanwhile may be another's: not ours to commit.
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
