//! Owns what the demo and the lab ask of Kafka: where each partition ends, and what the transfer's group has committed.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};

/// For one question.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A client in the name of the transfer's group that never joins it.
#[derive(Clone)]
pub struct Offsets {
    config: ClientConfig,
    consumer: Arc<Mutex<Arc<BaseConsumer<Quiet>>>>,
    topic: String,
    partitions: Arc<AtomicI32>,
}

struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for Quiet {}

impl Offsets {
    /// Connects when first asked.
    pub fn new(bootstrap: &str, group: &str, topic: &str, partitions: i32) -> Result<Offsets, KafkaError> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("group.id", group).set("client.id", "msg-dev");
        let consumer = Arc::new(Mutex::new(Arc::new(config.create_with_context(Quiet)?)));
        Ok(Offsets { config, consumer, topic: topic.to_owned(), partitions: Arc::new(AtomicI32::new(partitions)) })
    }

    /// From now on the topic has so many partitions.
    pub fn grown_to(&self, partitions: i32) {
        self.partitions.store(partitions, Ordering::Relaxed);
    }

    fn consumer(&self) -> MutexGuard<'_, Arc<BaseConsumer<Quiet>>> {
        self.consumer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partitions(&self) -> std::ops::Range<i32> {
        0..self.partitions.load(Ordering::Relaxed)
    }

    /// The next offset to read by the group, a partition; 0 where nothing was committed.
    pub async fn committed(&self) -> Result<Vec<i64>, KafkaError> {
        self.ask(|this, consumer| {
            let mut asked = TopicPartitionList::new();
            let partitions = this.partitions();
            for partition in partitions.clone() {
                asked.add_partition(&this.topic, partition);
            }
            let answer = consumer.committed_offsets(asked, ANSWER_WITHIN)?;
            let next = |partition| match answer.find_partition(&this.topic, partition).map(|found| found.offset()) {
                Some(Offset::Offset(offset)) => offset,
                _ => 0,
            };
            Ok(partitions.map(next).collect())
        })
        .await
    }

    /// The offset that the next record of each partition gets.
    pub async fn ends(&self) -> Result<Vec<i64>, KafkaError> {
        self.ask(|this, consumer| {
            let end = |partition| consumer.fetch_watermarks(&this.topic, partition, ANSWER_WITHIN).map(|(_, end)| end);
            this.partitions().map(end).collect()
        })
        .await
    }

    /// The client blocks, so it is asked on a thread for that.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Offsets, &BaseConsumer<Quiet>) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let this = self.clone();
        let ask = move || {
            let consumer = Arc::clone(&this.consumer());
            let answer = question(&this, &consumer);
            if answer.is_err() {
                // By itself the client looks again for leaders, and for new partitions, only every five minutes. When all brokers were
                // away at the same time, it may not find them again at all.
                *this.consumer() = Arc::new(this.config.create_with_context(Quiet)?);
            }
            answer
        };
        let answer = tokio::task::spawn_blocking(ask).await;
        answer.expect("asking for offsets does not panic")
    }
}
