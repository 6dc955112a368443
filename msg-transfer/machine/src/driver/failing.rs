//! Partitions whose fetch fails: the machine decides when each is retried; here they are listed for reports.

use super::{Driver, FetchError, Io, Record, Report};
use crate::consumer::{Action, Event};
use crate::{NextOffset, Partition};

/// Failures in a row.
#[derive(Clone, Debug)]
pub struct Failing {
    /// The offset that could not be fetched.
    pub at: NextOffset,
    /// How many.
    pub attempts: u32,
    /// What is wrong, and what to do.
    pub text: String,
}

impl<R: Record> Driver<R> {
    pub(super) fn fetch_failed(
        &mut self,
        io: &mut impl Io<Record = R>,
        partition: Partition,
        FetchError { failure, out_of_range }: FetchError,
        actions: &mut Vec<Action>,
    ) {
        let failed = Event::FetchFailed { partition, failure };
        let out_of_range = out_of_range.then_some(Event::OutOfRange(partition));
        for event in [Some(failed), out_of_range].into_iter().flatten() {
            io.report(Report::Event(&event));
            self.machine.handle(event, io.now(), actions);
        }
    }

    /// Its fetch does not fail any more: it is fetched again, or halted.
    pub(super) fn recovered(&mut self, io: &mut impl Io<Record = R>, partition: Partition) {
        if let Some(failing) = self.failing.remove(&partition) {
            if !self.halted.contains_key(&partition) {
                io.report(Report::Recovered(partition, failing.attempts));
            }
            io.report(Report::Failing(&self.failing));
        }
    }
}
