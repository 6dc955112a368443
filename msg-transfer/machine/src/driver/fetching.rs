//! Which partitions the client fetches: it keeps a list of its own, apart from what the group has assigned.

use std::collections::{BTreeMap, BTreeSet};

use super::{Driver, Io, Record, Report, Starting};
use crate::consumer::Event;
use crate::{Epoch, Partition, Progress};

impl<R: Record> Driver<R> {
    /// Fetches it from here on, with the others that start at the same time: `start_fetching`.
    pub(super) fn fetch(&mut self, partition: Partition, epoch: Epoch, from: Progress) {
        self.starting.insert(partition, (epoch, from));
    }

    /// Starts all that are to be fetched with one call: after a lost connection they are all partitions of this process.
    pub(super) fn start_fetching(&mut self, io: &mut impl Io<Record = R>) {
        let starting = std::mem::take(&mut self.starting);
        if starting.is_empty() || self.assign(io, &starting).is_ok() {
            return;
        }
        // One of them was rejected, and so were the others with it.
        for (partition, (epoch, from)) in starting {
            if let Err(error) = self.assign(io, &BTreeMap::from([(partition, (epoch, from))])) {
                let reason = format!("the consumer refuses to fetch it: {error}");
                self.handle(io, Event::Halt { partition, epoch, reason });
            }
        }
    }

    fn assign(&mut self, io: &mut impl Io<Record = R>, starting: &Starting) -> Result<(), String> {
        for (partition, (_, from)) in starting {
            let retried = self.failing.contains_key(partition);
            io.report(Report::Fetching { partition: *partition, from: *from, retried });
            // Whatever it was in an earlier assignment.
            self.throttled.remove(partition);
            io.take_over(*partition);
        }
        io.incremental_assign(starting)?;
        self.fetching.extend(starting.keys());
        Ok(())
    }

    pub(super) fn stop_fetching(&mut self, io: &mut impl Io<Record = R>, partitions: &BTreeSet<Partition>) {
        self.starting.retain(|partition, _| !partitions.contains(partition));
        let fetched = self.fetched_among(partitions);
        if !fetched.is_empty() {
            self.unassign(io, &fetched);
        }
    }

    /// Those that the client fetches: it rejects a call that is about any other.
    pub(super) fn fetched_among<'a>(&self, partitions: impl IntoIterator<Item = &'a Partition>) -> BTreeSet<Partition> {
        partitions.into_iter().filter(|partition| self.fetching.contains(partition)).copied().collect()
    }

    pub(super) fn unassign(&mut self, io: &mut impl Io<Record = R>, partitions: &BTreeSet<Partition>) {
        for partition in partitions {
            self.fetching.remove(partition);
            self.throttled.remove(partition);
        }
        let unassigned = io.incremental_unassign(partitions);
        Self::report_rejected(io, "stop fetching", unassigned);
    }

    pub(super) fn report_rejected(io: &mut impl Io<Record = R>, what: &'static str, result: Result<(), String>) {
        if let Err(error) = result {
            io.report(Report::Rejected(what, &error));
        }
    }
}
