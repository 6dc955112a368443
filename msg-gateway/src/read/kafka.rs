//! The Kafka requests of GetMsgStatus: the topic's ID, the ends of a partition, and whether its leader has records
//! beyond the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use msg_common::error::chain;
use msg_common::kafka::polled::PolledProducer;
use msg_common::kafka::{
    ClientPurpose, ClientSettings, ClientSetup, CreatedAt, KafkaClient, KafkaOptions, RequestError, raw,
};
use msg_common::partition::Partition;
use msg_common::repeat::Repeats;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::Mutex;
use tokio::task::JoinError;
use uuid::Uuid;

use crate::budget::Budget;
use crate::status::Failure;

/// The timeout of one request.
const TIMEOUT: Duration = Duration::from_secs(3);

/// For how long the topic's ID is cached.
const TOPIC_ID_AGE: Duration = Duration::from_secs(10);

/// How long a leader may need to report an offset as out of range, and the same for the first request, before which
/// the client has to connect.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const FIRST_PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Callers cause the requests, so not each failed one is logged.
static FAILED: Repeats = Repeats::new();

/// A client for queries about the topic.
pub(crate) struct Topic {
    /// A client of its own, because on the connections of the sending one a request would wait behind the sends. A
    /// producer, because a task polls its events.
    client: ArcSwap<Querying>,
    settings: ClientSettings,
    name: String,
    /// When the ID was requested last, and the result.
    last: Mutex<Option<(Instant, Result<Uuid, Failure>)>>,
    requests: Arc<Budget>,
    /// The settings of the consumer that finds the end of a leader's log.
    probing: ClientSettings,
    /// The consumer, if its last result was definite. It serves one request at a time.
    probe: Arc<Mutex<Option<Probe>>>,
}

type Querying = KafkaClient<PolledProducer<LogContext>>;

type Probe = KafkaClient<BaseConsumer<LogContext>>;

impl Topic {
    /// Creates the client, which connects in the background.
    pub(crate) fn new(options: &KafkaOptions, requests: Arc<Budget>) -> KafkaResult<Self> {
        let settings = ClientSettings::new(options, |kafka| {
            let mut config = kafka.client_config(ClientPurpose::Status);
            config.set("socket.timeout.ms", TIMEOUT.as_millis().to_string());
            config
        });
        Ok(Topic {
            client: ArcSwap::from_pointee(create(&settings)?),
            settings,
            name: options.kafka_topic.clone(),
            last: Mutex::default(),
            requests,
            probing: ClientSettings::new(options, |kafka| probing(kafka.client_config(ClientPurpose::StatusProbe))),
            probe: Arc::default(),
        })
    }

    /// Returns the topic's ID, or nil if the brokers have none. A recreated topic has another ID. The result is not
    /// older than `arrival` if `fresh`, and else not older than the cache time.
    pub(crate) async fn id(&self, arrival: Instant, fresh: bool) -> Result<Uuid, Failure> {
        let mut last = self.last.lock().await;
        match &*last {
            // An error counts too: callers that waited for the same result must not repeat the request one after the
            // other.
            Some((requested, result)) if *requested >= arrival => return result.clone(),
            Some((requested, Ok(id))) if !fresh && requested.elapsed() < TOPIC_ID_AGE => return Ok(*id),
            _ => {}
        }
        let requested = Instant::now();
        let result = self.request(|client, name| raw::topic_id(client, name, TIMEOUT)).await;
        let result = result.map(Option::unwrap_or_default);
        *last = Some((requested, result.clone()));
        result
    }

    /// Returns the offset of the partition's oldest record, and its end offset.
    pub(crate) async fn ends(&self, partition: Partition) -> Result<(i64, i64), Failure> {
        self.request(move |client, name| {
            let ends = client.fetch_watermarks(name, partition, TIMEOUT);
            ends.map_err(RequestError::of_partition("read the end offsets", name, partition))
        })
        .await
    }

