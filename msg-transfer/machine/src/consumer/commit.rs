//! When and in which order progress is made durable: the rows are there already, then the progress row, then Kafka's
//! offset. One round at a time.

use super::Action;
use crate::{Epoch, LeaderEpoch, Millis, NextOffset, Partition, Progress};

/// How far one assignment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The partition.
    pub partition: Partition,
    /// The assignment.
    pub epoch: Epoch,
    /// Everything below is completed.
    pub next: NextOffset,
    /// That of the last record below.
    pub leader_epoch: LeaderEpoch,
}

impl Mark {
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
    Saving(Vec<Mark>),
    Saved(Vec<Mark>),
    Committing(Vec<Mark>),
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
            Round::Saving(marks) => Round::Saved(marks),
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
    pub fn committed(&mut self, now: Millis) -> Vec<Mark> {
        self.last = now;
        match std::mem::replace(&mut self.round, Round::Idle) {
            Round::Committing(marks) => marks,
            other => {
                self.round = other;
                Vec::new()
            }
        }
    }

    /// What to do now, if anything. `marks` tells what is to be committed; `is_current` whether an assignment still is.
    pub fn advance(
        &mut self,
        now: Millis,
        marks: impl Fn() -> Vec<Mark>,
        is_current: impl Fn(&Mark) -> bool,
    ) -> Option<Action> {
        if let Round::Saved(marks) = &mut self.round {
            let mut marks = std::mem::take(marks);
            // What was lost meanwhile may be another's: not ours to commit.
            marks.retain(is_current);
            if !marks.is_empty() {
                self.round = Round::Committing(marks.clone());
                return Some(Action::Commit(marks));
            }
            self.round = Round::Idle;
        }
        let due = self.hurried || self.completed >= self.every_records || now >= self.last + self.interval;
        if !matches!(self.round, Round::Idle) || !due || now < self.not_before {
            return None;
        }
        let marks = marks();
        self.hurried = false;
        self.completed = 0;
        self.last = now;
        if marks.is_empty() {
            return None;
        }
        self.round = Round::Saving(marks.clone());
        Some(Action::SaveProgress(marks))
    }
}
