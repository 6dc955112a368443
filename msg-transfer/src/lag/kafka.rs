//! Reads the data that the lag is computed from: the group's offsets, each partition's ends, and the times of records.
//! The client assigns partitions to itself and joins no group. Every function blocks.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime};

use msg_common::error::chain;
use msg_common::kafka::cause::Causes;
use msg_common::kafka::{ClientError, ClientSetup, KafkaClient, RequestError, coordinator, ends, events, raw};
use msg_common::partition::Partition;
use msg_common::repeat::Repeats;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

use super::members::{self, Group};

static NO_END: Repeats = Repeats::new();

static NO_RECORD: Repeats = Repeats::new();

pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// The callbacks of a client whose errors are in its responses: it logs them at debug level, and notes the cause that a
/// response does not name.
#[derive(Default)]
pub(crate) struct LogContext(pub Causes);

impl ClientContext for LogContext {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "client of the lag reported an error");
        self.0.note(&error, reason);
    }
}

impl ConsumerContext for LogContext {}

/// The start offset, stable offset, end offset and the group's committed offset of a partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub partition: Partition,
    pub committed: Option<i64>,
    /// The oldest offset that Kafka keeps, or the end offset if it keeps none.
    pub start: i64,
    /// The first offset of an open transaction, or the end offset if no transaction is open.
    pub stable: i64,
    pub end: i64,
}

/// The first record of each partition at or after an offset.
#[derive(Debug, Default)]
pub(crate) struct Oldest {
    pub written: HashMap<Partition, SystemTime>,
    /// Partitions without such a record below their stable offset: their logs contain at most transaction markers and
    /// records of aborted transactions there.
    pub none: HashSet<Partition>,
}

pub(crate) struct Reader {
    consumer: KafkaClient<BaseConsumer<LogContext>>,
    /// Locked while records are read: another thread must not poll the client meanwhile, because it would discard them.
    reading: Mutex<()>,
    topic: String,
    group: String,
}

