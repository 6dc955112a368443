//! How far the database is behind Kafka: for each partition of the topic, in records and in time, and for how long what
//! is not stored yet is still kept. Whoever asks joins no group and moves no offset.

pub mod gauges;
pub mod kafka;
pub mod states;
pub mod watchdog;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use msg_common::kafka::events;
use msg_common::kafka::topic::{self, Topic};
use msg_common::partition::Partition;
use msg_common::postgres::{Pool, describe_pool};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::KafkaResult;
use uuid::Uuid;

use self::kafka::{Ends, Group, LogContext, Reader, TIMEOUT};
use crate::failure;
use crate::lane::sql;

/// Asks Kafka and the database. Cheap to clone.
#[derive(Clone)]
pub struct LagReader {
    admin: Arc<AdminClient<LogContext>>,
    reader: Arc<Reader>,
    topic: String,
    pool: Pool,
}

/// The whole topic, at one moment.
#[derive(Clone, Debug)]
pub struct Lag {
    /// The topic's id; nil where the broker gives none.
    pub topic_id: Uuid,
    /// How the topic is set up.
    pub topic: Topic,
    /// Each partition that answered, in order.
    pub partitions: Vec<PartitionLag>,
    /// Those that did not: they have no leader, or it is away.
    pub silent: Vec<Partition>,
}

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionLag {
    /// Which one.
    pub partition: Partition,
    /// The group's committed offset, if it has one.
    pub committed: Option<i64>,
    /// The next offset to store, as the database says; without a row nothing is stored.
    pub progress: Option<i64>,
    /// Where the partition begins: what is below is deleted.
    pub start: i64,
    /// Where it ends.
    pub end: i64,
    /// When the oldest record that is not stored was written. `None` where all is stored, or where it did not come in time.
    pub oldest: Option<SystemTime>,
}

/// Who did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LagError {
    /// Kafka.
    #[error("kafka: {0}")]
    Kafka(String),
    /// The database.
    #[error("database: {0}")]
    Database(String),
}

impl Lag {
    /// Records that are in Kafka and not stored.
    pub fn behind(&self) -> i64 {
        self.partitions.iter().map(PartitionLag::behind).sum()
    }

    /// Offsets that Kafka deleted before they were stored.
    pub fn deleted(&self) -> i64 {
        self.partitions.iter().map(PartitionLag::deleted).sum()
    }

    /// The age of the partition that is behind most; `None` when one's is not known.
    pub fn most_behind(&self, now: SystemTime) -> Option<Duration> {
        let ages: Option<Vec<Duration>> = self.partitions.iter().map(|lag| lag.age(now)).collect();
        ages.map(|ages| ages.into_iter().max().unwrap_or_default())
    }

    /// How long until the first record that is not stored may be deleted.
    pub fn soonest_deleted(&self, now: SystemTime) -> Option<Duration> {
        self.partitions.iter().filter_map(|lag| lag.until_deleted(now, self.topic.retention)).min()
    }
}

impl PartitionLag {
    /// The first offset that is not known to be stored.
    pub fn next(&self) -> i64 {
        self.progress.unwrap_or(0)
    }

    /// The first offset that Kafka keeps and that is not known to be stored.
    pub fn unstored_from(&self) -> i64 {
        self.next().max(self.start)
    }

    /// Records that are in Kafka and not stored.
    pub fn behind(&self) -> i64 {
        (self.end - self.unstored_from()).max(0)
    }

    /// Offsets that Kafka deleted before they were stored, or that no database row speaks of.
    pub fn deleted(&self) -> i64 {
        (self.start - self.next()).max(0)
    }

    /// The age of the oldest record that is not stored: 0 when all is stored, `None` when it is not known.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        if self.behind() == 0 {
            return Some(Duration::ZERO);
        }
        // A clock that is ahead of ours is no reason for a negative age.
        self.oldest.map(|oldest| now.duration_since(oldest).unwrap_or_default())
    }

    /// How long until the topic's retention may delete it. `None` when nothing waits, or it is kept for ever, or its age
    /// is not known.
    pub fn until_deleted(&self, now: SystemTime, retention: Option<Duration>) -> Option<Duration> {
        let deleted_at = self.oldest?.checked_add(retention?)?;
        Some(deleted_at.duration_since(now).unwrap_or_default())
    }
}

impl LagReader {
    /// `config` names the group. Connects when first asked.
    pub fn new(config: &ClientConfig, topic: String, pool: Pool) -> KafkaResult<Self> {
        let admin = Arc::new(AdminClient::from_config_and_context(config, LogContext::default())?);
        let reader = Arc::new(Reader::new(config, topic.clone())?);
        Ok(LagReader { admin, reader, topic, pool })
    }

    /// The topic's settings.
    pub async fn topic(&self) -> Result<Topic, topic::TopicError> {
        self.describe(&self.topic).await
    }

    /// The settings of another topic.
    pub async fn describe(&self, topic: &str) -> Result<Topic, topic::TopicError> {
        let described = topic::describe(&self.admin, topic, TIMEOUT).await;
        events::drain(self.admin.inner());
        described.map_err(|error| match error {
            // A time-out or a lost connection does not say why; the client was told.
            topic::TopicError::Unreachable(text) => {
                topic::TopicError::Unreachable(self.admin.inner().context().0.behind(text))
            }
            error @ topic::TopicError::Missing(_) => error,
        })
    }

    /// The topic's id; nil where the broker gives none.
    pub async fn topic_id(&self) -> Result<Uuid, String> {
        self.blocking(Reader::topic_id).await
    }

    /// The group; `None` if there is none.
    pub async fn group(&self, group: &str) -> Result<Option<Group>, String> {
        let group = group.to_owned();
        self.blocking(move |reader| reader.group(&group)).await
    }

