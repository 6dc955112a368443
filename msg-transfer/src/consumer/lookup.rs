//! Reads what has to be known before a partition is fetched: the topic's ID, the group's offsets, the partition's ends,
//! and the database's progress rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use machine::consumer::start::{Kept, Known, Lost};
use machine::error::ClassifiedError;
use machine::{ConnectionNumber, NextOffset, Partition, Progress, RecordOffset};
use msg_common::error::chain;
use msg_common::kafka::ends::{self, Answers, Ends};
use msg_common::kafka::raw::topic_id;
use msg_common::kafka::{ClientError, ClientPurpose, KafkaClient, RequestError, events};
use msg_common::repeat::Repeats;
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use uuid::Uuid;

use super::identity::TopicIdentity;
use super::kept::KeptProbe;
use super::progress::ProgressStore;
use crate::config::Config;

/// The timeout of one request to Kafka.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The offsets of a partition without a leader are read again every few seconds.
static NOT_READ: Repeats = Repeats::new();

/// Reads from Kafka and the database.
#[derive(Clone)]
pub(crate) struct Lookup {
    /// It is configured with the group and never joins it. It may be used from any thread.
    consumer: Arc<KafkaClient<BaseConsumer>>,
    kept: Arc<KeptProbe>,
    progress: ProgressStore,
    topic: String,
    identity: TopicIdentity,
}

/// The data that start offsets are resolved from.
#[derive(Debug)]
pub(crate) struct LookupResult {
    /// The topic's ID; nil if the brokers return none.
    pub topic_id: Uuid,
    /// The number of the reference connection that the progress rows were read over.
    pub connection_number: ConnectionNumber,
    /// Receives each partition as soon as its leader responds. Closed when no further partition follows.
    pub partitions: UnboundedReceiver<(Partition, Known)>,
    /// The offsets of each partition's dead letters that count for the limit.
    pub dead: HashMap<Partition, Vec<RecordOffset>>,
}

/// Why start offsets cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    /// A request to Kafka failed.
    #[error("kafka")]
    Kafka(#[from] RequestError),
    /// Reading or writing the progress rows failed.
    #[error("database: {}", .0.text)]
    Database(ClassifiedError),
}

impl From<ClassifiedError> for LookupError {
    fn from(error: ClassifiedError) -> Self {
        LookupError::Database(error)
    }
}

impl Lookup {
    /// Creates a lookup for the group and the topic of `config`.
    pub(crate) fn new(
        config: &Config,
        progress: ProgressStore,
        identity: TopicIdentity,
    ) -> Result<Self, rdkafka::error::KafkaError> {
        let topic = config.kafka.kafka_topic.clone();
        let kept = Arc::new(KeptProbe::new(&config.lookup_config(ClientPurpose::EpochProbe), topic.clone()));
        let consumer = config.lookup_config(ClientPurpose::Lookup).create_with_context(DefaultConsumerContext)?;
        let consumer = Arc::new(consumer);
        Ok(Lookup { consumer, kept, progress, topic, identity })
    }

