//! What the lag is computed from in Kafka: the group's offsets, each partition's ends, and when a record was written. The
//! client is assigned what it reads and joins nothing. Every function blocks.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use msg_common::error::chain;
use msg_common::kafka::cause::Causes;
use msg_common::kafka::{ClientError, RequestError, ends, events, raw};
use msg_common::partition::Partition;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

/// How long one question to Kafka may take.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// The callbacks of a client whose errors are in its responses: it logs them at debug level, and notes the cause that a response
/// does not name.
#[derive(Default)]
pub struct LogContext(pub Causes);

impl ClientContext for LogContext {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "the client that asks reports an error");
        self.0.note(&error, reason);
    }
}

impl ConsumerContext for LogContext {}

/// Where a partition begins and ends, and what the group has committed.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Which one.
    pub partition: Partition,
    /// The group's committed offset.
    pub committed: Option<i64>,
    /// The oldest offset that is kept, or the end.
    pub start: i64,
    /// The end.
    pub end: i64,
}

/// A consumer group.
#[derive(Clone, Debug)]
pub struct Group {
    /// How many consumers are in it.
    pub members: usize,
    /// What it is doing, in Kafka's words.
    pub state: String,
    /// `consumer` for programs that share partitions.
    pub protocol_type: String,
    /// The assignor that its members have agreed on; empty while they have not.
    pub assignor: String,
    /// Each member's `client.id`, and where it runs.
    pub clients: Vec<(String, String)>,
}

/// The first record of each partition, from an offset on.
#[derive(Debug, Default)]
pub struct Oldest {
    /// When it was written.
    pub written: HashMap<Partition, SystemTime>,
    /// Partitions that hold none: at most what transactions leave in a log.
    pub none: HashSet<Partition>,
}

/// Reads what is asked for, and nothing else.
pub struct Reader {
    consumer: BaseConsumer<LogContext>,
    topic: String,
}

impl Reader {
    /// `config` names the group.
    pub fn new(config: &ClientConfig, topic: String) -> KafkaResult<Self> {
        let mut config = config.clone();
        config
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            // What was to be read may be deleted meanwhile: then the oldest that is left.
            .set("auto.offset.reset", "earliest")
            // One record of each partition is looked at. But a batch beyond the limit is given only to the first partition
            // of a fetch, so the limit has to be above what a gateway makes.
            .set("max.partition.fetch.bytes", (2 << 20).to_string())
            .set("fetch.max.bytes", (8 << 20).to_string())
            .set("queued.min.messages", "1")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "100");
        Ok(Reader { consumer: config.create_with_context(LogContext::default())?, topic })
    }

    /// The topic's id; nil where the broker gives none.
    pub fn topic_id(&self) -> Result<Uuid, RequestError> {
        let id = raw::topic_id(self.consumer.client(), &self.topic, TIMEOUT)?;
        Ok(id.unwrap_or_default())
    }

    /// The group as its coordinator describes it; `None` if there is none.
    pub fn group(&self, group: &str) -> Result<Option<Group>, RequestError> {
        let list = self.consumer.fetch_group_list(Some(group), TIMEOUT);
        let list =
            list.map_err(|error| RequestError::Group { group: group.to_owned(), source: Box::new(error.into()) })?;
        let found = list.groups().iter().find(|found| found.name() == group);
        Ok(found.map(|found| Group {
            members: found.members().len(),
            state: found.state().to_owned(),
            protocol_type: found.protocol_type().to_owned(),
            assignor: found.protocol().to_owned(),
            clients: found
                .members()
                .iter()
                .map(|member| (member.client_id().to_owned(), member.client_host().to_owned()))
                .collect(),
        }))
    }

    /// The ends of these partitions, and which do not tell theirs.
    pub fn ends(&self, partitions: &[Partition]) -> Result<(Vec<Ends>, Vec<Partition>), RequestError> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        let committed = self.consumer.committed_offsets(list, TIMEOUT);
        const READ: &str = "read the committed offset";
        let committed =
            committed.map_err(RequestError::of_topic(READ, &self.topic)).map_err(|error| self.explained(error))?;
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
                        ends.push(Ends { partition, committed, start: found.start, end: found.end });
                    }
                    Err(error) => {
                        tracing::warn!(partition, error = chain(&error), "the ends of the partition are not known");
                    }
                }
            }
        })?;
        let is_known = |partition: &Partition| ends.iter().any(|ends| ends.partition == *partition);
        let silent = partitions.iter().copied().filter(|partition| !is_known(partition)).collect();
        ends.sort_by_key(|ends| ends.partition);
        Ok((ends, silent))
    }

    /// When the first record at or after each of these offsets was written. What does not come in time is left out.
    pub fn written_at(&self, wanted: &[(Partition, i64)]) -> Result<Oldest, RequestError> {
        self.read_oldest(wanted).map_err(RequestError::of_topic("read the oldest record", &self.topic))
    }

    fn read_oldest(&self, wanted: &[(Partition, i64)]) -> Result<Oldest, ClientError> {
        if wanted.is_empty() {
            return Ok(Oldest::default());
        }
        let mut list = TopicPartitionList::new();
        for (partition, offset) in wanted {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
        }
        self.consumer.assign(&list)?;
        let found = self.first_of_each(wanted.iter().map(|(partition, _)| *partition).collect());
        // Also after an error, or it would go on fetching; and a pause outlives the assignment.
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
                tracing::warn!(partitions = ?waiting, "the oldest record did not come in time");
                break;
            }
            match self.consumer.poll(left.min(Duration::from_millis(100))) {
                Some(Ok(record)) if waiting.remove(&record.partition()) => {
                    self.seen_enough_of(record.partition())?;
                    let millis = record.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok());
                    if let Some(millis) = millis {
                        found
                            .written
                            .insert(record.partition(), SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
                    }
                }
                // Nothing but a transaction's marks.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if waiting.remove(&partition) {
                        found.none.insert(partition);
                    }
                }
                Some(Err(KafkaError::MessageConsumption(
                    code @ (rdkafka::types::RDKafkaErrorCode::TopicAuthorizationFailed
                    | rdkafka::types::RDKafkaErrorCode::GroupAuthorizationFailed),
                ))) => return Err(code.into()),
                Some(Err(error)) => tracing::debug!(%error, "the oldest record is not there yet"),
                Some(Ok(_)) | None => {}
            }
        }
        Ok(found)
    }

    /// The rest of a backlog would take the others' turn.
    fn seen_enough_of(&self, partition: Partition) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        self.consumer.pause(&list)
    }

    /// An error, and its cause if the client met one: a right that is missing on the group is retried until the request times out.
    fn explained(&self, error: RequestError) -> RequestError {
        let causes = &self.consumer.client().context().0;
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            if let Err(met) = event {
                causes.note(&met, "");
            }
        }
        error.explained(causes)
    }

    /// Discards the events of the client.
    pub fn discard_events(&self) {
        events::discard(&self.consumer);
    }
}