    /// Reads all of it, of all partitions.
    pub async fn read(&self) -> Result<Lag, LagError> {
        let mut lag = self.count().await?;
        self.add_ages(&mut lag).await?;
        Ok(lag)
    }

    /// All partitions, without the age of anything.
    pub async fn count(&self) -> Result<Lag, LagError> {
        self.blocking(|reader| {
            reader.forget_events();
            Ok(())
        })
        .await
        .map_err(LagError::Kafka)?;
        let topic = self.topic().await.map_err(|error| LagError::Kafka(error.to_string()))?;
        let topic_id = self.topic_id().await.map_err(LagError::Kafka)?;
        let partitions: Vec<Partition> = (0..topic.partitions).collect();
        let asked = partitions.clone();
        let (ends, silent) = self.blocking(move |reader| reader.ends(&asked)).await.map_err(LagError::Kafka)?;
        // After the ends: what is stored meanwhile makes the lag smaller, never larger than it was.
        let progress = self.progress(topic_id, &partitions).await.map_err(LagError::Database)?;
        let partitions = ends.into_iter().map(|ends| lag_of(ends, progress.get(&ends.partition).copied())).collect();
        Ok(Lag { topic_id, topic, partitions, silent })
    }

    /// Adds when the oldest record of each partition that is behind was written.
    pub async fn add_ages(&self, lag: &mut Lag) -> Result<(), LagError> {
        let behind = lag.partitions.iter().filter(|lag| lag.behind() > 0);
        let wanted: Vec<_> = behind.map(|lag| (lag.partition, lag.next().max(lag.start))).collect();
        let oldest = self.blocking(move |reader| reader.written_at(&wanted)).await.map_err(LagError::Kafka)?;
        for lag in &mut lag.partitions {
            lag.oldest = oldest.written.get(&lag.partition).copied();
        }
        Ok(())
    }

    /// Those partitions that certainly hold no record from an offset on.
    pub async fn without_records(&self, from: Vec<(Partition, i64)>) -> HashSet<Partition> {
        self.blocking(move |reader| reader.written_at(&from)).await.unwrap_or_default().none
    }

    /// When the oldest record of each partition that has any was written; an error unless all of them tell.
    pub async fn oldest_kept(&self) -> Result<HashMap<Partition, SystemTime>, LagError> {
        let topic = self.topic().await.map_err(|error| LagError::Kafka(error.to_string()))?;
        let partitions: Vec<Partition> = (0..topic.partitions).collect();
        let (ends, silent) = self.blocking(move |reader| reader.ends(&partitions)).await.map_err(LagError::Kafka)?;
        if !silent.is_empty() {
            return Err(LagError::Kafka(format!("partitions {silent:?} do not tell their ends")));
        }
        let wanted: Vec<_> = ends.iter().filter(|ends| ends.end > ends.start).map(|e| (e.partition, e.start)).collect();
        let asked = wanted.clone();
        let found = self.blocking(move |reader| reader.written_at(&asked)).await.map_err(LagError::Kafka)?.written;
        if found.len() < wanted.len() {
            return Err(LagError::Kafka("a partition's oldest record did not come in time".to_owned()));
        }
        Ok(found)
    }

    async fn progress(&self, topic_id: Uuid, partitions: &[Partition]) -> Result<HashMap<Partition, i64>, String> {
        let client = self.pool.get().await.map_err(|error| describe_pool(&error))?;
        let statement = client.prepare_cached(sql::LOAD_PROGRESS).await.map_err(|error| failure::describe(&error))?;
        let rows = client.query(&statement, &[&topic_id, &partitions]).await;
        let rows = rows.map_err(|error| failure::describe(&error))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Reader) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let reader = self.reader.clone();
        tokio::task::spawn_blocking(move || ask(&reader)).await.map_err(|error| error.to_string())?
    }
}

fn lag_of(ends: Ends, progress: Option<i64>) -> PartitionLag {
    let Ends { partition, committed, start, end } = ends;
    PartitionLag { partition, committed, progress, start, end, oldest: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag() -> PartitionLag {
        PartitionLag { partition: 0, committed: Some(10), progress: Some(10), start: 5, end: 30, oldest: None }
    }

    #[test]
    fn what_is_behind_is_counted_from_the_progress_row() {
        assert_eq!((lag().behind(), lag().deleted()), (20, 0));
        let without = PartitionLag { progress: None, ..lag() };
        assert_eq!((without.behind(), without.deleted()), (25, 5));
        let overtaken = PartitionLag { start: 12, ..lag() };
        assert_eq!((overtaken.behind(), overtaken.deleted()), (18, 2));
        let ahead = PartitionLag { progress: Some(40), ..lag() };
        assert_eq!((ahead.behind(), ahead.deleted()), (0, 0));
    }

    #[test]
    fn time_is_told_only_where_it_is_known() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let written = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let retention = Some(Duration::from_secs(500));
        assert_eq!(lag().age(now), None);
        assert_eq!(PartitionLag { end: 10, ..lag() }.age(now), Some(Duration::ZERO));
        let waiting = PartitionLag { oldest: written(900), ..lag() };
        assert_eq!(waiting.age(now), Some(Duration::from_secs(100)));
        assert_eq!(waiting.until_deleted(now, retention), Some(Duration::from_secs(400)));
        assert_eq!(waiting.until_deleted(now, None), None);
        let late = PartitionLag { oldest: written(1), ..lag() };
        assert_eq!(late.until_deleted(now, retention), Some(Duration::ZERO));
        let future = PartitionLag { oldest: written(2000), ..lag() };
        assert_eq!(future.age(now), Some(Duration::ZERO));
    }
}
