//! One partition that the group has given us.

use super::Settings;
use super::breaker::Breaker;
use super::commit::CommitPoint;
use super::event::RecordRef;
use super::failing_fetch::Failing;
use super::ledger::Ledger;
use crate::{Epoch, NextOffset, Partition, Progress, RecordOffset};

/// A part of the limits that one partition may take.
#[derive(Clone, Copy, Debug)]
enum Part {
    Whole = 1,
    Half = 2,
}

/// The partition.
#[derive(Debug)]
pub(super) struct Owned {
    pub epoch: Epoch,
    pub phase: Phase,
    /// Records of this epoch in the lanes, and their bytes.
    inflight_records: usize,
    inflight_bytes: usize,
    /// Those of them that wait in blocked inboxes.
    blocked_records: usize,
    blocked_bytes: usize,
    /// Whether what is fetched is handed over.
    throttled: bool,
    /// The group has revoked the partition, or the process stops: nothing more is received.
    pub revoking: bool,
    /// The partition is released without waiting for the lanes.
    pub abandoned: bool,
    /// The record that follows is not in the log: the partition restarts as soon as all that was received is completed.
    pub out_of_range: bool,
    pub breaker: Breaker,
    /// While its fetch fails.
    pub failing: Option<Failing>,
    /// It is halted, and what its lanes have is still stored.
    pub draining: bool,
}

#[derive(Debug)]
pub(super) enum Phase {
    Resolving,
    /// Its fetch failed, and its start was to be resolved again meanwhile: that comes with the next attempt.
    Waiting,
    Running {
        ledger: Ledger,
        committed: Option<NextOffset>,
    },
    /// Stands still. What was completed before can still be committed.
    Halted {
        ledger: Option<Ledger>,
        committed: Option<NextOffset>,
    },
}

/// Whether to go on handing over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ThrottleChange {
    Throttle,
    Unthrottle,
}

impl Owned {
    /// Its start is not known yet.
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

    /// The ledger, as long as it counts.
    pub(super) fn ledger(&self) -> Option<&Ledger> {
        match &self.phase {
            Phase::Running { ledger, .. } | Phase::Halted { ledger: Some(ledger), .. } => Some(ledger),
            _ => None,
        }
    }

    /// What is committed, if anything is.
    pub(super) fn committed(&self) -> Option<NextOffset> {
        match &self.phase {
            Phase::Running { committed, .. } | Phase::Halted { committed, .. } => *committed,
            Phase::Resolving | Phase::Waiting => None,
        }
    }

    /// What is to be committed, if anything is.
    pub(super) fn commit_point(&self, partition: Partition) -> Option<CommitPoint> {
        let Progress { next, leader_epoch } = self.ledger()?.prefix();
        (self.committed() != Some(next)).then_some(CommitPoint { partition, epoch: self.epoch, next, leader_epoch })
    }

    /// Whether its next record is out of range, and not all that was received before is completed, and saved.
    pub(super) fn is_completing(&self, partition: Partition) -> bool {
        let running = matches!(self.phase, Phase::Running { .. });
        self.out_of_range && running && (self.open() > 0 || self.commit_point(partition).is_some())
    }

    /// Entries of the ledger: none if all that was received is completed.
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

    /// Bytes and records of it in blocked inboxes.
    pub(super) fn blocked(&self) -> (usize, usize) {
        (self.blocked_bytes, self.blocked_records)
    }

    /// Whether records of it wait in blocked inboxes.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_records > 0
    }

    /// This record is stored, or kept as a dead letter.
    pub(super) fn complete(&mut self, offset: RecordOffset) {
        if let Phase::Running { ledger, .. } | Phase::Halted { ledger: Some(ledger), .. } = &mut self.phase {
            ledger.complete(offset);
        }
    }

    /// A partition that has more than its part in the lanes, or in blocked inboxes, leaves the rest to the others.
    /// `blocked` is how many partitions have blocked inboxes.
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
        // What waits in blocked inboxes may wait for days. The parts of 1, 2, 3, … such partitions are 1/2, 1/6, 1/12, …,
        // so all of them together are never more than one partition's part, and at most half of the whole: the others
        // always have the other half.
        let shares = blocked.max(1) * (blocked.max(1) + 1);
        let share = |partition: usize, whole: usize| limit(partition.min(whole / 2) / shares);
        self.inflight_bytes >= limit(settings.max_partition_bytes)
            || self.inflight_records >= limit(settings.max_partition_records)
            || self.is_blocked()
                && (self.blocked_bytes >= share(settings.max_partition_bytes, settings.max_inflight_bytes)
                    || self.blocked_records >= share(settings.max_partition_records, settings.max_inflight_records))
    }
}
