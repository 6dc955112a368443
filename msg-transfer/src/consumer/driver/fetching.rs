//! Which partitions librdkafka fetches: it keeps a list of its own, apart from what the group has given us.

use machine::consumer::Event;
use machine::{Epoch, NextOffset, Partition};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::Driver;
use crate::consumer::context::Context;
use crate::consumer::raw;

impl Driver {
    pub(super) fn fetch(
        &mut self,
        consumer: &BaseConsumer<Context>,
        partition: Partition,
        epoch: Epoch,
        from: NextOffset,
    ) {
        if self.is_failing(partition) {
            tracing::debug!(partition, %from, "fetching");
        } else {
            tracing::info!(partition, %from, "fetching");
        }
        // Whatever it was in a former assignment.
        self.paused.remove(&partition);
        self.take_over(consumer, partition);
        let list = self.list([(partition, Offset::Offset(from.0))]);
        match raw::incremental_assign(consumer.client(), &list) {
            Ok(()) => {
                self.fetching.insert(partition);
            }
            Err(error) => {
                let reason = format!("the consumer refuses to fetch it: {error}");
                let _ = self.parts.report.send(Event::Halt { partition, epoch, reason });
            }
        }
    }

    pub(super) fn stop_fetching(&mut self, consumer: &BaseConsumer<Context>, partition: Partition) {
        let list = self.fetched_among(&[partition]);
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

    pub(super) fn carried(&self, what: &str, result: Result<(), String>) {
        if let Err(error) = result {
            tracing::warn!(what, error, "refused by the consumer");
        }
    }
}
