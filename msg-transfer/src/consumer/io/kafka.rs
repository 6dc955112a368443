//! librdkafka, as the driver uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use machine::consumer::CommitPoint;
use machine::driver::{FetchStart, Fetched, Happened, Kafka, TopicIs};
use machine::{Millis, Partition, Progress};
use msg_common::kafka::ClientError;
use msg_common::kafka::raw::set_leader_epochs;
use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::Io;
use super::reports::warn_client_error;
use crate::consumer::events::Polled;
use crate::consumer::raw;
use crate::lane::item::RawRecord;

impl<C: ConsumerContext> Kafka for Io<'_, C> {
    type Record = RawRecord;
    type Error = ClientError;

    fn poll(&mut self) -> Option<Happened> {
        loop {
            let events = &self.outside.queues.as_ref()?.events;
            match events.poll(self.consumer.client())? {
                Polled::Happened(happened) => return Some(happened),
                Polled::Topic(code, text) => self.topic_failed(code, &text),
                Polled::Fatal(error) => {
                    self.outside.fatal = Some(error);
                    return None;
                }
                Polled::Error(code, text) => {
                    self.outside.explainer.explain(&KafkaError::Global(code), &text);
                    warn_client_error(code, &text);
                }
            }
        }
    }

    fn is_assignment_lost(&mut self) -> bool {
        self.consumer.assignment_lost()
    }

    fn incremental_assign(&mut self, starting: &BTreeMap<Partition, FetchStart>) -> Result<(), ClientError> {
        let list = self.list_at(starting.iter().map(|(partition, start)| (*partition, start.from)));
        raw::incremental_assign(self.consumer.client(), &list)
    }

    fn incremental_unassign(&mut self, partitions: &BTreeSet<Partition>) -> Result<(), ClientError> {
        let list = self.list(partitions.iter().map(|partition| (*partition, Offset::Invalid)));
        raw::incremental_unassign(self.consumer.client(), &list)
    }

    fn forward(&mut self, partition: Partition) {
        if let Some(queues) = &self.outside.queues {
            queues.records.forward(self.consumer.client(), &self.outside.parts.topic, partition);
        }
    }

    fn stop_forwarding(&mut self, partition: Partition) {
        if let Some(queues) = &self.outside.queues {
            queues.records.stop_forwarding(self.consumer.client(), &self.outside.parts.topic, partition);
        }
    }

    fn consume(&mut self, wait: Millis, into: &mut Vec<Fetched<RawRecord>>) {
        if let Some(queues) = &mut self.outside.queues {
            queues.records.consume(Duration::from_millis(wait), into);
        }
    }

    fn topic_is(&self) -> TopicIs {
        let identity = self.outside.parts.lookup.identity();
        match () {
            () if identity.is_another() => TopicIs::Another,
            () if identity.is_missing() => TopicIs::Missing,
            () => TopicIs::Same,
        }
    }

    fn commit(&mut self, points: &[CommitPoint], round: usize) -> Result<(), ClientError> {
        let list = self.list_at(points.iter().map(|point| (point.partition, point.progress())));
        let sent = match &self.outside.queues {
            Some(queues) => queues.commits.commit(self.consumer.client(), &list, round),
            None => Err(RDKafkaErrorCode::BrokerDestroy),
        };
        self.read(sent)
    }

    fn poll_commit(&mut self) -> Option<(usize, Result<(), ClientError>)> {
        let (round, result) = self.outside.queues.as_ref()?.commits.poll()?;
        Some((round, self.read(result)))
    }
}

impl<C: ConsumerContext> Io<'_, C> {
    fn list(&self, partitions: impl IntoIterator<Item = (Partition, Offset)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in partitions {
            list.add_partition_offset(&self.outside.parts.topic, partition, offset)
                .expect("the offset can be written into a list");
        }
        list
    }

    /// Returns a list of positions with their leader epochs. With them, librdkafka detects while it fetches that the
    /// log below a position differs from the one that was read, even if the log ends above the position.
    fn list_at(&self, positions: impl IntoIterator<Item = (Partition, Progress)>) -> TopicPartitionList {
        let positions: BTreeMap<Partition, Progress> = positions.into_iter().collect();
        let offsets = positions.iter().map(|(partition, at)| (*partition, Offset::Offset(at.next.0)));
        let mut list = self.list(offsets);
        set_leader_epochs(&mut list, |partition| positions[&partition].leader_epoch.0);
        list
    }

    /// Converts the result of a commit.
    fn read(&self, result: Result<(), RDKafkaErrorCode>) -> Result<(), ClientError> {
        result.map_err(|error| {
            if matches!(error, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopicId) {
                // Commit nothing until the topic's ID is known again: by then the name could belong to another topic.
                self.outside.parts.lookup.identity().missing();
            }
            error.into()
        })
    }
}
