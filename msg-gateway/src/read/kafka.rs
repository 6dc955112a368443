//! What GetMsgStatus asks of Kafka: which topic it is, and where a partition begins and ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use msg_common::kafka::{KafkaOptions, raw};
use msg_common::partition::Partition;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::{Mutex, Semaphore};
use uuid::Uuid;

use crate::status::Failure;

/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How long the topic's id is taken for known.
const KEPT: Duration = Duration::from_secs(10);

/// Most questions at a time: each blocks a thread, and goes on when its caller has gone.
const MAX_QUESTIONS: usize = 8;

/// The topic that messages go through.
pub struct Topic {
    /// Of its own: on the sending one's connections a question would wait behind the sends. A producer, because that has a
    /// thread which takes the client's events.
    client: Arc<ThreadedProducer<Quiet>>,
    name: String,
    /// When the id was asked for last, and the answer.
    last: Mutex<Option<(Instant, Result<Uuid, Failure>)>>,
    questions: Arc<Semaphore>,
}

impl Topic {
    /// Connects by itself.
    pub fn new(options: &KafkaOptions) -> KafkaResult<Self> {
        let mut config = options.client_config();
        config.set("socket.timeout.ms", TIMEOUT.as_millis().to_string());
        Ok(Topic {
            client: Arc::new(config.create_with_context(Quiet)?),
            name: options.kafka_topic.clone(),
            last: Mutex::default(),
            questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
        })
    }

    /// The topic's id, nil where the brokers give none. A topic that was made anew has another: it is as old as `arrival` at
    /// most if it is to be `fresh`, and else at most as old as we keep it.
    pub async fn id(&self, arrival: Instant, fresh: bool) -> Result<Uuid, Failure> {
        let mut last = self.last.lock().await;
        match &*last {
            // Also an error: those who waited for the same answer do not ask one after the other.
            Some((asked, answer)) if *asked >= arrival => return answer.clone(),
            Some((asked, Ok(id))) if !fresh && asked.elapsed() < KEPT => return Ok(*id),
            _ => {}
        }
        let asked = Instant::now();
        let answer = self.ask(|client, name| raw::topic_id(client, name, TIMEOUT)).await;
        let answer = answer.map(Option::unwrap_or_default);
        *last = Some((asked, answer.clone()));
        answer
    }

    /// The partition's oldest offset, and its end.
    pub async fn ends(&self, partition: Partition) -> Result<(i64, i64), Failure> {
        self.ask(move |client, name| {
            client.fetch_watermarks(name, partition, TIMEOUT).map_err(|error| error.to_string())
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Client<Quiet>, &str) -> Result<T, String> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = self.questions.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (client, name) = (self.client.clone(), self.name.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let _place = place;
            question(client.client(), &name)
        });
        let answer = asked.await.unwrap_or_else(|error| Err(error.to_string()));
        answer.map_err(|error| {
            tracing::warn!(error, "kafka did not answer a question");
            Failure::KafkaUnavailable(format!("kafka does not answer: {error}"))
        })
    }
}

/// The callbacks of a client whose troubles are in its answers.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "the client that asks reports an error");
    }
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
