//! Regular checks of everything that sends no event: resumed partitions, the database, and partitions without records.

use super::{Driver, Io, Record, Report, State};
use crate::Partition;

impl<R: Record> Driver<R> {
    /// Checks whether the database is still the same server and whether an operator has resumed a partition, and
    /// reports the next offset that is expected of each fetched partition.
    pub(super) fn check(&mut self, io: &mut impl Io<Record = R>) {
        io.check_database();
        let halted: Vec<Partition> = self.machine.halted().map(|(partition, _)| partition).collect();
        if !halted.is_empty() {
            io.check_resumed(halted);
        }
        self.report_states(io);
        let consuming = self.machine.wants_records();
        let mut expected = Vec::new();
        for partition in self.fetching.iter().filter(|partition| !self.throttled.contains_key(partition)) {
            // Forward its queue again: librdkafka ends the forwarding when a fetch stops, possibly after the next fetch
            // was started.
            io.forward(*partition);
            expected.extend(self.machine.expected(*partition).map(|next| (*partition, next)));
        }
        io.report(Report::Expected(consuming.then_some(expected.as_slice())));
    }

    /// Reports the state of each assigned partition.
    pub(super) fn report_states(&self, io: &mut impl Io<Record = R>) {
        let state = |partition: Partition| match () {
            () if self.machine.is_halted(partition) => State::Halted,
            () if self.machine.is_failing(partition) => State::Failing,
            () if self.throttled.contains_key(&partition) => State::Throttled,
            () if self.fetching.contains(&partition) => State::Fetching,
            () => State::Resolving,
        };
        let states: Vec<_> = self.machine.partitions().map(|partition| (partition, state(partition))).collect();
        io.report(Report::States(&states));
    }
}
