//! Rebalances and the stop: the lanes drain within a deadline, the prefix is committed, then the group gets its
//! response. It is a state and not a loop: the consumer's thread continues its turns meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use super::{Driver, Io, Postponed, Record, Report};
use crate::consumer::Event;
use crate::{Millis, Partition};

/// The partitions that are being released, and the stage of their release.
#[derive(Debug)]
pub(super) struct Releasing {
    /// The partitions that the group revokes; `None` if the process stops.
    revoked: Option<Vec<Partition>>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The lanes store their records until this deadline. The others are abandoned.
    Draining(Millis),
    /// The prefix is committed until this deadline. The next owner consumes records again that are not committed.
    Committing(Millis),
    Released,
}

impl<R: Record> Driver<R> {
    /// Handles an assignment. The partitions are fetched when their start offsets are resolved.
    pub(super) fn assigned(&mut self, io: &mut impl Io<Record = R>, partitions: Vec<Partition>) {
        io.report(Report::Assigned(&partitions));
        // The response to the group, without partitions to fetch.
        let assigned = io.incremental_assign(&BTreeMap::new());
        Self::report_rejected(io, "assign", assigned);
        self.handle(io, Event::Assigned(partitions));
    }

    /// Handles a revocation. The group waits until `is_releasing` is false. If the partitions are lost, it does not
    /// wait.
    pub(super) fn revoked(&mut self, io: &mut impl Io<Record = R>, partitions: Vec<Partition>) {
        self.postponed = Some(BTreeMap::new());
        if io.is_assignment_lost() {
            io.report(Report::Lost(&partitions));
            self.handle(io, Event::Lost(partitions.clone()));
            self.respond_to_revocation(io, &partitions);
        } else {
            io.report(Report::Revoked(&partitions));
            self.release(io, Event::Revoked(partitions.clone()), Some(partitions));
        }
    }

    /// Returns whether partitions are being released. The turns continue, and neither events nor records are consumed.
    pub fn is_releasing(&self) -> bool {
        self.releasing.is_some()
    }

    pub(super) fn stop(&mut self, io: &mut impl Io<Record = R>) {
        self.stopped = true;
        self.release(io, Event::Stop, None);
    }

    fn release(&mut self, io: &mut impl Io<Record = R>, event: Event, revoked: Option<Vec<Partition>>) {
        // No record is consumed meanwhile.
        io.report(Report::Expected(Some(&[])));
        let stage = Stage::Draining(io.now() + self.times.drain);
        self.releasing = Some(Releasing { revoked, stage });
        self.handle(io, event);
        if !self.machine.is_revoking() {
            // None of the partitions is owned.
            self.released();
        }
        self.continue_release(io);
    }

    pub(super) fn released(&mut self) {
        if let Some(releasing) = &mut self.releasing {
            releasing.stage = Stage::Released;
        }
    }

    pub(super) fn continue_release(&mut self, io: &mut impl Io<Record = R>) {
        let Some(releasing) = &mut self.releasing else { return };
        let now = io.now();
        match releasing.stage {
            Stage::Draining(deadline) if now < deadline => return,
            Stage::Draining(_) => {
                releasing.stage = Stage::Committing(now + self.times.last_commit);
                io.report(Report::DrainExpired);
                self.handle(io, Event::DrainExpired);
            }
            Stage::Committing(deadline) if now < deadline => return,
            Stage::Committing(_) => {
                releasing.stage = Stage::Released;
                io.report(Report::ReleaseExpired);
                self.handle(io, Event::ReleaseExpired);
            }
            Stage::Released => {}
        }
        if let Some(releasing) = self.releasing.take_if(|releasing| matches!(releasing.stage, Stage::Released))
            && let Some(revoked) = releasing.revoked
        {
            self.respond_to_revocation(io, &revoked);
        }
    }

    fn respond_to_revocation(&mut self, io: &mut impl Io<Record = R>, partitions: &[Partition]) {
        let fetched = self.fetched_among(partitions);
        self.unassign(io, &fetched);
        let postponed = self.postponed.take().unwrap_or_default();
        let stopped: BTreeSet<Partition> = postponed.keys().copied().collect();
        self.stop_fetching(io, &stopped);
        for (partition, call) in postponed {
            if let Postponed::Refetch(start) = call {
                self.fetch(partition, start);
            }
        }
        self.start_fetching(io);
    }
}
