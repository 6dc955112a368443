//! Hints: after each COMMIT, the lane sends the inboxes with completed records to the hints topic, for gateways with
//! waiters and watchers. No promise depends on a hint, so a batch never waits for one, and a hint that cannot be sent
//! is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use msg_common::kafka::polled::PolledProducer;
use msg_common::kafka::{ClientPurpose, ClientSetup, KafkaClient, KafkaOptions};
use msg_common::proto::{HintedInbox, StoredHint};
use prost::Message as _;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;

use crate::metrics;

/// The partition that hints are sent to: gateways read only this one.
const PARTITION: i32 = 0;

/// Maximum bytes of one record. A topic accepts 1 MB unless configured otherwise.
const MAX_BYTES: usize = 400_000;

/// Sends hints. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hints(Arc<KafkaClient<PolledProducer<Context>>>);

impl std::fmt::Debug for Hints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hints").field(&self.0.context().topic).finish()
    }
}

impl Hints {
    /// Creates a producer, which connects by itself; `None` if hints are switched off.
    pub(crate) fn new(kafka: &KafkaOptions) -> KafkaResult<Option<Self>> {
        let Some(topic) = kafka.hints_topic() else { return Ok(None) };
        let context = Context { topic, reported: AtomicBool::new(false) };
        Ok(Some(Hints(Arc::new(config(kafka).create_with_context(context)?))))
    }

    /// Sends hints for these inboxes, each with the `seq` of a new row, or with 0 if it has none. An inbox may be given
    /// more than once. Never blocks.
    pub(crate) fn send<'a>(&self, completed: impl Iterator<Item = (&'a str, i64)>) {
        for hint in hints(completed) {
            let record = BaseRecord::<(), _>::to(&self.0.context().topic).partition(PARTITION);
            if let Err((error, _)) = self.0.send(record.payload(&hint.encode_to_vec())) {
                self.0.context().dropped(&error);
            }
        }
    }
}

/// Returns librdkafka's settings. No other function knows their names.
fn config(kafka: &KafkaOptions) -> ClientSetup {
    let mut config = kafka.client_config(ClientPurpose::HintWriter);
    config
        .set("acks", "1")
        .set("linger.ms", "0")
        .set("compression.type", "lz4")
        // A late hint is useless: gateways poll the table in the meantime.
        .set("message.timeout.ms", "5000")
        .set("queue.buffering.max.messages", "1000")
        .set("queue.buffering.max.kbytes", "8192")
        // A missing topic is detected soon, and its metadata is read again every second.
        .set("topic.metadata.propagation.max.ms", "1000");
    config
}

/// Returns each inbox once, with its highest `seq`. A hint ends where its record would become too large.
fn hints<'a>(completed: impl Iterator<Item = (&'a str, i64)>) -> Vec<StoredHint> {
    let mut last: HashMap<&str, i64> = HashMap::new();
    for (recv_id, seq) in completed {
        let last = last.entry(recv_id).or_default();
        *last = seq.max(*last);
    }
    let mut hints: Vec<StoredHint> = Vec::new();
    let mut bytes = MAX_BYTES;
    for (recv_id, seq) in last {
        let inbox = HintedInbox { recv_id: recv_id.to_owned(), seq };
        // The field's tag and length need up to 4 bytes.
        let added = inbox.encoded_len() + 4;
        if bytes + added > MAX_BYTES {
            hints.push(StoredHint::default());
            bytes = 0;
        }
        bytes += added;
        hints.last_mut().expect("the first inbox starts a hint").inboxes.push(inbox);
    }
    hints
}

/// The producer's callbacks, which count the outcome of each hint.
struct Context {
    topic: String,
    /// It was logged that the topic accepts no hints. Reset when it accepts one.
    reported: AtomicBool,
}

impl Context {
    fn dropped(&self, error: &KafkaError) {
        use RDKafkaErrorCode as Code;
        let outcome = match error.rdkafka_error_code().unwrap_or(Code::Fail) {
            Code::QueueFull => "queue_full",
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::TopicAuthorizationFailed => {
                if !self.reported.swap(true, Ordering::Relaxed) {
                    let topic = &self.topic;
                    tracing::warn!(
                        topic,
                        %error,
                        "cannot send hints, so WAIT_FOR_STORED and WatchMsgs respond later; create the topic, grant \
                         WRITE on it, or set HINTS_TOPIC to none"
                    );
                }
                "no_topic"
            }
            _ => {
                tracing::debug!(%error, "dropped a hint");
                "lost"
            }
        };
        metrics::hinted(outcome);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        msg_common::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "producer of hints reported an error");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.reported.store(false, Ordering::Relaxed);
                metrics::hinted("written");
            }
            Err((error, _)) => self.dropped(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_has_each_inbox_once_with_its_last_seq() {
        let found = hints([("a", 3), ("a", 4), ("b", 0), ("a", 0), ("c", 7), ("b", 0)].into_iter());
        let [hint] = found.as_slice() else { panic!("{found:?}") };
        let mut inboxes: Vec<_> = hint.inboxes.iter().map(|inbox| (inbox.recv_id.as_str(), inbox.seq)).collect();
        inboxes.sort_unstable();
        assert_eq!(inboxes, [("a", 4), ("b", 0), ("c", 7)]);
        assert!(hints(std::iter::empty()).is_empty());
    }

    #[test]
    fn large_hint_is_split_into_records() {
        let ids: Vec<String> = (0..5000).map(|n| format!("{n:0>256}")).collect();
        let found = hints(ids.iter().map(|id| (id.as_str(), i64::MAX)));
        assert_eq!(found.iter().map(|hint| hint.inboxes.len()).sum::<usize>(), 5000);
        let sizes: Vec<usize> = found.iter().map(|hint| hint.encode_to_vec().len()).collect();
        assert!(sizes.len() < 5 && sizes.iter().all(|size| (1..=MAX_BYTES).contains(size)), "{sizes:?}");
    }

    // The producer needs a runtime.
    #[tokio::test]
    async fn settings_are_known_to_librdkafka() {
        let kafka = KafkaOptions {
            kafka_brokers: "127.0.0.1:1".into(),
            kafka_topic: "msgs".into(),
            hints_topic: None,
            kafka_properties: msg_common::config::Secret::default(),
            kafka_properties_file: None,
            security: msg_common::kafka::SecurityOptions::default(),
            accepted: msg_common::kafka::AcceptedProperties::default(),
            generation: msg_common::kafka::Generation::default(),
            token: msg_common::kafka::SharedToken::default(),
        };
        config(&kafka).config().create_native_config().expect("librdkafka knows each key and value");
        assert!(Hints::new(&kafka).expect("the producer is created").is_some());
        let none = KafkaOptions { hints_topic: Some(String::new()), ..kafka };
        assert!(Hints::new(&none).expect("no producer is needed").is_none());
    }
}
