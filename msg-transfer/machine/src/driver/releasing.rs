//! Rebalances and the stop: the lanes drain under a deadline, the prefix is committed, then the group gets its response. It
//! is a state and not a loop: the consumer's thread goes on with its turns meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use super::{Driver, Io, Record, Report};
use crate::consumer::Event;
use crate::{Millis, Partition};

/// Partitions that are being released.
#[derive(Debug)]
pub(super) struct Releasing {
    /// What the group revokes; `None`: the process stops.
    revoked: Option<Vec<Partition>>,
    /// The machine has released them.
    released: bool,
    /// What is not stored by then is abandoned.
    drain: Millis,
    /// Then, what is not committed by this is repeated by the next owner.
    last_commit: Option<Millis>,
}

impl<R: Record> Driver<R> {
    /// The group assigned these. They are fetched once their starts are known.
    pub(super) fn assigned(&mut self, io: &mut impl Io<Record = R>, partitions: Vec<Partition>) {
        io.report(Report::Assigned(&partitions));
        // A response to the group, with nothing to fetch yet.
        let assigned = io.incremental_assign(&BTreeMap::new());
        Self::report_rejected(io, "assign", assigned);
        self.handle(io, Event::Assigned(partitions));
    }

    /// The group revokes these, and waits until `is_releasing` is false; if they are lost, it does not wait.
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

    /// Whether partitions are being released: the turns go on, and neither events nor records are taken from Kafka.
    pub fn is_releasing(&self) -> bool {
        self.releasing.is_some()
    }

    pub(super) fn stop(&mut self, io: &mut impl Io<Record = R>) {
        self.stopped = true;
        self.release(io, Event::Stop, None);
    }

    fn release(&mut self, io: &mut impl Io<Record = R>, event: Event, revoked: Option<Vec<Partition>>) {
        // Nothing is consumed meanwhile.
        io.report(Report::Expected(Some(&[])));
        let drain = io.now() + self.times.drain;
        self.releasing = Some(Releasing { revoked, released: false, drain, last_commit: None });
        self.handle(io, event);
        if !self.machine.is_revoking() {
            // Nothing of it is owned.
            self.released();
        }
        self.continue_release(io);
    }

    pub(super) fn released(&mut self) {
        if let Some(releasing) = &mut self.releasing {
            releasing.released = true;
        }
    }

    pub(super) fn continue_release(&mut self, io: &mut impl Io<Record = R>) {
        let Some(releasing) = &mut self.releasing else { return };
        let now = io.now();
        let (drain, times) = (releasing.drain, self.times);
        match releasing.last_commit {
            _ if releasing.released => {}
            None if now < drain => return,
            None => {
                releasing.last_commit = Some(now + times.last_commit);
                io.report(Report::DrainExpired);
                self.handle(io, Event::DrainExpired);
            }
            Some(last_commit) if now < last_commit => return,
            Some(_) => {
                releasing.released = true;
                io.report(Report::ReleaseExpired);
                self.handle(io, Event::ReleaseExpired);
            }
        }
        if let Some(releasing) = self.releasing.take_if(|releasing| releasing.released)
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
        for (partition, again) in postponed {
            if let Some((epoch, from)) = again {
                self.fetch(partition, epoch, from);
            }
        }
        self.start_fetching(io);
    }
}
