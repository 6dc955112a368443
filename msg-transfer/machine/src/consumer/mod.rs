//! The consumer's machine: which partitions are assigned, where each starts, what is in flight, when progress is saved
//! and committed, and when a partition is halted or released.

mod breaker;
mod commit;
mod event;
mod failing;
mod halting;
mod ledger;
mod limits;
mod owned;
mod revoking;
pub mod start;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use uuid::Uuid;

pub use self::breaker::Limit;
pub use self::commit::CommitPoint;
use self::commit::Committer;
pub use self::event::{Action, Event, FetchError, LaneNumber, RecordRef};
pub use self::failing::Failing;
use self::ledger::Ledger;
use self::owned::{Owned, Phase, ThrottleChange};
use self::start::{Decision, Start};
use crate::{Epoch, LeaderEpoch, Millis, NextOffset, Partition, RecordOffset};

#[derive(Clone, Debug)]
pub struct Settings {
    /// A commit round starts after this number of completed records, or after `commit_interval`, whichever is first.
    pub commit_records: usize,
    /// The maximum time between two commit rounds.
    pub commit_interval: Millis,
    /// Maximum bytes in flight. At the limit no record is consumed, until half of it is free.
    pub max_inflight_bytes: usize,
    /// Maximum records in flight. At the limit no record is consumed, until half of it is free.
    pub max_inflight_records: usize,
    /// Maximum bytes in flight of one partition. At the limit it is throttled, until half of it is free.
    pub max_partition_bytes: usize,
    /// Maximum records in flight of one partition. At the limit it is throttled, until half of it is free.
    pub max_partition_records: usize,
    pub dead_letters: Limit,
    /// Returns the longest wait before the next attempt to fetch a partition, after this number of failed attempts.
    pub fetch_backoff: fn(u32) -> Millis,
    /// A fetch that returns neither a record nor an error for this long has recovered: the log may have no further
    /// record.
    pub fetch_recovery: Millis,
}

/// The state of all assigned partitions, which [`Machine::handle`] changes.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    owned: BTreeMap<Partition, Owned>,
    last_epoch: Epoch,
    committer: Committer,
    inflight_bytes: usize,
    inflight_records: usize,
    /// The number of partitions that have records in blocked inboxes.
    blocked: usize,
    /// The bytes and records in blocked inboxes.
    blocked_inflight: (usize, usize),
    /// Whether a limit was reached, and half of it is not free again.
    full: bool,
    stopping: bool,
}

impl Machine {
    pub fn new(settings: Settings) -> Self {
        let committer = Committer::new(settings.commit_records, settings.commit_interval);
        Machine {
            settings,
            owned: BTreeMap::new(),
            last_epoch: 0,
            committer,
            inflight_bytes: 0,
            inflight_records: 0,
            blocked: 0,
            blocked_inflight: (0, 0),
            full: false,
            stopping: false,
        }
    }

    pub fn committed(&self, partition: Partition) -> Option<NextOffset> {
        self.owned.get(&partition)?.committed()
    }

    /// Returns the lowest offset that may be received next of a fetched partition.
    pub fn expected(&self, partition: Partition) -> Option<NextOffset> {
        match &self.owned.get(&partition)?.phase {
            Phase::Running { ledger, .. } => Some(ledger.expected()),
            _ => None,
        }
    }

    /// Returns the partitions that are halted until an operator resumes them, each with the reason.
    pub fn halted(&self) -> impl Iterator<Item = (Partition, &str)> {
        self.owned.iter().filter_map(|(partition, owned)| match &owned.phase {
            Phase::Halted { reason, .. } => Some((*partition, reason.as_str())),
            _ => None,
        })
    }

    pub fn is_halted(&self, partition: Partition) -> bool {
        self.owned.get(&partition).is_some_and(|owned| matches!(owned.phase, Phase::Halted { .. }))
    }

    pub(crate) fn failing(&self) -> impl Iterator<Item = (Partition, &Failing)> {
        self.owned.iter().filter_map(|(partition, owned)| Some((*partition, owned.failing.as_ref()?)))
    }

    pub(crate) fn is_failing(&self, partition: Partition) -> bool {
        self.owned.get(&partition).is_some_and(|owned| owned.failing.is_some())
    }

    /// Returns the assigned partitions, halted ones included.
    pub fn partitions(&self) -> impl Iterator<Item = Partition> {
        self.owned.keys().copied()
    }

