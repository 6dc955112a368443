//! What reports nothing by itself, and is checked regularly.

use super::{Driver, Io, Record, Report, State};
use crate::Partition;

impl<R: Record> Driver<R> {
    /// Whether the database is still the one that it was, whether an operator has resumed a partition, and what is expected next.
    pub(super) fn check(&mut self, io: &mut impl Io<Record = R>) {
        io.check_database();
        if !self.halted.is_empty() {
            io.check_resumed(self.halted.keys().copied().collect());
        }
        self.report_states(io);
        let consuming = self.machine.wants_records();
        let mut expected = Vec::new();
        for partition in self.fetching.iter().filter(|partition| !self.throttled.contains_key(partition)) {
            // Its queue may not be forwarded any more: that ends when a fetch stops, which may be after the next one was started.
            io.take_over(*partition);
            expected.extend(self.machine.expected(*partition).map(|next| (*partition, next)));
        }
        io.report(Report::Expected(consuming.then_some(expected.as_slice())));
    }

    /// What is being done with each partition that is owned.
    pub(super) fn report_states(&self, io: &mut impl Io<Record = R>) {
        let state = |partition: Partition| match () {
            () if self.halted.contains_key(&partition) => State::Halted,
            () if self.failing.contains_key(&partition) => State::Failing,
            () if self.throttled.contains_key(&partition) => State::Throttled,
            () if self.fetching.contains(&partition) => State::Fetching,
            () => State::Resolving,
        };
        let states: Vec<_> = self.machine.partitions().map(|partition| (partition, state(partition))).collect();
        io.report(Report::States(&states));
    }
}
