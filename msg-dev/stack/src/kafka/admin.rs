//! Owns the stack's requests to a Kafka cluster as a client: its brokers, and the creation and deletion of topics.

use std::net::SocketAddr;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication, TopicResult};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};

use super::topic::TopicSpec;
use crate::error::StackError;
use crate::process::POLL;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout until a topic is created and led, or deleted.
const TOPIC_WITHIN: Duration = Duration::from_secs(30);

/// A client context that logs nothing: the stack polls brokers that are not started yet, so errors are expected.
struct LogContext;

impl ClientContext for LogContext {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for LogContext {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("client.id", "msg-dev");
    config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "200");
    config
}

/// Whether the broker at this address responds and reports at least `least` brokers, itself among them.
pub(super) async fn sees_brokers(bootstrap: String, itself: SocketAddr, least: usize) -> bool {
    let metadata = metadata(bootstrap, None).await;
    metadata.is_ok_and(|metadata| {
        let brokers = metadata.brokers();
        brokers.len() >= least && brokers.iter().any(|broker| i32::from(itself.port()) == broker.port())
    })
}

/// Waits until a given cluster responds, and returns the number of its brokers.
pub(super) async fn wait_for_any_broker(bootstrap: &str, within: Duration) -> Result<usize, StackError> {
    let polling = async {
        loop {
            if let Ok(metadata) = metadata(bootstrap.to_owned(), None).await {
                return metadata.brokers().len();
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let no_response = |_| StackError::NoResponse { name: "kafka", address: bootstrap.to_owned(), waited: within };
    tokio::time::timeout(within, polling).await.map_err(no_response)
}

/// Returns the number of partitions of a topic, or none if the topic does not exist.
pub(super) async fn partitions(bootstrap: &str, topic: &str) -> Result<Option<i32>, StackError> {
    let metadata = metadata(bootstrap.to_owned(), Some(topic.to_owned())).await;
    let metadata = metadata.map_err(failed(format!("describe topic {topic}")))?;
    let found = metadata.topics().iter().find(|one| one.name() == topic && one.error().is_none());
    Ok(found.map(|one| i32::try_from(one.partitions().len()).expect("Kafka counts partitions in 32 bits")))
}

/// Creates the topic and waits until every partition has a leader.
pub(super) async fn create(bootstrap: &str, spec: &TopicSpec) -> Result<(), StackError> {
    let doing = format!("create topic {}", spec.name);
    let mut topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(spec.replication));
    for (key, value) in &spec.config {
        topic = topic.set(key, value);
    }
    let results = admin(bootstrap, &doing)?.create_topics([&topic], &options()).await;
    single_result(results).map_err(failed(doing.clone()))?;
    let led = async {
        while !is_led(bootstrap, spec).await {
            tokio::time::sleep(POLL).await;
        }
    };
    let late = |_| StackError::Kafka { doing, detail: "the partitions have no leaders yet".to_owned() };
    tokio::time::timeout(TOPIC_WITHIN, led).await.map_err(late)
}

pub(super) async fn delete(bootstrap: &str, name: &str) -> Result<(), StackError> {
    let doing = format!("delete topic {name}");
    let results = admin(bootstrap, &doing)?.delete_topics(&[name], &options()).await;
    single_result(results).map_err(failed(doing))
}

async fn is_led(bootstrap: &str, spec: &TopicSpec) -> bool {
    let Ok(metadata) = metadata(bootstrap.to_owned(), Some(spec.name.clone())).await else { return false };
    let wanted = usize::try_from(spec.partitions).unwrap_or(0);
    metadata.topics().iter().any(|topic| {
        let partitions = topic.partitions();
        partitions.len() == wanted && partitions.iter().all(|one| one.leader() >= 0 && one.error().is_none())
    })
}

fn admin(bootstrap: &str, doing: &str) -> Result<AdminClient<LogContext>, StackError> {
    config(bootstrap).create_with_context(LogContext).map_err(failed(doing.to_owned()))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TOPIC_WITHIN)).operation_timeout(Some(TOPIC_WITHIN))
}

fn single_result(results: Result<Vec<TopicResult>, KafkaError>) -> Result<(), KafkaError> {
    match results?.pop() {
        Some(Err((_, code))) => Err(KafkaError::AdminOp(code)),
        Some(Ok(_)) | None => Ok(()),
    }
}

fn failed(doing: String) -> impl FnOnce(KafkaError) -> StackError {
    move |error| StackError::Kafka { doing, detail: error.to_string() }
}

/// Reads the cluster's metadata on a thread of its own, since the client blocks.
async fn metadata(bootstrap: String, topic: Option<String>) -> Result<Metadata, KafkaError> {
    let request = move || {
        let client: BaseProducer<LogContext> = config(&bootstrap).create_with_context(LogContext)?;
        client.client().fetch_metadata(topic.as_deref(), REQUEST_TIMEOUT)
    };
    tokio::task::spawn_blocking(request).await.expect("reading metadata does not panic")
}