    /// Receives a record. Returns the epoch under which it must be passed to its lane, or `None` if it must be dropped:
    /// its partition is not fetched any more.
    pub fn receive(
        &mut self,
        partition: Partition,
        (offset, leader_epoch): (RecordOffset, LeaderEpoch),
        bytes: usize,
        actions: &mut Vec<Action>,
    ) -> Option<Epoch> {
        let blocked = self.blocked;
        let owned = self.owned.get_mut(&partition).filter(|owned| !owned.revoking)?;
        let Phase::Running { ledger, .. } = &mut owned.phase else {
            return None;
        };
        if owned.failing.as_ref().is_some_and(Failing::is_waiting) {
            // It follows a record that could not be fetched, and will be fetched again after it.
            return None;
        }
        if ledger.receive(offset, leader_epoch).is_err() {
            self.restart(partition, actions);
            return None;
        }
        if owned.failing.as_ref().is_some_and(|failing| failing.is_over(offset)) {
            owned.fetch_recovered(partition, actions);
        }
        owned.enter_lane(bytes);
        self.inflight_bytes += bytes;
        self.inflight_records += 1;
        if owned.throttle_change(&self.settings, blocked) == Some(ThrottleChange::Throttle) {
            actions.push(Action::Throttle { partition });
        }
        Some(owned.epoch)
    }

    /// Handles an event, and appends the resulting actions to `actions`.
    pub fn handle(&mut self, event: Event, now: Millis, actions: &mut Vec<Action>) {
        match event {
            Event::Assigned(partitions) => self.assign(partitions, actions),
            Event::StartResolved { partition, epoch, start, topic_id, dead } => {
                self.start(partition, epoch, start, (topic_id, dead), now, actions);
            }
            Event::Completed(records) => self.complete(&records, actions),
            Event::Dropped(records) => {
                for record in &records {
                    self.leave_lane(record);
                }
                self.unthrottle(&records, actions);
            }
            Event::Blocked(records) => self.block(&records, Owned::block),
            Event::Unblocked(records) => self.block(&records, Owned::unblock),
            Event::DeadLettersRequested { lane, dead } => self.approve_dead_letters(lane, &dead, actions),
            Event::Halt { partition, epoch, reason } => self.halt(partition, epoch, reason, actions),
            Event::Resumed(partitions) => {
                for partition in partitions {
                    self.resume(partition, actions);
                }
            }
            Event::Restart => {
                let running: Vec<_> = self.owned.keys().copied().collect();
                for partition in running {
                    self.restart(partition, actions);
                }
            }
            Event::RestartPartition(partition) => self.restart(partition, actions),
            Event::FetchFailed { partition, error } => self.fetch_failed(partition, error, now, actions),
            Event::OutOfRange(partition) => {
                if let Some(owned) = self.owned.get_mut(&partition) {
                    owned.out_of_range = matches!(owned.phase, Phase::Running { .. });
                }
            }
            Event::ProgressSaved => self.committer.saved(),
            Event::ProgressFailed | Event::CommitFailed => self.committer.failed(now),
            Event::Committed => {
                for point in self.committer.committed(now) {
                    self.set_committed(point);
                }
            }
            Event::Revoked(partitions) => self.revoke(&partitions),
            Event::Lost(partitions) => self.lose(&partitions, actions),
            Event::Stop => {
                self.stopping = true;
                let all: Vec<_> = self.owned.keys().copied().collect();
                self.revoke(&all);
            }
            Event::DrainExpired => self.abandon(actions),
            Event::ReleaseExpired => self.release(actions),
            Event::Tick => self.retry_fetches(now, actions),
        }
        self.share_blocked(actions);
        self.advance(now, actions);
    }

    /// Returns whether this assignment has not ended. Offsets are committed only of such assignments.
    pub fn has_assignment(&self, epoch: Epoch) -> bool {
        self.owned.values().any(|owned| owned.epoch == epoch)
    }

    /// Returns whether a partition is being revoked.
    pub fn is_revoking(&self) -> bool {
        self.owned.values().any(|owned| owned.revoking)
    }

    fn assign(&mut self, partitions: Vec<Partition>, actions: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        for partition in partitions {
            self.last_epoch += 1;
            let epoch = self.last_epoch;
            if let Some(previous) = self.owned.insert(partition, Owned::new(epoch)) {
                actions.push(Action::Fence { epoch: previous.epoch });
                self.forget(partition, &previous, actions);
            }
            actions.push(Action::ResolveStart { partition, epoch });
        }
    }

