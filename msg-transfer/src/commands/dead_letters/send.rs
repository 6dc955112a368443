//! The producer that replays dead letters. It sends each record unchanged, with the producer settings of a gateway.

use msg_common::kafka::{ClientError, ClientPurpose, KafkaClient, KafkaOptions, RequestError, raw};
use msg_common::partition::{Partition, partition_for};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};

use super::letter::Letter;
use crate::commands::error::SendError;

/// Sends the records of dead letters to the topic.
pub(super) struct Sender {
    producer: KafkaClient<FutureProducer<LogContext>>,
    partitions: Partition,
}

/// A record that is enqueued, and whose delivery report is awaited.
pub(super) struct Sent(DeliveryFuture);

/// The client's callbacks, which only log. The outcome of a record is in its delivery report.
struct LogContext;

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        msg_common::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "received an error of the producer");
    }
}

impl Sender {
    /// Creates the producer for a topic that accepts records of up to `max_message_bytes`, and distributes inboxes over
    /// the first `partitions` partitions.
    pub(super) fn new(
        kafka: &KafkaOptions,
        max_message_bytes: usize,
        partitions: Partition,
    ) -> Result<Self, RequestError> {
        let mut config = kafka.client_config(ClientPurpose::Replay);
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("delivery.timeout.ms", "30000")
            .set("request.timeout.ms", "8000")
            .set("socket.timeout.ms", "8000")
            // The range that librdkafka accepts.
            .set("message.max.bytes", max_message_bytes.clamp(1_000_000, 1_000_000_000).to_string());
        let producer = config.create_with_context(LogContext).map_err(RequestError::create)?;
        Ok(Sender { producer, partitions })
    }

    /// Enqueues the record, in order with the other records of its key. A record without a key gets the partition of an
    /// empty key.
    pub(super) fn send(&self, topic: &str, letter: &Letter) -> Result<Sent, SendError> {
        let headers = letter.headers()?.into_iter().map(|header| (header.key, header.value));
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic)
            .partition(partition_for(letter.key.as_deref().unwrap_or_default(), self.partitions))
            .headers(raw::headers(headers)?);
        record.key = letter.key.as_deref();
        record.payload = letter.value.as_deref();
        self.producer.send_result(record).map(Sent).map_err(|(error, _)| ClientError::from(error).into())
    }
}

impl Sent {
    /// Returns the new partition and offset as soon as every in-sync replica has the record.
    pub(super) async fn confirmed(self) -> Result<(Partition, i64), ClientError> {
        match self.0.await {
            Ok(Ok(Delivery { partition, offset, .. })) => Ok((partition, offset)),
            Ok(Err((error, _))) => Err(error.into()),
            Err(_) => Err(ClientError::Stopped),
        }
    }
}