    /// Reads these partitions; `window` is how far back dead letters count, in offsets. The rows are read before the
    /// ends, so that no row is above its end because another process still stores.
    pub(crate) async fn read(&self, partitions: &[Partition], window: i64) -> Result<LookupResult, LookupError> {
        let topic_id = self.blocking(Lookup::topic_id).await?;
        let loaded = self.progress.load(topic_id, partitions, window).await?;
        let wanted = partitions.to_vec();
        let committed = self.blocking(move |lookup| lookup.committed(&wanted)).await?;
        let rows = loaded.rows.into_iter().collect();
        let (sender, receiver) = unbounded_channel();
        let (lookup, wanted) = (self.clone(), partitions.to_vec());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = lookup.find(topic_id, &wanted, &committed, &rows, &sender) {
                let error = chain(&error);
                if let Some(repeated) = NOT_READ.occurred(&error) {
                    tracing::warn!(error, repeated, "could not read the end offsets, will be retried");
                }
            }
        });
        Ok(LookupResult {
            topic_id,
            connection_number: loaded.connection_number,
            partitions: receiver,
            dead: loaded.dead,
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Lookup) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let lookup = self.clone();
        let result = tokio::task::spawn_blocking(move || read(&lookup)).await;
        result.map_err(RequestError::of_topic("send a request", &self.topic))?
    }

    /// Discards the events of the client.
    pub(crate) fn discard_events(&self) {
        events::discard(&self.consumer);
    }

    /// Returns the group's committed offset of each partition. If a partition is left out, its offset could not be
    /// read. Blocks.
    fn committed(&self, partitions: &[Partition]) -> Result<HashMap<Partition, Option<NextOffset>>, RequestError> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        let committed = self.consumer.committed_offsets(list, TIMEOUT);
        let committed = committed.map_err(RequestError::of_topic("read the committed offsets", &self.topic))?;
        let mut offsets = HashMap::new();
        for element in committed.elements() {
            let partition = element.partition();
            match (element.error(), element.offset()) {
                (Ok(()), Offset::Offset(offset)) => drop(offsets.insert(partition, Some(NextOffset(offset)))),
                (Ok(()), _) => drop(offsets.insert(partition, None)),
                (Err(error), _) => {
                    if let Some(repeated) = NOT_READ.occurred(&format!("committed offset of {partition}: {error}")) {
                        tracing::warn!(partition, %error, repeated, "could not read the committed offset");
                    }
                }
            }
        }
        Ok(offsets)
    }

    /// Reports the data of each partition as soon as its leader responds. Blocks.
    fn find(
        &self,
        topic_id: Uuid,
        partitions: &[Partition],
        committed: &HashMap<Partition, Option<NextOffset>>,
        rows: &HashMap<Partition, Progress>,
        report: &UnboundedSender<(Partition, Known)>,
    ) -> Result<(), RequestError> {
        let wanted: Vec<Partition> =
            partitions.iter().filter(|wanted| committed.contains_key(wanted)).copied().collect();
        let mut result = Ok(());
        let each = |found: Answers<Ends>| {
            // The offsets of a recreated topic start at 0. Those of the old topic must not be compared with them.
            match self.topic_id() {
                Ok(id) if id == topic_id => {}
                Ok(_) => {
                    result = Err(self.no_id(ClientError::TopicId("only some of the brokers return the topic's ID")));
                    return;
                }
                Err(error) => {
                    result = Err(error);
                    return;
                }
            }
            let probed = found.iter().filter(|(_, ends)| ends.is_ok()).filter_map(|(partition, _)| {
                let epoch = rows.get(partition)?.leader_epoch;
                epoch.is_known().then_some((*partition, epoch))
            });
            let probed: Vec<_> = probed.collect();
            let kept = self.kept.read(&probed, TIMEOUT).unwrap_or_else(|error| {
                let error = chain(&error);
                if let Some(repeated) = NOT_READ.occurred(&error) {
                    tracing::warn!(error, repeated, "could not read the ends of the leader epochs");
                }
                HashMap::new()
            });
            for (partition, ends) in found {
                let ends = match ends {
                    Ok(ends) => ends,
                    Err(error) => {
                        let error = chain(&error);
                        if let Some(repeated) = NOT_READ.occurred(&format!("end offset of {partition}: {error}")) {
                            tracing::warn!(
                                partition,
                                error,
                                repeated,
                                "could not read the end offset, will be retried"
                            );
                        }
                        continue;
                    }
                };
                let kept = match kept.get(&partition) {
                    Some(kept) => *kept,
                    None if probed.iter().any(|(probed, _)| *probed == partition) => {
                        if let Some(repeated) = NOT_READ.occurred(&format!("leader epoch of {partition}")) {
                            tracing::warn!(partition, repeated, "received no end of the leader epoch, will be retried");
                        }
                        continue;
                    }
                    None => Kept::Unknown,
                };
                let known = Known {
                    committed: committed[&partition],
                    progress: rows.get(&partition).copied(),
                    kept,
                    low: NextOffset(ends.start),
                    high: NextOffset(ends.end),
                };
                // The receiver is dropped if the start offsets are no longer needed.
                let _ = report.send((partition, known));
            }
        };
        ends::read(self.consumer.client(), &self.topic, &wanted, TIMEOUT, each)?;
        result
    }

    /// Reads the topic's ID; nil if the brokers return none. Blocks.
    fn topic_id(&self) -> Result<Uuid, RequestError> {
        let id = topic_id(self.consumer.client(), &self.topic, TIMEOUT)?;
        self.identity.record_topic_id(id).map_err(|error| self.no_id(ClientError::TopicId(error)))
    }

    fn no_id(&self, error: ClientError) -> RequestError {
        RequestError::of_topic("read the ID", &self.topic)(error)
    }

    /// Lowers a progress row, because Kafka lost the records below its next offset. After an error, the start offset
    /// has to be resolved again.
    pub(crate) async fn lower(
        &self,
        topic_id: Uuid,
        connection_number: ConnectionNumber,
        partition: Partition,
        lost: &Lost,
    ) -> Result<(), LookupError> {
        Ok(self.progress.lower(topic_id, connection_number, partition, lost).await?)
    }

    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    pub(crate) fn identity(&self) -> &TopicIdentity {
        &self.identity
    }

    /// Reads the topic's ID, which detects that the topic was recreated. An error is only logged: the next call reads
    /// it again.
    pub(crate) async fn check_topic(&self) {
        let lookup = self.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || lookup.topic_id()).await {
            tracing::debug!(error = chain(&error), "could not read the topic's ID, will be retried");
        }
    }

    /// Returns the partitions whose end offset is above the expected next offset, as far as their end offsets can be
    /// read.
    pub(crate) async fn behind(&self, mut expected: Vec<(Partition, NextOffset)>) -> Vec<(Partition, NextOffset)> {
        let read = move |lookup: &Lookup| {
            let partitions: Vec<Partition> = expected.iter().map(|(partition, _)| *partition).collect();
            let mut known = HashMap::new();
            let each = |found: Answers<Ends>| {
                known.extend(found.into_iter().filter_map(|(partition, ends)| Some((partition, ends.ok()?.end))));
            };
            ends::read(lookup.consumer.client(), &lookup.topic, &partitions, TIMEOUT, each)?;
            expected.retain(|(partition, next)| known.get(partition).is_some_and(|end| *end > next.0));
            Ok(expected)
        };
        self.blocking(read).await.unwrap_or_default()
    }
}
