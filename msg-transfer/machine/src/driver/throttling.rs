//! Throttled partitions: they use their share of the limits in the lanes, so their next records wait, in order, while
//! other partitions continue. librdkafka's pause is not used: it discards the fetched records, and outlives the
//! assignment (ADR 14).

use std::collections::VecDeque;

use super::{Driver, Fetched, Io, Record};
use crate::Partition;

/// The records of a throttled partition that were fetched already. Later ones wait in the partition's own queue in the
/// client.
#[derive(Debug)]
pub(super) struct ThrottledRecords<R> {
    /// Records and errors that were in the queue of records already, in order.
    fetched: VecDeque<Fetched<R>>,
    /// Whether they may be passed to the lanes as soon as there is capacity.
    resumes: bool,
}

impl<R> Default for ThrottledRecords<R> {
    fn default() -> Self {
        ThrottledRecords { fetched: VecDeque::new(), resumes: false }
    }
}

impl<R> ThrottledRecords<R> {
    pub(super) fn push(&mut self, fetched: Fetched<R>) {
        self.fetched.push_back(fetched);
    }
}

impl<R: Record> Driver<R> {
    pub(super) fn throttle(&mut self, io: &mut impl Io<Record = R>, partition: Partition) {
        self.throttled.entry(partition).or_default().resumes = false;
        io.stop_forwarding(partition);
    }

    pub(super) fn unthrottle(&mut self, partition: Partition) {
        if let Some(throttled) = self.throttled.get_mut(&partition) {
            throttled.resumes = true;
        }
    }

    /// Passes the records of unthrottled partitions to the lanes: first those that wait here, then those in the
    /// partition's own queue.
    pub(super) fn pass_throttled(&mut self, io: &mut impl Io<Record = R>) {
        let resuming: Vec<_> =
            self.throttled.iter().filter(|(_, throttled)| throttled.resumes).map(|(p, _)| *p).collect();
        for partition in resuming {
            while let Some(throttled) = self.throttled.get_mut(&partition).filter(|throttled| throttled.resumes) {
                if !self.machine.wants_records() {
                    return;
                }
                let Some(fetched) = throttled.fetched.pop_front() else {
                    self.throttled.remove(&partition);
                    io.forward(partition);
                    break;
                };
                let mut actions = Vec::new();
                self.dispatch(io, fetched, &mut actions);
                self.carry_out(io, actions);
            }
        }
    }
}
