//! Partitions that have their share of the limits in the lanes: their next records wait, in order, and the others continue.
//! Not with librdkafka's pause: that one discards the fetched records, and outlives the assignment (ADR 14).

use std::collections::VecDeque;

use super::{Driver, Fetched, Io, Record};
use crate::Partition;

/// What waits of one partition. The rest waits in its own queue in the client.
#[derive(Debug)]
pub(super) struct Held<R> {
    /// What was in the queue of records already, errors in order with records.
    fetched: VecDeque<Fetched<R>>,
    /// It may be passed to the lanes, as soon as there is capacity.
    resumes: bool,
}

impl<R> Default for Held<R> {
    fn default() -> Self {
        Held { fetched: VecDeque::new(), resumes: false }
    }
}

impl<R> Held<R> {
    pub(super) fn push(&mut self, fetched: Fetched<R>) {
        self.fetched.push_back(fetched);
    }
}

impl<R: Record> Driver<R> {
    pub(super) fn throttle(&mut self, io: &mut impl Io<Record = R>, partition: Partition) {
        self.throttled.entry(partition).or_default().resumes = false;
        io.hold_back(partition);
    }

    pub(super) fn unthrottle(&mut self, partition: Partition) {
        if let Some(held) = self.throttled.get_mut(&partition) {
            held.resumes = true;
        }
    }

    /// Passes to the lanes what was held here first, then what has waited in the partition's own queue.
    pub(super) fn pass_held(&mut self, io: &mut impl Io<Record = R>) {
        let resuming: Vec<_> = self.throttled.iter().filter(|(_, held)| held.resumes).map(|(p, _)| *p).collect();
        for partition in resuming {
            while let Some(held) = self.throttled.get_mut(&partition).filter(|held| held.resumes) {
                if !self.machine.wants_records() {
                    return;
                }
                let Some(fetched) = held.fetched.pop_front() else {
                    self.throttled.remove(&partition);
                    io.take_over(partition);
                    break;
                };
                let mut actions = Vec::new();
                self.take(io, fetched, &mut actions);
                self.carry_out(io, actions);
            }
        }
    }
}
