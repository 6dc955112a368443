//! The producer that replays: a record goes out as it was, with the settings that a gateway's has.

use msg_common::kafka::{ClientError, KafkaOptions, RequestError, raw};
use msg_common::partition::{Partition, partition_for};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};

use super::letter::Letter;
use crate::commands::error::SendError;

/// Sends records.
pub(super) struct Sender {
    producer: FutureProducer<Log>,
    partitions: Partition,
}

/// One on its way.
pub(super) struct Sent(DeliveryFuture);

/// The callbacks: what the client meets is in its answers.
struct Log;

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        msg_common::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "the producer reports an error");
    }
}

impl Sender {
    /// To a topic that takes records of this size, spread over so many partitions.
    pub(super) fn new(
        kafka: &KafkaOptions,
        max_message_bytes: usize,
        partitions: Partition,
    ) -> Result<Self, RequestError> {
        let mut config = kafka.client_config();
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("delivery.timeout.ms", "30000")
            .set("request.timeout.ms", "8000")
            .set("socket.timeout.ms", "8000")
            // What librdkafka takes at most.
            .set("message.max.bytes", max_message_bytes.clamp(1_000_000, 1_000_000_000).to_string());
        let producer = config.create_with_context(Log).map_err(RequestError::create)?;
        Ok(Sender { producer, partitions })
    }

    /// Hands it to the client, in order with the others of its key. A record without a key goes where an empty one would.
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
    /// Where it lies, once every in-sync replica has it.
    pub(super) async fn confirmed(self) -> Result<(Partition, i64), ClientError> {
        match self.0.await {
            Ok(Ok(Delivery { partition, offset, .. })) => Ok((partition, offset)),
            Ok(Err((error, _))) => Err(error.into()),
            Err(_) => Err(ClientError::Stopped),
        }
    }
}
