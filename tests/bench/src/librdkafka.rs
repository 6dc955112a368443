//! librdkafka alone: writes the records that the gateway would write, from this process.

use std::time::{Duration, Instant, SystemTime};

use msg_common::id;
use msg_common::partition::partition_for;
use msg_common::proto::{Msg, Placement};
use msg_common::record::{self, VERSION, VERSION_HEADER};
use rdkafka::error::KafkaResult;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, DefaultProducerContext, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::util::IntoOpaque;
use rdkafka::{ClientConfig, ClientContext};
use tokio::sync::oneshot;

use super::{Error, Load, TOPIC};

const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the gateway's settings of its producer.
pub(crate) fn settings(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "1")
        .set("compression.type", "lz4")
        .set("queue.buffering.max.messages", "40000")
        // The topic's: librdkafka's default is below a body of 1 MiB.
        .set("message.max.bytes", (2 << 20).to_string());
    config
}

/// A message as it is in Kafka.
pub(crate) struct Encoded {
    pub(crate) msg_id: String,
    pub(crate) partition: i32,
    key: String,
    value: Vec<u8>,
}

impl Encoded {
    pub(crate) fn new(msg: Msg, send_time_ms: i64, partitions: i32) -> Encoded {
        let id = id::msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id);
        let key = msg.recv_id.clone();
        let partition = partition_for(key.as_bytes(), partitions);
        Encoded { msg_id: id.to_string(), partition, key, value: record::encode(msg, id, send_time_ms) }
    }

    /// Returns key and value.
    pub(crate) fn into_parts(self) -> (String, Vec<u8>) {
        (self.key, self.value)
    }

    pub(crate) fn record<D: IntoOpaque>(&self, opaque: D) -> BaseRecord<'_, str, [u8], D> {
        let version = VERSION.to_string();
        let headers = OwnedHeaders::new().insert(Header { key: VERSION_HEADER, value: Some(&version) });
        BaseRecord::with_opaque_to(TOPIC, opaque)
            .partition(self.partition)
            .key(&*self.key)
            .payload(&*self.value)
            .headers(headers)
    }
}

/// A producer that reports each record to its sender.
pub(crate) struct Reporting {
    producer: ThreadedProducer<Reports>,
    partitions: i32,
}

struct Reports;

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<oneshot::Sender<KafkaResult<i64>>>;

    fn delivery(&self, result: &DeliveryResult<'_>, report_to: Self::DeliveryOpaque) {
        let offset = match result {
            Ok(record) => Ok(record.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        // The caller may have disconnected.
        let _ = report_to.send(offset);
    }
}

impl Reporting {
    pub(crate) fn new(brokers: &str, partitions: i32) -> KafkaResult<Reporting> {
        Ok(Reporting { producer: settings(brokers).create_with_context(Reports)?, partitions })
    }

    /// Sends a message and waits until Kafka has confirmed it.
    pub(crate) async fn send(&self, msg: Msg) -> Result<Placement, Error> {
        let now = SystemTime::now();
        let since = now.duration_since(SystemTime::UNIX_EPOCH)?;
        let encoded = Encoded::new(msg, i64::try_from(since.as_millis())?, self.partitions);
        let (report_to, report) = oneshot::channel();
        self.producer.send(encoded.record(Box::new(report_to))).map_err(|(error, _)| error)?;
        let offset = Some(report.await??);
        let Encoded { msg_id, partition, .. } = encoded;
        Ok(Placement { msg_id, partition, offset, send_time: Some(now.into()), stored: None })
    }
}

/// Writes the load's messages until Kafka has confirmed all of them, and returns how long that took. Blocks.
pub(crate) fn write(config: &ClientConfig, load: &Load, msg: impl Fn(usize) -> Msg) -> Result<Duration, Error> {
    let producer: ThreadedProducer<DefaultProducerContext> = config.create()?;
    let started = Instant::now();
    for n in 0..load.messages {
        let encoded = Encoded::new(msg(n), 1_700_000_000_000, load.partitions);
        let mut record = encoded.record(());
        while let Err((error, rejected)) = producer.send(record) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(1));
            record = rejected;
        }
    }
    producer.flush(FLUSH_TIMEOUT)?;
    Ok(started.elapsed())
}
