//! The lag of the topic: for each partition in records and in time, and the retention headroom. Reading it joins no
//! group and commits no offset.

mod awake;
mod background;
pub mod gauges;
pub(crate) mod kafka;
pub(crate) mod members;
pub(crate) mod states;
mod unknown;
mod waiting;
pub(crate) mod watchdog;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use msg_common::kafka::topic::{self, Topic};
use msg_common::kafka::{ClientError, ClientPurpose, KafkaClient, RequestError, events};
use msg_common::partition::Partition;
use msg_common::postgres::{DatabaseError, Pool};
use rdkafka::admin::AdminClient;
use uuid::Uuid;

use self::kafka::{Ends, LogContext, Oldest, Reader, TIMEOUT};
use self::members::Group;
use crate::config::Config;
use crate::lane::sql;

/// Reads the lag from Kafka and the database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LagReader {
    admin: Arc<KafkaClient<AdminClient<LogContext>>>,
    reader: Arc<Reader>,
    topic: String,
    pool: Pool,
}

/// The lag of the whole topic, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Lag {
    pub topic: Topic,
    /// Each partition whose leader responded, in order.
    pub partitions: Vec<PartitionLag>,
    /// The partitions without a leader, or whose leader did not respond.
    pub unreachable: Vec<Partition>,
}

/// The lag of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartitionLag {
    pub partition: Partition,
    /// The group's committed offset, if it has one.
    pub committed: Option<i64>,
    /// The next offset of the progress row. Without a row, no record is completed.
    pub progress: Option<i64>,
    /// The first offset that Kafka keeps: the records below it are deleted.
    pub start: i64,
    /// The first offset of an open transaction, or the end offset if no transaction is open. No transfer receives the
    /// records from here on until the transaction ends.
    pub stable: i64,
    pub end: i64,
    /// When the oldest record that is not completed was written. `None` if all are completed, or if it was not received
    /// in time.
    pub oldest: Option<SystemTime>,
}

