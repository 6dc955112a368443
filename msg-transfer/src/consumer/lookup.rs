//! What has to be known before a partition is fetched: the topic's id, the group's offsets, the partition's ends, and
//! the database's progress rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use machine::consumer::start::{Kept, Known, Lost};
use machine::lane::Failure;
use machine::{ConnectionNumber, NextOffset, Partition, Progress, RecordOffset};
use msg_common::error::chain;
use msg_common::kafka::ends::{self, Answers, Ends};
use msg_common::kafka::raw::topic_id;
use msg_common::kafka::{ClientError, RequestError, events};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use uuid::Uuid;

use super::identity::TopicIdentity;
use super::kept::KeptProbe;
use super::progress::ProgressStore;

/// How long one question to Kafka may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks Kafka and the database.
#[derive(Clone)]
pub struct Lookup {
    /// In the group's name, but never a member: it joins nothing, and may be asked from any thread.
    consumer: Arc<BaseConsumer>,
    kept: Arc<KeptProbe>,
    progress: ProgressStore,
    topic: String,
    identity: TopicIdentity,
}

/// What is known of some partitions of the topic.
#[derive(Debug)]
pub struct Answer {
    /// The topic's id; nil where the broker gives none.
    pub topic_id: Uuid,
    /// The connection that the progress rows were read over.
    pub connection_number: ConnectionNumber,
    /// Each partition whose leader responds, as soon as it does. Ends when no more will come.
    pub partitions: UnboundedReceiver<(Partition, Known)>,
    /// The dead letters of each that count for the limit.
    pub dead: HashMap<Partition, Vec<RecordOffset>>,
}

/// Why start offsets cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// A request to Kafka failed.
    #[error("kafka")]
    Kafka(#[from] RequestError),
    /// The progress rows were not read or written.
    #[error("database: {}", .0.text)]
    Database(Failure),
}

impl From<Failure> for LookupError {
    fn from(failure: Failure) -> Self {
        LookupError::Database(failure)
    }
}

impl Lookup {
    /// `config` names the group.
    pub fn new(
        config: &ClientConfig,
        progress: ProgressStore,
        topic: String,
        identity: TopicIdentity,
    ) -> Result<Self, rdkafka::error::KafkaError> {
        let kept = Arc::new(KeptProbe::new(config, topic.clone()));
        Ok(Lookup { consumer: Arc::new(config.create()?), kept, progress, topic, identity })
    }

