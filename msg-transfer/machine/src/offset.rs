//! Offsets with types: only a next offset can be committed, so no `+ 1` is ever forgotten or done twice.

use std::fmt;

/// The number of a record in its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordOffset(pub i64);

/// The offset of the next record to read: all records below it are completed. It can be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextOffset(pub i64);

/// The number of a partition's leadership in Kafka: it grows with each election, and each record carries that of the
/// leader which appended it. Two records with the same offset have the same leader epoch only if they are the same
/// record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaderEpoch(pub i32);

impl LeaderEpoch {
    pub const UNKNOWN: LeaderEpoch = LeaderEpoch(-1);

    pub fn is_known(self) -> bool {
        self >= LeaderEpoch(0)
    }
}

/// How far a partition is completed: the content of a progress row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// All records below this offset are completed.
    pub next: NextOffset,
    /// The leader epoch of the last record below; it may be higher than that record's, if no record above has a lower
    /// one.
    pub leader_epoch: LeaderEpoch,
}

impl Progress {
    /// Returns whether this row may replace the other one. A log never has a lower leader epoch at a higher offset, so
    /// the higher leader epoch is the later one, also at a lower offset: Kafka lost the tail in between.
    pub fn may_follow(self, other: Progress) -> bool {
        if self.leader_epoch.is_known() && other.leader_epoch.is_known() {
            return (self.leader_epoch, self.next) >= (other.leader_epoch, other.next);
        }
        self.next >= other.next
    }
}

impl RecordOffset {
    /// Returns the offset of the record after this one.
    pub fn next(self) -> NextOffset {
        NextOffset(self.0 + 1)
    }
}

impl fmt::Display for RecordOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NextOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
