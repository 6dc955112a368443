//! Partitions whose fetch fails. The machine decides when each is retried; the driver lists them for reports.

use super::{Driver, FailedFetch, Io, Record, Report};
use crate::consumer::{Action, Event};
use crate::{NextOffset, Partition};

/// A partition whose fetch failed and will be retried.
#[derive(Clone, Debug)]
pub struct Failing {
    /// The offset that could not be fetched.
    pub at: NextOffset,
    /// The number of attempts that failed in a row.
    pub attempts: u32,
    /// The error and the advice, for operators.
    pub text: String,
}

impl<R: Record> Driver<R> {
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

    /// Records that the fetch does not fail any more: the partition is fetched again, or halted.
    pub(super) fn recovered(&mut self, io: &mut impl Io<Record = R>, partition: Partition) {
        if let Some(failing) = self.failing.remove(&partition) {
            if !self.halted.contains_key(&partition) {
                io.report(Report::Recovered(partition, failing.attempts));
            }
            io.report(Report::Failing(&self.failing));
        }
    }
}