    /// Asks for these partitions; `window` is how far back dead letters count, in offsets. The rows are read before the ends: if
    /// another process still stores, no row is above the end for that.
    pub async fn ask(&self, partitions: &[Partition], window: i64) -> Result<Answer, LookupError> {
        let topic_id = self.blocking(Lookup::topic_id).await?;
        let loaded = self.progress.load(topic_id, partitions, window).await?;
        let asked = partitions.to_vec();
        let committed = self.blocking(move |lookup| lookup.committed(&asked)).await?;
        let rows = loaded.rows.into_iter().collect();
        let (sender, receiver) = unbounded_channel();
        let (lookup, asked) = (self.clone(), partitions.to_vec());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = lookup.find(topic_id, &asked, &committed, &rows, &sender) {
                tracing::warn!(error = chain(&error), "the ends of the partitions are not known");
            }
        });
        Ok(Answer { topic_id, connection_number: loaded.connection_number, partitions: receiver, dead: loaded.dead })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Lookup) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let lookup = self.clone();
        let asked = tokio::task::spawn_blocking(move || ask(&lookup)).await;
        asked.map_err(RequestError::of_topic("send a request", &self.topic))?
    }

    /// Discards the events of the client.
    pub fn discard_events(&self) {
        events::discard(&self.consumer);
    }

    /// What the group has committed of each; a partition that is left out could not be read. Blocks.
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
                (Err(error), _) => tracing::warn!(partition, %error, "the committed offset is not known"),
            }
        }
        Ok(offsets)
    }

    /// Reports what is known of each partition as soon as its leader responds. Blocks.
    fn find(
        &self,
        topic_id: Uuid,
        partitions: &[Partition],
        committed: &HashMap<Partition, Option<NextOffset>>,
        rows: &HashMap<Partition, Progress>,
        report: &UnboundedSender<(Partition, Known)>,
    ) -> Result<(), RequestError> {
        let asked: Vec<Partition> = partitions.iter().filter(|asked| committed.contains_key(asked)).copied().collect();
        let mut result = Ok(());
        let each = |found: Answers<Ends>| {
            // A topic made anew counts from 0 again: the one's offsets are not the other's.
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
            let asked = found.iter().filter(|(_, ends)| ends.is_ok()).filter_map(|(partition, _)| {
                let epoch = rows.get(partition)?.leader_epoch;
                epoch.is_known().then_some((*partition, epoch))
            });
            let asked: Vec<_> = asked.collect();
            let kept = self.kept.ask(&asked, TIMEOUT).unwrap_or_else(|error| {
                tracing::warn!(error = chain(&error), "it is not known whether the logs are the same");
                HashMap::new()
            });
            for (partition, ends) in found {
                let ends = match ends {
                    Ok(ends) => ends,
                    Err(error) => {
                        tracing::warn!(partition, error = chain(&error), "the ends of the partition are not known");
                        continue;
                    }
                };
                let kept = match kept.get(&partition) {
                    Some(kept) => *kept,
                    None if asked.iter().any(|(asked, _)| *asked == partition) => {
                        tracing::warn!(partition, "the leader does not say whether the log is the same");
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
                // The receiver is dropped if the starts are not wanted any more.
                let _ = report.send((partition, known));
            }
        };
        ends::read(self.consumer.client(), &self.topic, &asked, TIMEOUT, each)?;
        result
    }

    /// Nil where the broker gives none. Blocks.
    fn topic_id(&self) -> Result<Uuid, RequestError> {
        let id = topic_id(self.consumer.client(), &self.topic, TIMEOUT)?;
        self.identity.record_topic_id(id).map_err(|error| self.no_id(ClientError::TopicId(error)))
    }

    fn no_id(&self, error: ClientError) -> RequestError {
        RequestError::of_topic("read the ID", &self.topic)(error)
    }

    /// Lowers a progress row: Kafka lost the records that it speaks of. An error means that the start has to be read again.
    pub async fn lower(
        &self,
        topic_id: Uuid,
        connection_number: ConnectionNumber,
        partition: Partition,
        lost: &Lost,
    ) -> Result<(), LookupError> {
        Ok(self.progress.lower(topic_id, connection_number, partition, lost).await?)
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What is known of the topic.
    pub fn identity(&self) -> &TopicIdentity {
        &self.identity
    }

    /// Looks whether the topic is still the one that it was; where that cannot be told, the next time will.
    pub async fn same_topic(&self) {
        let lookup = self.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || lookup.topic_id()).await {
            tracing::debug!(error = chain(&error), "not known whether the topic is the same");
        }
    }

    /// Those of the partitions that end above the offset that is expected of them, as far as their ends are known.
    pub async fn behind(&self, mut expected: Vec<(Partition, NextOffset)>) -> Vec<(Partition, NextOffset)> {
        let ask = move |lookup: &Lookup| {
            let partitions: Vec<Partition> = expected.iter().map(|(partition, _)| *partition).collect();
            let mut known = HashMap::new();
            let each = |found: Answers<Ends>| {
                known.extend(found.into_iter().filter_map(|(partition, ends)| Some((partition, ends.ok()?.end))));
            };
            ends::read(lookup.consumer.client(), &lookup.topic, &partitions, TIMEOUT, each)?;
            expected.retain(|(partition, next)| known.get(partition).is_some_and(|end| *end > next.0));
            Ok(expected)
        };
        self.blocking(ask).await.unwrap_or_default()
    }
}
