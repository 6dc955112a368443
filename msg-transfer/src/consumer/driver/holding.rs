//! Partitions that have their part of the limits in the lanes: what comes of them waits, in order, and the others go on.
//! Not librdkafka's pause: that one throws the fetched records away, and outlives the assignment.

use std::collections::VecDeque;

use machine::Partition;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::Driver;
use crate::consumer::context::Context;
use crate::consumer::raw::Fetched;

/// What waits of one partition. The rest waits in its own queue of librdkafka's, up to `queued.max.messages.kbytes`.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// What was already on its way with the others' records, errors in order with them.
    pub fetched: VecDeque<Fetched>,
    /// It may be handed over, as soon as there is room.
    going_on: bool,
}

impl Driver {
    pub(super) fn pause(&mut self, consumer: &BaseConsumer<Context>, partition: Partition) {
        self.paused.entry(partition).or_default().going_on = false;
        if let Some((records, _)) = &self.queues {
            records.hold_back(consumer.client(), &self.parts.topic, partition);
        }
    }

    pub(super) fn unpause(&mut self, partition: Partition) {
        if let Some(held) = self.paused.get_mut(&partition) {
            held.going_on = true;
        }
    }

    /// First what was held here, then what has waited in the partition's own queue.
    pub(super) fn hand_over_held(&mut self, consumer: &BaseConsumer<Context>) {
        let going_on: Vec<_> = self.paused.iter().filter(|(_, held)| held.going_on).map(|(p, _)| *p).collect();
        for partition in going_on {
            while let Some(held) = self.paused.get_mut(&partition).filter(|held| held.going_on) {
                if !self.machine.wants_records() {
                    return;
                }
                let Some(fetched) = held.fetched.pop_front() else {
                    self.paused.remove(&partition);
                    self.take_over(consumer, partition);
                    break;
                };
                let mut actions = Vec::new();
                self.take(fetched, &mut actions);
                self.carry_out(consumer, actions);
            }
        }
    }
}
