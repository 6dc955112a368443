//! Owns the offsets that the demo and the fault lab read from Kafka: the end offset of each partition, and the next
//! offset that the transfer's group has committed.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the transfer's group that never joins the group.
#[derive(Clone)]
pub struct Offsets {
    config: ClientConfig,
    consumer: Arc<Mutex<Arc<BaseConsumer<LogContext>>>>,
    topic: String,
    partitions: Arc<AtomicI32>,
}

struct LogContext;

impl ClientContext for LogContext {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for LogContext {}

impl Offsets {
    /// Creates the client; it connects at the first request.
    pub fn new(bootstrap: &str, group: &str, topic: &str, partitions: i32) -> Result<Offsets, KafkaError> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("group.id", group).set("client.id", "msg-dev");
        let consumer = Arc::new(Mutex::new(Arc::new(config.create_with_context(LogContext)?)));
        Ok(Offsets { config, consumer, topic: topic.to_owned(), partitions: Arc::new(AtomicI32::new(partitions)) })
    }

    /// Sets the number of partitions after an operator has added some.
    pub fn set_partitions(&self, partitions: i32) {
        self.partitions.store(partitions, Ordering::Relaxed);
    }

    fn consumer(&self) -> MutexGuard<'_, Arc<BaseConsumer<LogContext>>> {
        self.consumer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partitions(&self) -> std::ops::Range<i32> {
        0..self.partitions.load(Ordering::Relaxed)
    }

    /// Returns the next offset that the group has committed, for each partition; 0 if the group has committed none.
    pub async fn committed(&self) -> Result<Vec<i64>, KafkaError> {
        self.request(|this, consumer| {
            let mut requested = TopicPartitionList::new();
            let partitions = this.partitions();
            for partition in partitions.clone() {
                requested.add_partition(&this.topic, partition);
            }
            let response = consumer.committed_offsets(requested, REQUEST_TIMEOUT)?;
            let next = |partition| match response.find_partition(&this.topic, partition).map(|found| found.offset()) {
                Some(Offset::Offset(offset)) => offset,
                _ => 0,
            };
            Ok(partitions.map(next).collect())
        })
        .await
    }

    /// Returns the end offset of each partition.
    pub async fn ends(&self) -> Result<Vec<i64>, KafkaError> {
        self.request(|this, consumer| {
            let end =
                |partition| consumer.fetch_watermarks(&this.topic, partition, REQUEST_TIMEOUT).map(|(_, end)| end);
            this.partitions().map(end).collect()
        })
        .await
    }

    /// Sends a request on a thread of its own, since the client blocks.
    async fn request<T: Send + 'static>(
        &self,
        send: impl FnOnce(&Offsets, &BaseConsumer<LogContext>) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let this = self.clone();
        let request = move || {
            let consumer = Arc::clone(&this.consumer());
            let response = send(&this, &consumer);
            if response.is_err() {
                // Replace the client. A client refreshes its leaders and partitions only every five minutes; after all
                // brokers were down at the same time, it may never find them again.
                *this.consumer() = Arc::new(this.config.create_with_context(LogContext)?);
            }
            response
        };
        let response = tokio::task::spawn_blocking(request).await;
        response.expect("reading offsets does not panic")
    }
}