    fn start(
        &mut self,
        partition: Partition,
        epoch: Epoch,
        Decision { start, lost }: Decision,
        (topic_id, dead): (Uuid, Vec<RecordOffset>),
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        let Some(owned) = self.owned.get_mut(&partition).filter(|owned| owned.epoch == epoch && !owned.revoking) else {
            return;
        };
        if let Some(lost) = lost {
            owned.breaker.lost_from(lost.from);
        }
        match start {
            Start::At(from) => {
                owned.phase = Phase::Running { ledger: Ledger::new(from), committed: None };
                owned.breaker.begin(topic_id, dead);
                if let Some(failing) = &mut owned.failing {
                    failing.fetching(now);
                }
                // Commit immediately: after a crash, or when the group's offset expires, the start offset must be the
                // same.
                self.committer.hurry();
                actions.push(Action::Fetch { partition, epoch, from });
            }
            Start::Halt(reason) => {
                owned.phase = Phase::Halted { ledger: None, committed: None, reason: reason.clone() };
                owned.fetch_recovered(partition, actions);
                actions.push(Action::Halted { partition, reason });
            }
        }
    }

    fn complete(&mut self, records: &[RecordRef], actions: &mut Vec<Action>) {
        for record in records {
            self.leave_lane(record);
            if let Some(owned) = self.current(record.partition, record.epoch) {
                owned.complete(record.offset);
            }
        }
        self.committer.completed(records.len());
        self.unthrottle(records, actions);
    }

    fn current(&mut self, partition: Partition, epoch: Epoch) -> Option<&mut Owned> {
        self.owned.get_mut(&partition).filter(|owned| owned.epoch == epoch)
    }

    fn set_committed(&mut self, point: CommitPoint) {
        let Some(owned) = self.current(point.partition, point.epoch) else { return };
        match &mut owned.phase {
            Phase::Running { committed, .. } | Phase::Halted { committed, .. } => *committed = Some(point.next),
            Phase::Resolving | Phase::Waiting => {}
        }
    }

    /// Restarts a partition: its start offset is resolved again, and its records in the lanes are abandoned.
    fn restart(&mut self, partition: Partition, actions: &mut Vec<Action>) {
        let epoch = self.last_epoch + 1;
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        match &mut owned.phase {
            Phase::Resolving | Phase::Waiting => {}
            // It stays halted. The database may have lost the records that were completed.
            Phase::Halted { ledger, .. } => *ledger = None,
            Phase::Running { .. } if owned.revoking => {
                // The next owner resolves the start offset from the database.
                owned.abandoned = true;
                owned.phase = Phase::Resolving;
                actions.push(Action::Fence { epoch: owned.epoch });
            }
            Phase::Running { .. } => {
                self.last_epoch = epoch;
                actions.push(Action::StopFetching { partition });
                actions.push(Action::Fence { epoch: owned.epoch });
                // Dead letters that an operator has resumed after stay forgiven.
                let breaker = std::mem::take(&mut owned.breaker);
                let failing = owned.failing.take();
                *owned = Owned::new(epoch);
                owned.breaker = breaker;
                owned.failing = failing;
                if let Some(failing) = &mut owned.failing {
                    failing.restarted();
                    if failing.is_waiting() {
                        owned.phase = Phase::Waiting;
                        return;
                    }
                }
                actions.push(Action::ResolveStart { partition, epoch });
            }
        }
    }

    /// Restarts each partition whose next record is not in the log, once all its received records are completed and its
    /// progress row is written: the lost records are counted from that row.
    fn restart_out_of_range(&mut self, actions: &mut Vec<Action>) {
        let is_out_of_range = |owned: &Owned| {
            let running = matches!(owned.phase, Phase::Running { .. }) && !owned.revoking;
            owned.out_of_range && running && owned.open() == 0
        };
        let out_of_range: Vec<_> =
            self.owned.iter().filter(|(_, owned)| is_out_of_range(owned)).map(|(p, _)| *p).collect();
        for partition in out_of_range {
            let owned = &self.owned[&partition];
            if owned.is_completing(partition) {
                self.committer.hurry();
            } else if !owned.failing.as_ref().is_some_and(Failing::is_waiting) {
                self.restart(partition, actions);
            }
        }
    }

    /// Continues the commit round and the revocation.
    fn advance(&mut self, now: Millis, actions: &mut Vec<Action>) {
        self.restart_out_of_range(actions);
        let revoking = self.is_revoking();
        let drained = self.owned.values().filter(|owned| owned.revoking).all(Owned::drained);
        if revoking && drained {
            self.committer.hurry();
        }
        let owned = &self.owned;
        let points = || owned.iter().filter_map(|(partition, owned)| owned.commit_point(*partition)).collect();
        let is_current =
            |point: &CommitPoint| owned.get(&point.partition).is_some_and(|owned| owned.epoch == point.epoch);
        if let Some(action) = self.committer.advance(now, points, is_current) {
            actions.push(action);
        }
        let nothing_to_commit = self
            .owned
            .iter()
            .filter(|(_, owned)| owned.revoking)
            .all(|(partition, owned)| owned.commit_point(*partition).is_none());
        if (revoking && drained && nothing_to_commit) || (self.stopping && self.owned.is_empty()) {
            self.release(actions);
        }
    }
}
