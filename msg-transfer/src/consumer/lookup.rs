//! What has to be known before a partition is fetched: the topic's id, the group's offsets, the partition's ends, and
//! the database's progress rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use machine::consumer::start::Known;
use machine::{Generation, NextOffset, Partition, RecordOffset};
use msg_common::kafka::raw::topic_id;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use uuid::Uuid;

use super::identity::TopicIdentity;
use super::progress::ProgressKeeper;

/// How long one question to Kafka may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks Kafka and the database.
#[derive(Clone)]
pub struct Lookup {
    /// In the group's name, but never a member: it joins nothing, and may be asked from any thread.
    consumer: Arc<BaseConsumer>,
    progress: ProgressKeeper,
    topic: String,
    identity: TopicIdentity,
}

/// What is known of some partitions of the topic.
#[derive(Debug)]
pub struct Answer {
    /// The topic's id; nil where the broker gives none.
    pub topic_id: Uuid,
    /// The connection that the progress rows were read over.
    pub generation: Generation,
    /// Each partition that was asked for, and has a leader to tell its ends.
    pub partitions: Vec<(Partition, Known)>,
    /// The dead letters of each that count for the limit.
    pub dead: HashMap<Partition, Vec<RecordOffset>>,
}

/// Which of them did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// Kafka.
    #[error("kafka: {0}")]
    Kafka(String),
    /// The database.
    #[error("database: {0}")]
    Database(String),
}

impl Lookup {
    /// `config` names the group.
    pub fn new(
        config: &ClientConfig,
        progress: ProgressKeeper,
        topic: String,
        identity: TopicIdentity,
    ) -> Result<Self, rdkafka::error::KafkaError> {
        Ok(Lookup { consumer: Arc::new(config.create()?), progress, topic, identity })
    }

    /// Asks for these partitions; `window` is how far back dead letters count, in offsets.
    pub async fn ask(&self, partitions: &[Partition], window: i64) -> Result<Answer, LookupError> {
        let (lookup, asked) = (self.clone(), partitions.to_vec());
        let kafka = tokio::task::spawn_blocking(move || lookup.ask_kafka(&asked)).await;
        let (topic_id, mut known) = kafka.map_err(|error| LookupError::Kafka(error.to_string()))??;
        let loaded = self
            .progress
            .load(topic_id, partitions, window)
            .await
            .map_err(|failure| LookupError::Database(failure.text))?;
        for (partition, next) in loaded.rows {
            if let Some(known) = known.get_mut(&partition) {
                known.progress = Some(next);
            }
        }
        let partitions = known.into_iter().collect();
        Ok(Answer { topic_id, generation: loaded.generation, partitions, dead: loaded.dead })
    }

    /// Throws away what the client has to tell: its answers tell enough, and while Kafka is away it would pile up.
    pub fn forget_events(&self) {
        while self.consumer.poll(Duration::ZERO).is_some() {}
    }

    /// Blocks.
    fn ask_kafka(&self, partitions: &[Partition]) -> Result<(Uuid, HashMap<Partition, Known>), LookupError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| LookupError::Kafka(format!("{what}: {error}"));
        let id = self.topic_id()?;
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        let committed =
            self.consumer.committed_offsets(list, TIMEOUT).map_err(|error| failed("committed offsets", &error))?;
        let mut known = HashMap::new();
        for element in committed.elements() {
            element.error().map_err(|error| failed("committed offset", &error))?;
            let partition = element.partition();
            // One without a leader must not hold the others up.
            let (low, high) = match self.consumer.fetch_watermarks(&self.topic, partition, TIMEOUT) {
                Ok(ends) => ends,
                Err(error) => {
                    tracing::warn!(partition, %error, "the partition does not tell its ends");
                    continue;
                }
            };
            let committed = match element.offset() {
                Offset::Offset(offset) => Some(NextOffset(offset)),
                _ => None,
            };
            let ends = Known { committed, progress: None, low: NextOffset(low), high: NextOffset(high) };
            known.insert(partition, ends);
        }
        // A topic made anew counts from 0 again: the one's offsets are not the other's.
        if self.topic_id()? != id {
            return Err(LookupError::Kafka("the topic's id is told by some brokers alone".to_owned()));
        }
        Ok((id, known))
    }

    /// Nil where the broker gives none. Blocks.
    fn topic_id(&self) -> Result<Uuid, LookupError> {
        let told = topic_id(self.consumer.client(), &self.topic, TIMEOUT);
        let id = told.and_then(|told| self.identity.told(told).map_err(str::to_owned));
        id.map_err(|error| LookupError::Kafka(format!("topic id: {error}")))
    }

    /// What is known of the topic.
    pub fn identity(&self) -> &TopicIdentity {
        &self.identity
    }

    /// Looks whether the topic is still the one that it was; where that cannot be told, the next time will.
    pub async fn same_topic(&self) {
        let lookup = self.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || lookup.topic_id()).await {
            tracing::debug!(%error, "not known whether the topic is the same");
        }
    }

    /// Those of the partitions that end above the offset that is expected of them; none where not all tell.
    pub async fn behind(&self, mut expected: Vec<(Partition, NextOffset)>) -> Vec<(Partition, NextOffset)> {
        let lookup = self.clone();
        let ask = move || {
            let end = |partition| lookup.consumer.fetch_watermarks(&lookup.topic, partition, TIMEOUT);
            let ends: Result<Vec<_>, _> = expected.iter().map(|(partition, _)| end(*partition)).collect();
            let mut ends = ends.ok()?.into_iter();
            expected.retain(|(_, next)| ends.next().is_some_and(|(_, high)| high > next.0));
            Some(expected)
        };
        tokio::task::spawn_blocking(ask).await.ok().flatten().unwrap_or_default()
    }
}