/// Why the lag cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LagError {
    /// A request to Kafka failed.
    #[error("kafka")]
    Kafka(#[from] RequestError),
    /// The progress rows cannot be read.
    #[error("database")]
    Database(#[from] DatabaseError),
}

impl Lag {
    /// Returns the number of records in Kafka that are not completed.
    pub(crate) fn records(&self) -> i64 {
        self.partitions.iter().map(PartitionLag::records).sum()
    }

    /// Returns the number of offsets that Kafka deleted before their records were completed.
    pub(crate) fn expired_unstored(&self) -> i64 {
        self.partitions.iter().map(PartitionLag::expired_unstored).sum()
    }

    /// Returns the longest lag time of all partitions; `None` if that of one partition is not known.
    pub(crate) fn longest_age(&self, now: SystemTime) -> Option<Duration> {
        let ages: Option<Vec<Duration>> = self.partitions.iter().map(|lag| lag.age(now)).collect();
        ages.map(|ages| ages.into_iter().max().unwrap_or_default())
    }

    /// Returns the shortest retention headroom of all partitions; `None` if no partition has one.
    pub(crate) fn least_headroom(&self, now: SystemTime) -> Option<Duration> {
        self.partitions.iter().filter_map(|lag| lag.retention_headroom(now, self.topic.retention)).min()
    }

    /// Returns the lag of a partition, unless its leader did not respond.
    pub(crate) fn of(&self, partition: Partition) -> Option<&PartitionLag> {
        self.partitions.iter().find(|lag| lag.partition == partition)
    }

    /// Adds the times of the oldest records.
    fn add(&mut self, oldest: &Oldest) {
        for lag in &mut self.partitions {
            lag.oldest = oldest.written.get(&lag.partition).copied();
        }
    }
}

impl PartitionLag {
    /// Returns the next offset of the progress row, 0 without a row.
    pub(crate) fn next(&self) -> i64 {
        self.progress.unwrap_or(0)
    }

    /// Returns the first offset that Kafka keeps and whose record is not known to be completed.
    pub(crate) fn unstored_from(&self) -> i64 {
        self.next().max(self.start)
    }

    /// Returns the number of records in Kafka that are not completed.
    pub(crate) fn records(&self) -> i64 {
        (self.end - self.unstored_from()).max(0)
    }

    /// Returns the offset up to which the transfer receives records. If it is configured to read uncommitted records,
    /// an open transaction does not hold it, and its progress shows that.
    pub(crate) fn readable_end(&self) -> i64 {
        if self.unstored_from() > self.stable { self.end } else { self.stable }
    }

    /// Returns the number of offsets that Kafka deleted before their records were completed, as far as the progress row
    /// shows.
    pub(crate) fn expired_unstored(&self) -> i64 {
        (self.start - self.next()).max(0)
    }

    /// Returns the age of the oldest record that is not completed: 0 if all are completed, `None` if it is not known.
    pub(crate) fn age(&self, now: SystemTime) -> Option<Duration> {
        if self.records() == 0 {
            return Some(Duration::ZERO);
        }
        // The clock of the record's producer may be ahead of ours; the age is not negative then.
        self.oldest.map(|oldest| now.duration_since(oldest).unwrap_or_default())
    }

    /// Returns the time until the topic's retention may delete that record. `None` if all records are completed, if
    /// retention is unlimited, or if the age is not known.
    pub(crate) fn retention_headroom(&self, now: SystemTime, retention: Option<Duration>) -> Option<Duration> {
        let deleted_at = self.oldest?.checked_add(retention?)?;
        Some(deleted_at.duration_since(now).unwrap_or_default())
    }
}

impl LagReader {
    /// Creates a reader for the group and the topic of `config`, which connects with its first request.
    pub(crate) fn new(config: &Config, pool: Pool) -> Result<Self, RequestError> {
        let topic = config.kafka.kafka_topic.clone();
        let admin = config.lookup_config(ClientPurpose::TransferAdmin);
        let admin = admin.create_with_context(LogContext::default());
        let admin = Arc::new(admin.map_err(RequestError::create)?);
        let reader =
            Reader::new(&config.lookup_config(ClientPurpose::Lag), topic.clone()).map_err(RequestError::create)?;
        Ok(LagReader { admin, reader: Arc::new(reader), topic, pool })
    }

    pub(crate) async fn topic(&self) -> Result<Topic, RequestError> {
        self.describe(&self.topic).await
    }

    /// Reads the settings of another topic.
    pub(crate) async fn describe(&self, topic: &str) -> Result<Topic, RequestError> {
        let described = topic::describe(&self.admin, topic, TIMEOUT).await;
        events::drain(self.admin.inner());
        let causes = &self.admin.inner().context().0;
        if described.is_err() {
            causes.probed().await;
        }
        // A timeout or a lost connection does not name its cause. The client's callbacks may have received one.
        described.map_err(|error| error.explained(causes))
    }

    /// Reads the topic's ID; nil if the brokers return none.
    pub(crate) async fn topic_id(&self) -> Result<Uuid, RequestError> {
        self.blocking(Reader::topic_id).await
    }

    /// Reads the group; `None` if it does not exist.
    pub(crate) async fn group(&self, group: &str) -> Result<Option<Group>, RequestError> {
        let group = group.to_owned();
        self.blocking(move |reader| reader.group(&group)).await
    }

    /// Reads the lag of all partitions, in records and time.
    pub(crate) async fn read(&self) -> Result<Lag, LagError> {
        let mut lag = self.count().await?;
        self.add_ages(&mut lag).await?;
        Ok(lag)
    }

    /// Reads the lag of all partitions in records, without ages.
    pub(crate) async fn count(&self) -> Result<Lag, LagError> {
        self.blocking(|reader| {
            reader.discard_events();
            Ok(())
        })
        .await?;
        let topic = self.topic().await?;
        let topic_id = self.topic_id().await?;
        let partitions: Vec<Partition> = (0..topic.partitions).collect();
        let wanted = partitions.clone();
        let (ends, unreachable) = self.blocking(move |reader| reader.ends(&wanted)).await?;
        // After the ends: records that are stored in the meantime make the lag smaller, and never larger than it was.
        let progress = self.progress(topic_id, &partitions).await?;
        let partitions = ends.into_iter().map(|ends| lag_of(ends, progress.get(&ends.partition).copied())).collect();
        Ok(Lag { topic, partitions, unreachable })
    }

    /// Adds the time of the oldest record that is not completed of each partition with a lag.
    pub(crate) async fn add_ages(&self, lag: &mut Lag) -> Result<(), LagError> {
        lag.add(&self.oldest(lag).await?);
        Ok(())
    }

    /// Reads the oldest record that is not completed of each partition with a lag.
    pub(crate) async fn oldest(&self, lag: &Lag) -> Result<Oldest, RequestError> {
        let behind = lag.partitions.iter().filter(|lag| lag.records() > 0);
        let wanted: Vec<_> = behind.map(|lag| (lag.partition, lag.unstored_from())).collect();
        self.blocking(move |reader| reader.written_at(&wanted)).await
    }

    /// Returns the partitions that certainly contain no record at or after an offset, up to the stable offset.
    pub(crate) async fn without_records(&self, from: Vec<(Partition, i64)>) -> HashSet<Partition> {
        self.blocking(move |reader| reader.written_at(&from)).await.unwrap_or_default().none
    }

    /// Returns when the oldest record of each partition was written, if it has one. Fails if that of one partition
    /// cannot be read.
    pub(crate) async fn oldest_kept(&self) -> Result<HashMap<Partition, SystemTime>, RequestError> {
        let topic = self.topic().await?;
        let partitions: Vec<Partition> = (0..topic.partitions).collect();
        let (ends, unreachable) = self.blocking(move |reader| reader.ends(&partitions)).await?;
        if !unreachable.is_empty() {
            return Err(RequestError::of_topic("read the end offsets", &self.topic)(ClientError::Silent(unreachable)));
        }
        let wanted: Vec<_> = ends.iter().filter(|ends| ends.end > ends.start).map(|e| (e.partition, e.start)).collect();
        let positions = wanted.clone();
        let found = self.blocking(move |reader| reader.written_at(&positions)).await?.written;
        match wanted.iter().find(|(partition, _)| !found.contains_key(partition)) {
            Some((partition, _)) => {
                let error = RequestError::of_partition("read the oldest record", &self.topic, *partition);
                Err(error(ClientError::TimedOut))
            }
            None => Ok(found),
        }
    }

    async fn progress(
        &self,
        topic_id: Uuid,
        partitions: &[Partition],
    ) -> Result<HashMap<Partition, i64>, DatabaseError> {
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(sql::LOAD_PROGRESS).await?;
        let rows = client.query(&statement, &[&topic_id, &partitions]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let reader = self.reader.clone();
        let result = tokio::task::spawn_blocking(move || read(&reader)).await;
        result.map_err(RequestError::of_topic("send a request", &self.topic))?
    }
}

fn lag_of(ends: Ends, progress: Option<i64>) -> PartitionLag {
    let Ends { partition, committed, start, stable, end } = ends;
    PartitionLag { partition, committed, progress, start, stable, end, oldest: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag() -> PartitionLag {
        PartitionLag {
            partition: 0,
            committed: Some(10),
            progress: Some(10),
            start: 5,
            stable: 30,
            end: 30,
            oldest: None,
        }
    }

    #[test]
    fn lag_is_counted_from_the_progress_row() {
        assert_eq!((lag().records(), lag().expired_unstored()), (20, 0));
        let without = PartitionLag { progress: None, ..lag() };
        assert_eq!((without.records(), without.expired_unstored()), (25, 5));
        let overtaken = PartitionLag { start: 12, ..lag() };
        assert_eq!((overtaken.records(), overtaken.expired_unstored()), (18, 2));
        let ahead = PartitionLag { progress: Some(40), ..lag() };
        assert_eq!((ahead.records(), ahead.expired_unstored()), (0, 0));
    }

    #[test]
    fn lag_time_and_headroom_are_none_if_not_known() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let written = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let retention = Some(Duration::from_secs(500));
        assert_eq!(lag().age(now), None);
        assert_eq!(PartitionLag { end: 10, ..lag() }.age(now), Some(Duration::ZERO));
        let waiting = PartitionLag { oldest: written(900), ..lag() };
        assert_eq!(waiting.age(now), Some(Duration::from_secs(100)));
        assert_eq!(waiting.retention_headroom(now, retention), Some(Duration::from_secs(400)));
        assert_eq!(waiting.retention_headroom(now, None), None);
        let late = PartitionLag { oldest: written(1), ..lag() };
        assert_eq!(late.retention_headroom(now, retention), Some(Duration::ZERO));
        let future = PartitionLag { oldest: written(2000), ..lag() };
        assert_eq!(future.age(now), Some(Duration::ZERO));
    }
}
