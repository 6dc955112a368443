//! Owns what the stack asks of a Kafka cluster as a client: who is there, and topics created and deleted.

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

/// For one request.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// For a topic to be created, led by somebody, or deleted.
const TOPIC_WITHIN: Duration = Duration::from_secs(30);

/// A client that says nothing: that a broker is not there yet is what we wait for.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("client.id", "msg-dev");
    config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "200");
    config
}

/// Whether the broker at this address answers and knows of so many brokers, itself among them.
pub(super) async fn sees_brokers(bootstrap: String, itself: SocketAddr, least: usize) -> bool {
    let metadata = metadata(bootstrap, None).await;
    metadata.is_ok_and(|metadata| {
        let brokers = metadata.brokers();
        brokers.len() >= least && brokers.iter().any(|broker| i32::from(itself.port()) == broker.port())
    })
}

/// Waits until a cluster that is not ours answers, and gives the number of its brokers.
pub(super) async fn wait_for_any_broker(bootstrap: &str, within: Duration) -> Result<usize, StackError> {
    let asking = async {
        loop {
            if let Ok(metadata) = metadata(bootstrap.to_owned(), None).await {
                return metadata.brokers().len();
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let no_answer = |_| StackError::NoAnswer { name: "kafka", address: bootstrap.to_owned(), waited: within };
    tokio::time::timeout(within, asking).await.map_err(no_answer)
}

/// The number of partitions of a topic; none when there is no such topic.
pub(super) async fn partitions(bootstrap: &str, topic: &str) -> Result<Option<i32>, StackError> {
    let metadata = metadata(bootstrap.to_owned(), Some(topic.to_owned())).await;
    let metadata = metadata.map_err(failed(format!("describe topic {topic}")))?;
    let found = metadata.topics().iter().find(|one| one.name() == topic && one.error().is_none());
    Ok(found.map(|one| i32::try_from(one.partitions().len()).expect("Kafka counts partitions in 32 bits")))
}

/// Creates the topic and waits until all its partitions are led by somebody.
pub(super) async fn create(bootstrap: &str, spec: &TopicSpec) -> Result<(), StackError> {
    let doing = format!("create topic {}", spec.name);
    let mut topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(spec.replication));
    for (key, value) in &spec.config {
        topic = topic.set(key, value);
    }
    let answers = admin(bootstrap, &doing)?.create_topics([&topic], &options()).await;
    one_answer(answers).map_err(failed(doing.clone()))?;
    let led = async {
        while !is_led(bootstrap, spec).await {
            tokio::time::sleep(POLL).await;
        }
    };
    let late = |_| StackError::Kafka { doing, detail: "its partitions have no leaders yet".to_owned() };
    tokio::time::timeout(TOPIC_WITHIN, led).await.map_err(late)
}

/// Deletes the topic.
pub(super) async fn delete(bootstrap: &str, name: &str) -> Result<(), StackError> {
    let doing = format!("delete topic {name}");
    let answers = admin(bootstrap, &doing)?.delete_topics(&[name], &options()).await;
    one_answer(answers).map_err(failed(doing))
}

async fn is_led(bootstrap: &str, spec: &TopicSpec) -> bool {
    let Ok(metadata) = metadata(bootstrap.to_owned(), Some(spec.name.clone())).await else { return false };
    let wanted = usize::try_from(spec.partitions).unwrap_or(0);
    metadata.topics().iter().any(|topic| {
        let partitions = topic.partitions();
        partitions.len() == wanted && partitions.iter().all(|one| one.leader() >= 0 && one.error().is_none())
    })
}

fn admin(bootstrap: &str, doing: &str) -> Result<AdminClient<Quiet>, StackError> {
    config(bootstrap).create_with_context(Quiet).map_err(failed(doing.to_owned()))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TOPIC_WITHIN)).operation_timeout(Some(TOPIC_WITHIN))
}

/// The answer to a request about one topic.
fn one_answer(answers: Result<Vec<TopicResult>, KafkaError>) -> Result<(), KafkaError> {
    match answers?.pop() {
        Some(Err((_, code))) => Err(KafkaError::AdminOp(code)),
        Some(Ok(_)) | None => Ok(()),
    }
}

fn failed(doing: String) -> impl FnOnce(KafkaError) -> StackError {
    move |error| StackError::Kafka { doing, detail: error.to_string() }
}

/// Asks the cluster. The client blocks, so it has a thread to itself.
async fn metadata(bootstrap: String, topic: Option<String>) -> Result<Metadata, KafkaError> {
    let ask = move || {
        let client: BaseProducer<Quiet> = config(&bootstrap).create_with_context(Quiet)?;
        client.client().fetch_metadata(topic.as_deref(), ASK_WITHIN)
    };
    tokio::task::spawn_blocking(ask).await.expect("asking for metadata does not panic")
}
