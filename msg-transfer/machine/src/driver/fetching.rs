//! The partitions that the client fetches. They are not all assigned partitions: some are halted or not resolved yet.

use std::collections::{BTreeMap, BTreeSet};

use super::{Driver, FailedFetch, FetchStart, Io, Record, Report};
use crate::Partition;
use crate::consumer::{Action, Event};

impl<R: Record> Driver<R> {
    /// Fetches the partition from the next `start_fetching` on.
    pub(super) fn fetch(&mut self, partition: Partition, start: FetchStart) {
        self.starting.insert(partition, start);
    }

    /// Starts all fetches with one call: after a lost connection they are all partitions of this process.
    pub(super) fn start_fetching(&mut self, io: &mut impl Io<Record = R>) {
        let starting = std::mem::take(&mut self.starting);
        if starting.is_empty() || self.assign(io, &starting).is_ok() {
            return;
        }
        // The client rejected one of them, and with it the others.
        for (partition, start) in starting {
            if let Err(error) = self.assign(io, &BTreeMap::from([(partition, start)])) {
                let reason = format!("the kafka client rejects the fetch: {error}");
                self.handle(io, Event::Halt { partition, epoch: start.epoch, reason });
            }
        }
    }

    fn assign<I: Io<Record = R>>(
        &mut self,
        io: &mut I,
        starting: &BTreeMap<Partition, FetchStart>,
    ) -> Result<(), I::Error> {
        for (partition, start) in starting {
            let retried = self.machine.is_failing(*partition);
            io.report(Report::Fetching { partition: *partition, from: start.from, retried });
            // An earlier assignment may have left it throttled.
            self.throttled.remove(partition);
            io.forward(*partition);
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

    /// Returns the partitions that the client fetches: it rejects a call with any other.
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

    pub(super) fn fetch_failed(
        &mut self,
        io: &mut impl Io<Record = R>,
        partition: Partition,
        FailedFetch { error, out_of_range }: FailedFetch,
        actions: &mut Vec<Action>,
    ) {
        let failed = Event::FetchFailed { partition, error };
        let out_of_range = out_of_range.then_some(Event::OutOfRange(partition));
        for event in [Some(failed), out_of_range].into_iter().flatten() {
            io.report(Report::Event(&event));
            self.machine.handle(event, io.now(), actions);
        }
    }

    pub(super) fn report_failing(&self, io: &mut impl Io<Record = R>) {
        io.report(Report::Failing(&self.machine.failing().collect::<Vec<_>>()));
    }

    pub(super) fn report_rejected<I: Io<Record = R>>(io: &mut I, call: &'static str, result: Result<(), I::Error>) {
        if let Err(error) = result {
            io.report(Report::Rejected(call, &error));
        }
    }
}
