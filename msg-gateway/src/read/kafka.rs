//! What GetMsgStatus asks of Kafka: which topic it is, where a partition begins and ends, and whether its leader has more.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use msg_common::kafka::{KafkaOptions, raw};
use msg_common::partition::Partition;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::{Mutex, Semaphore};
use uuid::Uuid;

use crate::status::Failure;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How long the topic's id is taken for known.
const TOPIC_ID_AGE: Duration = Duration::from_secs(10);

/// How long a leader may take to say that an offset is out of range; and the first time, when the client has to connect.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const FIRST_PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

/// How often it is logged that Kafka does not answer.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Most requests at a time: each blocks a thread, and goes on when its caller has gone.
const MAX_REQUESTS: usize = 8;

/// The topic that messages go through.
pub(crate) struct Topic {
    /// Of its own: on the sending one's connections a request would wait behind the sends. A producer, because that has a
    /// thread which takes the client's events.
    client: Arc<ThreadedProducer<LogContext>>,
    name: String,
    /// When the id was asked for last, and the answer.
    last: Mutex<Option<(Instant, Result<Uuid, Failure>)>>,
    requests: Arc<Semaphore>,
    /// Settings of the consumer that finds out where a leader's log ends.
    probing: ClientConfig,
    /// That consumer, while its last answer was definite. One request at a time.
    probe: Arc<Mutex<Option<Probe>>>,
    /// When a request without an answer was logged last.
    warned: std::sync::Mutex<Option<Instant>>,
}

type Probe = BaseConsumer<LogContext>;

impl Topic {
    /// Connects by itself.
    pub(crate) fn new(options: &KafkaOptions) -> KafkaResult<Self> {
        let mut config = options.client_config();
        config.set("socket.timeout.ms", TIMEOUT.as_millis().to_string());
        Ok(Topic {
            client: Arc::new(config.create_with_context(LogContext)?),
            name: options.kafka_topic.clone(),
            last: Mutex::default(),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            probing: probing(options.client_config()),
            probe: Arc::default(),
            warned: std::sync::Mutex::default(),
        })
    }

    /// The topic's id, nil where the brokers give none. A topic that was made anew has another: it is as old as `arrival` at
    /// most if it is to be `fresh`, and else at most as old as we keep it.
    pub(crate) async fn id(&self, arrival: Instant, fresh: bool) -> Result<Uuid, Failure> {
        let mut last = self.last.lock().await;
        match &*last {
            // Also an error: those who waited for the same answer do not ask one after the other.
            Some((asked, answer)) if *asked >= arrival => return answer.clone(),
            Some((asked, Ok(id))) if !fresh && asked.elapsed() < TOPIC_ID_AGE => return Ok(*id),
            _ => {}
        }
        let asked = Instant::now();
        let answer = self.request(|client, name| raw::topic_id(client, name, TIMEOUT)).await;
        let answer = answer.map(Option::unwrap_or_default);
        *last = Some((asked, answer.clone()));
        answer
    }

    /// The partition's oldest offset, and its end.
    pub(crate) async fn ends(&self, partition: Partition) -> Result<(i64, i64), Failure> {
        self.request(move |client, name| {
            client.fetch_watermarks(name, partition, TIMEOUT).map_err(|error| error.to_string())
        })
        .await
    }

    /// Whether the log of the partition's leader ends before `offset`, with what is not committed. `false` if that is not known in time.
    pub(crate) async fn ends_before(&self, partition: Partition, offset: i64) -> Result<bool, Failure> {
        // Held by the request and not by its caller, which may be gone before it ends.
        let mut probe = self.probe.clone().lock_owned().await;
        let (config, topic) = (self.probing.clone(), self.name.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let (consumer, timeout) = match probe.take() {
                Some(consumer) => (consumer, PROBE_TIMEOUT),
                None => {
                    (config.create_with_context(LogContext).map_err(|error| error.to_string())?, FIRST_PROBE_TIMEOUT)
                }
            };
            let ends = is_out_of_range(&consumer, &topic, partition, offset, timeout)?;
            // One that has not answered may answer the next request with what was meant for this one.
            if ends {
                *probe = Some(consumer);
            }
            Ok(ends)
        });
        let answer = asked.await.unwrap_or_else(|error| Err(error.to_string()));
        answer.map_err(|error: String| Failure::KafkaUnavailable(format!("kafka does not answer: {error}")))
    }

    async fn request<T: Send + 'static>(
        &self,
        request: impl FnOnce(&Client<LogContext>, &str) -> Result<T, String> + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = self.requests.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (client, name) = (self.client.clone(), self.name.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let _place = permit;
            request(client.client(), &name)
        });
        let answer = asked.await.unwrap_or_else(|error| Err(error.to_string()));
        answer.map_err(|error| {
            if self.is_news() {
                tracing::warn!(error, "kafka does not answer requests about the topic");
            }
            Failure::KafkaUnavailable(format!("kafka does not answer: {error}"))
        })
    }
}

impl Topic {
    /// Callers cause the requests, so not each is worth a line.
    fn is_news(&self) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = warned.is_none_or(|warned| warned.elapsed() > WARN_INTERVAL);
        if is_news {
            *warned = Some(Instant::now());
        }
        is_news
    }
}

/// The settings of a consumer that fetches at an offset and reports that it is out of range.
fn probing(mut config: ClientConfig) -> ClientConfig {
    config
        // The client wants one to read at all; nothing is joined or committed.
        .set("group.id", "msg-gateway-status")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.error.backoff.ms", "50")
        .set("socket.timeout.ms", TIMEOUT.as_millis().to_string());
    config
}

/// Whether `offset` is beyond the end of the leader's log. A broker answers so to a fetch beyond its own end only: from the committed end
/// up to its own it answers with nothing, and a client is never told of that.
fn is_out_of_range(
    consumer: &Probe,
    topic: &str,
    partition: Partition,
    offset: i64,
    timeout: Duration,
) -> Result<bool, String> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(|error| error.to_string())?;
    consumer.assign(&list).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + timeout;
    let mut out_of_range = false;
    while !out_of_range && Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(50)) {
            // It is there.
            Some(Ok(_)) => break,
            Some(Err(error)) => out_of_range = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset),
            None => {}
        }
    }
    consumer.unassign().map_err(|error| error.to_string())?;
    Ok(out_of_range)
}

/// The callbacks of a client whose troubles are in its answers.
struct LogContext;

impl ClientContext for LogContext {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "the client that asks reports an error");
    }
}

impl ConsumerContext for LogContext {}

impl ProducerContext for LogContext {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
