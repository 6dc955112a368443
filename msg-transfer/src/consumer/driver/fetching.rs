//! Which partitions librdkafka fetches: it keeps a list of its own, apart from what the group has given us.

use std::collections::BTreeMap;

use machine::consumer::Event;
use machine::{Epoch, Partition, Progress};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::Driver;
use crate::consumer::context::Context;
use crate::consumer::raw;

impl Driver {
    /// Fetches it from here on, with the others that start at the same time: `start_fetching`.
    pub(super) fn fetch(&mut self, partition: Partition, epoch: Epoch, from: Progress) {
        self.starting.insert(partition, (epoch, from));
    }

    /// Starts all that are to be fetched with one assignment: after a lost connection they are all partitions of this process.
    pub(super) fn start_fetching(&mut self, consumer: &BaseConsumer<Context>) {
        let starting = std::mem::take(&mut self.starting);
        if starting.is_empty() || self.assign(consumer, &starting).is_ok() {
            return;
        }
        // One of them was refused, and so were the others with it.
        for (partition, (epoch, from)) in starting {
            if let Err(error) = self.assign(consumer, &BTreeMap::from([(partition, (epoch, from))])) {
                let reason = format!("the consumer refuses to fetch it: {error}");
                let _ = self.parts.report.send(Event::Halt { partition, epoch, reason });
            }
        }
    }

    fn assign(
        &mut self,
        consumer: &BaseConsumer<Context>,
        starting: &BTreeMap<Partition, (Epoch, Progress)>,
    ) -> Result<(), String> {
        for (partition, (_, from)) in starting {
            let (from, leader_epoch) = (from.next.0, from.leader_epoch.0);
            if self.is_failing(*partition) {
                tracing::debug!(partition, from, leader_epoch, "fetching");
            } else {
                tracing::info!(partition, from, leader_epoch, "fetching");
            }
            // Whatever it was in a former assignment.
            self.paused.remove(partition);
            self.take_over(consumer, *partition);
        }
        let list = self.list_at(starting.iter().map(|(partition, (_, from))| (*partition, *from)));
        raw::incremental_assign(consumer.client(), &list)?;
        self.fetching.extend(starting.keys());
        Ok(())
    }

    pub(super) fn stop_fetching(&mut self, consumer: &BaseConsumer<Context>, partitions: &[Partition]) {
        self.starting.retain(|partition, _| !partitions.contains(partition));
        let list = self.fetched_among(partitions);
        if list.count() > 0 {
            self.unassign(consumer, &list);
        }
    }

    pub(super) fn take_over(&self, consumer: &BaseConsumer<Context>, partition: Partition) {
        if let Some((records, _)) = &self.queues {
            records.take_over(consumer.client(), &self.parts.topic, partition);
        }
    }

    /// The list of those partitions that librdkafka fetches: it refuses to stop fetching any other.
    pub(super) fn fetched_among(&self, partitions: &[Partition]) -> TopicPartitionList {
        let fetched = partitions.iter().filter(|partition| self.fetching.contains(partition));
        self.list(fetched.map(|partition| (*partition, Offset::Invalid)))
    }

    pub(super) fn unassign(&mut self, consumer: &BaseConsumer<Context>, list: &TopicPartitionList) {
        for element in list.elements() {
            self.fetching.remove(&element.partition());
            self.paused.remove(&element.partition());
        }
        self.carried("stop fetching", raw::incremental_unassign(consumer.client(), list));
    }

    pub(super) fn list(&self, partitions: impl IntoIterator<Item = (Partition, Offset)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in partitions {
            list.add_partition_offset(&self.parts.topic, partition, offset)
                .expect("the offset is one that can be written");
        }
        list
    }

    /// Positions with their leader epochs: while it fetches, librdkafka then finds a log that differs below (`OutOfRange`), even if
    /// it ends above.
    pub(super) fn list_at(&self, positions: impl IntoIterator<Item = (Partition, Progress)>) -> TopicPartitionList {
        let positions: BTreeMap<Partition, Progress> = positions.into_iter().collect();
        let offsets = positions.iter().map(|(partition, at)| (*partition, Offset::Offset(at.next.0)));
        let mut list = self.list(offsets);
        msg_common::kafka::raw::set_leader_epochs(&mut list, |partition| positions[&partition].leader_epoch.0);
        list
    }

    pub(super) fn carried(&self, what: &str, result: Result<(), String>) {
        if let Err(error) = result {
            tracing::warn!(what, error, "refused by the consumer");
        }
    }
}
