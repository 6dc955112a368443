//! One partition that the group has assigned to this process.

use super::Settings;
use super::breaker::Breaker;
use super::commit::CommitPoint;
use super::event::RecordRef;
use super::failing::Failing;
use super::ledger::Ledger;
use crate::{Epoch, NextOffset, Partition, Progress, RecordOffset};

/// The share of the limits that one partition may use: the high and the low watermark of throttling.
#[derive(Clone, Copy, Debug)]
enum Part {
    Whole = 1,
    Half = 2,
}

/// An assigned partition, until it is released or lost.
#[derive(Debug)]
pub(super) struct Owned {
    pub epoch: Epoch,
    pub phase: Phase,
    /// Records of this epoch in the lanes, and their bytes.
    inflight_records: usize,
    inflight_bytes: usize,
    /// The part of them that waits in blocked inboxes.
    blocked_records: usize,
    blocked_bytes: usize,
    /// Whether its records are not passed to the lanes for now.
    throttled: bool,
    /// The group has revoked the partition, or the process stops: nothing more is received.
    pub revoking: bool,
    /// The partition is released without waiting for the lanes.
    pub abandoned: bool,
    /// The next record is not in the log: the partition restarts as soon as all received records are completed.
    pub out_of_range: bool,
    pub breaker: Breaker,
    pub failing: Option<Failing>,
    /// It is halted, and the records in its lanes are still stored.
    pub draining: bool,
}

#[derive(Debug)]
pub(super) enum Phase {
    Resolving,
    /// Its fetch failed, and its start offset had to be resolved again meanwhile: the next attempt does that.
    Waiting,
    Running {
        ledger: Ledger,
        committed: Option<NextOffset>,
    },
    /// Not fetched until an operator resumes it. Records that were completed before can still be committed.
    Halted {
        ledger: Option<Ledger>,
        committed: Option<NextOffset>,
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ThrottleChange {
    Throttle,
    Unthrottle,
}

impl Owned {
    /// Creates the state of a partition whose start offset is not resolved yet.
    pub(super) fn new(epoch: Epoch) -> Self {
        Owned {
            epoch,
            phase: Phase::Resolving,
            inflight_records: 0,
            inflight_bytes: 0,
            blocked_records: 0,
            blocked_bytes: 0,
            throttled: false,
            revoking: false,
            abandoned: false,
            out_of_range: false,
            breaker: Breaker::default(),
            failing: None,
            draining: false,
        }
    }

    /// Returns the ledger, unless the start offset has to be resolved first.
    pub(super) fn ledger(&self) -> Option<&Ledger> {
        match &self.phase {
            Phase::Running { ledger, .. } | Phase::Halted { ledger: Some(ledger), .. } => Some(ledger),
            _ => None,
        }
    }

    pub(super) fn committed(&self) -> Option<NextOffset> {
        match &self.phase {
            Phase::Running { committed, .. } | Phase::Halted { committed, .. } => *committed,
            Phase::Resolving | Phase::Waiting => None,
        }
    }

    /// Returns the point to commit, if the prefix is beyond the committed offset.
    pub(super) fn commit_point(&self, partition: Partition) -> Option<CommitPoint> {
        let Progress { next, leader_epoch } = self.ledger()?.prefix();
        (self.committed() != Some(next)).then_some(CommitPoint { partition, epoch: self.epoch, next, leader_epoch })
    }

    /// Returns whether the partition waits to restart: its next record is out of range, and earlier records are not yet
    /// completed or committed.
    pub(super) fn is_completing(&self, partition: Partition) -> bool {
        let running = matches!(self.phase, Phase::Running { .. });
        self.out_of_range && running && (self.open() > 0 || self.commit_point(partition).is_some())
    }

    /// Returns the number of entries of the ledger: 0 if all received records are completed.
    pub(super) fn open(&self) -> usize {
        self.ledger().map_or(0, Ledger::open)
    }

    pub(super) fn drained(&self) -> bool {
        self.inflight_records == 0 || self.abandoned
    }

    pub(super) fn enter_lane(&mut self, bytes: usize) {
        self.inflight_records += 1;
        self.inflight_bytes += bytes;
    }

    pub(super) fn leave_lane(&mut self, record: &RecordRef) {
        self.inflight_records -= 1;
        self.inflight_bytes -= record.bytes;
    }

    pub(super) fn block(&mut self, record: &RecordRef) {
        self.blocked_records += 1;
        self.blocked_bytes += record.bytes;
    }

    pub(super) fn unblock(&mut self, record: &RecordRef) {
        self.blocked_records -= 1;
        self.blocked_bytes -= record.bytes;
    }

    /// Returns the bytes and records of it in blocked inboxes.
    pub(super) fn blocked(&self) -> (usize, usize) {
        (self.blocked_bytes, self.blocked_records)
    }

    /// Returns whether records of it wait in blocked inboxes.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_records > 0
    }

    pub(super) fn complete(&mut self, offset: RecordOffset) {
        if let Phase::Running { ledger, .. } | Phase::Halted { ledger: Some(ledger), .. } = &mut self.phase {
            ledger.complete(offset);
        }
    }

    /// Throttles the partition if it uses more than its share of the limits in the lanes or in blocked inboxes, so that
    /// other partitions can use the rest. `blocked` is the number of partitions that have blocked inboxes.
    pub(super) fn throttle_change(&mut self, settings: &Settings, blocked: usize) -> Option<ThrottleChange> {
        if self.revoking || !matches!(self.phase, Phase::Running { .. }) {
            return None;
        }
        let part = if self.throttled { Part::Half } else { Part::Whole };
        let wanted = self.is_above(settings, part, blocked);
        if wanted == self.throttled {
            return None;
        }
        self.throttled = wanted;
        Some(if wanted { ThrottleChange::Throttle } else { ThrottleChange::Unthrottle })
    }

    fn is_above(&self, settings: &Settings, part: Part, blocked: usize) -> bool {
        let limit = |whole: usize| (whole / part as usize).max(1);
        // Records in blocked inboxes may wait for days. With 1, 2, 3, … such partitions the share of each is 1/2, 1/6,
        // 1/12, … So all of them together never use more than one partition's share, and at most half of the whole
        // limit: the other partitions always have the other half.
        let shares = blocked.max(1) * (blocked.max(1) + 1);
        let share = |partition: usize, whole: usize| limit(partition.min(whole / 2) / shares);
        self.inflight_bytes >= limit(settings.max_partition_bytes)
            || self.inflight_records >= limit(settings.max_partition_records)
            || self.is_blocked()
                && (self.blocked_bytes >= share(settings.max_partition_bytes, settings.max_inflight_bytes)
                    || self.blocked_records >= share(settings.max_partition_records, settings.max_inflight_records))
    }
}