impl Reader {
    /// Creates a reader. `config` names the group.
    pub(crate) fn new(config: &ClientSetup, topic: String) -> KafkaResult<Self> {
        let mut config = config.clone();
        let group = config.get("group.id").unwrap_or_default().to_owned();
        config
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            // The wanted record may be deleted in the meantime: then the oldest remaining one is read.
            .set("auto.offset.reset", "earliest")
            // Only one record of each partition is needed. But Kafka returns a batch above the limit only for the first
            // partition of a fetch, so the limit has to be above the size of a gateway's batches.
            .set("max.partition.fetch.bytes", (2 << 20).to_string())
            .set("fetch.max.bytes", (8 << 20).to_string())
            .set("queued.min.messages", "1")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "100");
        let consumer = config.create_with_context(LogContext::default())?;
        Ok(Reader { consumer, reading: Mutex::default(), topic, group })
    }

    /// Reads the topic's ID; nil if the brokers return none.
    pub(crate) fn topic_id(&self) -> Result<Uuid, RequestError> {
        let id = raw::topic_id(self.consumer.client(), &self.topic, TIMEOUT)?;
        Ok(id.unwrap_or_default())
    }

    /// Reads the group from its coordinator; `None` if it does not exist.
    pub(crate) fn group(&self, group: &str) -> Result<Option<Group>, RequestError> {
        let failed = |source: ClientError| RequestError::Group { group: group.to_owned(), source: Box::new(source) };
        let list = self.consumer.fetch_group_list(Some(group), TIMEOUT).map_err(|error| failed(error.into()))?;
        let found = list.groups().iter().find(|found| found.name() == group);
        // Without a coordinator, no broker has the group.
        if found.is_none()
            && let Some(detail) = self.missing_coordinator()
        {
            return Err(failed(ClientError::MissingCoordinator(detail)));
        }
        Ok(found.map(|found| Group {
            state: found.state().to_owned(),
            protocol_type: found.protocol_type().to_owned(),
            assignor: found.protocol().to_owned(),
            members: found.members().iter().map(|member| members::member(member, &self.topic)).collect(),
        }))
    }

    /// Reads the ends of these partitions. Also returns the partitions whose leader did not respond.
    pub(crate) fn ends(&self, partitions: &[Partition]) -> Result<(Vec<Ends>, Vec<Partition>), RequestError> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        const READ: &str = "read the committed offset";
        let committed = self.consumer.committed_offsets(list, TIMEOUT).map_err(|error| {
            let missing = self.missing_coordinator().map(ClientError::MissingCoordinator);
            self.explained(RequestError::of_topic(READ, &self.topic)(missing.unwrap_or_else(|| error.into())))
        })?;
        let mut offsets = HashMap::new();
        for element in committed.elements() {
            element.error().map_err(RequestError::of_partition(READ, &self.topic, element.partition()))?;
            let committed = match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            offsets.insert(element.partition(), committed);
        }
        let mut ends = Vec::with_capacity(partitions.len());
        ends::read(self.consumer.client(), &self.topic, partitions, TIMEOUT, |found| {
            for (partition, found) in found {
                match found {
                    Ok(found) => {
                        let committed = offsets.get(&partition).copied().flatten();
                        let (start, stable, end) = (found.start, found.stable, found.end);
                        ends.push(Ends { partition, committed, start, stable, end });
                    }
                    Err(error) => {
                        let error = chain(&error);
                        if let Some(repeated) = NO_END.occurred(&format!("{partition} {error}")) {
                            tracing::warn!(partition, error, repeated, "could not read the end offset");
                        }
                    }
                }
            }
        })?;
        let is_known = |partition: &Partition| ends.iter().any(|ends| ends.partition == *partition);
        let unreachable = partitions.iter().copied().filter(|partition| !is_known(partition)).collect();
        ends.sort_by_key(|ends| ends.partition);
        Ok((ends, unreachable))
    }

    /// Reads when the first record at or after each of these offsets was written. A partition whose record is not
    /// received in time is left out.
    pub(crate) fn written_at(&self, wanted: &[(Partition, i64)]) -> Result<Oldest, RequestError> {
        self.read_oldest(wanted).map_err(RequestError::of_topic("read the oldest record", &self.topic))
    }

    fn read_oldest(&self, wanted: &[(Partition, i64)]) -> Result<Oldest, ClientError> {
        if wanted.is_empty() {
            return Ok(Oldest::default());
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = TopicPartitionList::new();
        for (partition, offset) in wanted {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
        }
        self.consumer.assign(&list)?;
        let found = self.first_of_each(wanted.iter().map(|(partition, _)| *partition).collect());
        // Also after an error: otherwise the client would continue to fetch. A pause outlives the assignment.
        self.consumer.resume(&list)?;
        self.consumer.unassign()?;
        found
    }

    fn first_of_each(&self, mut waiting: HashSet<Partition>) -> Result<Oldest, ClientError> {
        let deadline = Instant::now() + TIMEOUT;
        let mut found = Oldest::default();
        while !waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if let Some(repeated) = NO_RECORD.occurred("") {
                    tracing::warn!(partitions = ?waiting, repeated, "could not read the oldest record in time");
                }
                break;
            }
            match self.consumer.poll(left.min(Duration::from_millis(100))) {
                Some(Ok(record)) if waiting.remove(&record.partition()) => {
                    self.pause(record.partition())?;
                    let millis = record.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok());
                    if let Some(millis) = millis {
                        found
                            .written
                            .insert(record.partition(), SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
                    }
                }
                // Up to the stable offset, the log contains at most transaction markers and aborted records.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if waiting.remove(&partition) {
                        found.none.insert(partition);
                    }
                }
                Some(Err(KafkaError::MessageConsumption(
                    code @ (rdkafka::types::RDKafkaErrorCode::TopicAuthorizationFailed
                    | rdkafka::types::RDKafkaErrorCode::GroupAuthorizationFailed),
                ))) => return Err(code.into()),
                Some(Err(error)) => {
                    tracing::debug!(%error, "received an error instead of the oldest record, will be retried")
                }
                Some(Ok(_)) | None => {}
            }
        }
        Ok(found)
    }

    /// Pauses a partition whose record was read. Otherwise its other records would delay those of the other partitions.
    fn pause(&self, partition: Partition) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        self.consumer.pause(&list)
    }

    fn missing_coordinator(&self) -> Option<String> {
        coordinator::missing(self.consumer.client(), &self.group, TIMEOUT)
    }

    /// Adds the cause to an error, if the client received one. For example, librdkafka retries a request without rights
    /// on the group until the request times out.
    fn explained(&self, error: RequestError) -> RequestError {
        let causes = &self.consumer.client().context().0;
        if let Some(_idle) = self.idle() {
            while let Some(event) = self.consumer.poll(Duration::ZERO) {
                if let Err(cause) = event {
                    causes.note(&cause, "");
                }
            }
        }
        error.explained(causes)
    }

    /// Discards the events of the client. While records are read, their reader polls the events.
    pub(crate) fn discard_events(&self) {
        if let Some(_idle) = self.idle() {
            events::discard(&self.consumer);
        }
    }

    /// Returns a guard that keeps other threads from reading records, or `None` while one reads.
    fn idle(&self) -> Option<MutexGuard<'_, ()>> {
        match self.reading.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