    /// Returns whether the log of the partition's leader, with records that are not committed, ends before `offset`.
    /// `false` if that is not known in time.
    pub(crate) async fn ends_before(&self, partition: Partition, offset: i64) -> Result<bool, Failure> {
        // The request holds the lock, not its caller, which may disconnect before the request ends.
        let mut probe = self.probe.clone().lock_owned().await;
        let (settings, topic) = (self.probing.clone(), self.name.clone());
        let requested = tokio::task::spawn_blocking(move || {
            let probe_in_use = probe.take().filter(|consumer| !settings.changed_since(consumer.client().context().0));
            let (consumer, timeout) = match probe_in_use {
                Some(consumer) => (consumer, PROBE_TIMEOUT),
                None => {
                    let (config, created) = settings.current();
                    let created = config.create_with_context(LogContext(created));
                    (created.map_err(RequestError::create)?, FIRST_PROBE_TIMEOUT)
                }
            };
            let ends = is_out_of_range(&consumer, &topic, partition, offset, timeout);
            let ends = ends.map_err(RequestError::of_partition("fetch at an offset", &topic, partition))?;
            // A consumer without a definite result may later return one that belongs to this request.
            if ends {
                *probe = Some(consumer);
            }
            Ok(ends)
        });
        self.joined(requested.await).map_err(|error| unavailable(&error))
    }

    async fn request<T: Send + 'static>(
        &self,
        request: impl FnOnce(&Client<LogContext>, &str) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = self.requests.acquire(1).await;
        let (client, name) = (self.current_client(), self.name.clone());
        let requested = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            request(client.client(), &name)
        });
        self.joined(requested.await).map_err(|error| unavailable(&error))
    }
}

impl Topic {
    /// Returns the client, which is replaced if the files of its settings have changed.
    fn current_client(&self) -> Arc<Querying> {
        let client = self.client.load_full();
        if self.settings.changed_since(client.context().0) {
            match create(&self.settings) {
                Ok(fresh) => self.client.store(Arc::new(fresh)),
                Err(error) => tracing::error!(%error, "cannot create the client of the topic queries"),
            }
            // Dropping a producer waits for librdkafka's threads.
            tokio::task::spawn_blocking(move || drop(client));
            return self.client.load_full();
        }
        client
    }

    fn joined<T>(&self, result: Result<Result<T, RequestError>, JoinError>) -> Result<T, RequestError> {
        result.unwrap_or_else(|error| Err(RequestError::of_topic("send a request", &self.name)(error)))
    }
}

/// Logs a failed request, and returns the error for the caller, which has no address of a broker.
fn unavailable(error: &RequestError) -> Failure {
    if let Some(repeated) = FAILED.occurred("query") {
        tracing::warn!(error = chain(error), repeated, "cannot query the topic");
    }
    Failure::KafkaUnavailable("kafka does not respond".into())
}

fn create(settings: &ClientSettings) -> KafkaResult<Querying> {
    let (config, created) = settings.current();
    config.create_with_context(LogContext(created))
}

/// Returns the settings of a consumer that fetches at an offset and reports it as out of range.
fn probing(mut config: ClientSetup) -> ClientSetup {
    config
        // librdkafka needs a group to read at all; no group is joined, and no offset is committed.
        .set("group.id", "msg-gateway-status")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.error.backoff.ms", "50")
        .set("socket.timeout.ms", TIMEOUT.as_millis().to_string());
    config
}

/// Returns whether `offset` is beyond the end of the leader's log. A broker reports only a fetch beyond its own end as
/// out of range. Between the committed end and its own end it returns no records, and the client gets no event.
fn is_out_of_range(
    consumer: &Probe,
    topic: &str,
    partition: Partition,
    offset: i64,
    timeout: Duration,
) -> KafkaResult<bool> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    consumer.assign(&list)?;
    let deadline = Instant::now() + timeout;
    let mut out_of_range = false;
    while !out_of_range && Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(50)) {
            // A record exists at the offset.
            Some(Ok(_)) => break,
            Some(Err(error)) => out_of_range = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset),
            None => {}
        }
    }
    consumer.unassign()?;
    Ok(out_of_range)
}

/// The callbacks of a client whose errors are in its results. It keeps what the client's settings were.
struct LogContext(CreatedAt);

impl ClientContext for LogContext {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "client of the topic queries reported an error");
    }
}

impl ConsumerContext for LogContext {}

impl ProducerContext for LogContext {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
