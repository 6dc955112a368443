//! The producer: the handle that records are sent through, and the reports that it returns. [`replacement`] replaces the
//! librdkafka producer in it.

pub(crate) mod context;
mod doubt;
mod gate;
mod offsets;
pub(crate) mod preflight;
pub(crate) mod rejections;
mod replacement;
mod stall_timer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use msg_common::kafka::polled::PolledProducer;
use msg_common::kafka::{ClientSettings, KafkaClient};
use msg_common::partition::Partition;
use msg_common::record::{TRACEPARENT_HEADER, VERSION, VERSION_HEADER};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::{mpsc, oneshot};

use crate::budget::Permit;
use crate::config::producer::shortest_backoff;
pub(crate) use crate::producer::context::{DeliveryContext, Signals};
use crate::producer::gate::{Gate, Pass};
use crate::send::outcome::Outcome;

/// The librdkafka producer.
type Sending = KafkaClient<PolledProducer<DeliveryContext>>;

/// Where to send a delivery report. The caller may have disconnected.
pub(crate) enum ReportSender {
    /// A call with one message.
    One(oneshot::Sender<Outcome>),
    /// A call with many messages, which share a channel: a task or a channel for each would cost more than the record.
    Many {
        /// The entry's number within the call.
        entry: u64,
        /// Unbounded, but limited by the permits: each record in flight sends one report.
        reports: mpsc::UnboundedSender<Report>,
    },
}

/// The outcome of one entry of a batch or a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    /// The entry's number within the call.
    pub(crate) entry: u64,
    pub(crate) outcome: Outcome,
}

/// The data that librdkafka keeps with a record until its delivery report.
pub(crate) struct InFlight {
    pub(crate) report_to: ReportSender,
    /// The record's permit, released when this is dropped.
    pub(crate) permit: Permit,
    /// The size that Kafka compares with the topic's limit if the record is not compressed, in bytes.
    pub(crate) size: usize,
}

/// A record to enqueue. Its key is the message's `recv_id`, and its value an encoded `MsgRecord`.
pub(crate) struct Outgoing<'a> {
    /// Computed by the gateway, not by librdkafka.
    pub(crate) partition: Partition,
    pub(crate) key: &'a str,
    pub(crate) value: &'a [u8],
    pub(crate) timestamp_ms: i64,
    /// A valid trace context, if the caller sent one.
    pub(crate) traceparent: Option<&'a [u8]>,
    /// Returned with the delivery report.
    pub(crate) in_flight: Box<InFlight>,
}

/// Why a record was rejected. It was certainly not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The topic cannot be used at present, for this reason.
    Closed(String),
    Failed(RDKafkaErrorCode),
}

/// The handle that records are sent through. It owns one librdkafka producer at a time.
pub(crate) struct Producer {
    settings: ClientSettings,
    topic: String,
    current: ArcSwap<Sending>,
    /// Closed while the current producer is emptied because its settings have changed.
    gate: Gate,
    /// Why records are rejected; `None` while the topic can be used.
    closed: ArcSwapOption<String>,
    signals: Arc<Signals>,
    version: String,
    backoff: Duration,
}

/// The permission to enqueue records. Hold it only while records are enqueued: until it is dropped, a producer whose
/// settings have changed is not replaced.
pub(crate) struct Admission<'a> {
    producer: &'a Producer,
    _pass: Pass<'a>,
}

impl Admission<'_> {
    /// Enqueues a record. It never blocks. The outcome is sent through `in_flight`.
    pub(crate) fn send(&self, record: Outgoing<'_>) -> Result<(), Rejection> {
        self.producer.send(record)
    }
}

impl Producer {
    /// Creates a producer that rejects every record until [`Producer::open`].
    pub(crate) fn new(settings: ClientSettings, topic: &str) -> KafkaResult<Self> {
        let signals = Arc::new(Signals::new());
        let (config, created) = settings.current();
        let backoff = shortest_backoff(&config);
        let current = config.create_with_context(DeliveryContext::new(signals.clone(), backoff, created))?;
        Ok(Producer {
            settings,
            topic: topic.to_owned(),
            current: ArcSwap::from_pointee(current),
            gate: Gate::new(replacement::MAX_WAIT),
            closed: ArcSwapOption::from_pointee("the topic has not been checked yet".to_owned()),
            signals,
            version: VERSION.to_string(),
            backoff,
        })
    }

    /// Returns the events of librdkafka's callbacks.
    pub(crate) fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Accepts records from now on.
    pub(crate) fn open(&self) {
        self.closed.store(None);
    }

    /// Rejects every record with this reason from now on.
    pub(crate) fn close(&self, reason: String) {
        self.closed.store(Some(Arc::new(reason)));
    }

    /// Returns why records are rejected at present.
    pub(crate) fn closed(&self) -> Option<String> {
        self.closed.load().as_deref().cloned()
    }

    /// Waits shortly while the producer is replaced because its settings have changed. `None` if that needs too long.
    pub(crate) async fn admit(&self) -> Option<Admission<'_>> {
        self.gate.pass().await.map(|pass| Admission { producer: self, _pass: pass })
    }

    /// Returns the permission to enqueue records, unless the producer is replaced now.
    #[cfg(test)]
    pub(crate) fn try_admit(&self) -> Option<Admission<'_>> {
        self.gate.try_pass().map(|pass| Admission { producer: self, _pass: pass })
    }

    /// The caller has an [`Admission`].
    fn send(&self, record: Outgoing<'_>) -> Result<(), Rejection> {
        if let Some(reason) = &*self.closed.load() {
            return Err(Rejection::Closed(reason.to_string()));
        }
        let mut headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: VERSION_HEADER, value: Some(self.version.as_str()) });
        if let Some(traceparent) = record.traceparent {
            headers = headers.insert(Header { key: TRACEPARENT_HEADER, value: Some(traceparent) });
        }
        let outgoing = BaseRecord::with_opaque_to(&self.topic, record.in_flight)
            .partition(record.partition)
            .key(record.key)
            .payload(record.value)
            .timestamp(record.timestamp_ms)
            .headers(headers);
        self.current.load().send(outgoing).map_err(|(error, _)| {
            let code = code_of(&error);
            if code == RDKafkaErrorCode::Fatal {
                self.signals.error.notify_one();
            }
            // After a broker rejected the topic as a whole, librdkafka itself rejects its records.
            if code == RDKafkaErrorCode::TopicAuthorizationFailed {
                self.signals.rejections.failed(record.partition, code, true, Instant::now());
                self.signals.check.notify_one();
            }
            Rejection::Failed(code)
        })
    }

    /// Returns the number of records without a delivery report.
    pub(crate) fn queued(&self) -> i32 {
        self.current.load().in_flight_count()
    }

    /// Waits until every record has its delivery report, for up to `drain`. Returns how many have none.
    pub(crate) async fn flush(&self, drain: Duration) -> i32 {
        let producer = self.current.load_full();
        let flushed = tokio::task::spawn_blocking(move || finish(&producer, drain)).await;
        flushed.unwrap_or_else(|_| self.queued())
    }
}

fn finish(producer: &Sending, drain: Duration) -> i32 {
    if let Err(error) = producer.flush(drain) {
        tracing::warn!(%error, records = producer.in_flight_count(), "abandoned records without a delivery report");
    }
    producer.in_flight_count()
}

/// Returns librdkafka's code of the error.
pub(crate) fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}

#[cfg(test)]
mod mock_tests;

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;

    use super::*;
    use crate::budget::Budget;

    /// Creates a producer whose cluster is librdkafka's own mock, or does not exist.
    pub(super) fn producer(settings: &[(&str, &str)]) -> Arc<Producer> {
        let mut config = ClientConfig::new();
        config.set("enable.idempotence", "true").set("linger.ms", "0");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let producer = Producer::new(ClientSettings::fixed(config), "msgs").expect("the settings are good");
        producer.open();
        Arc::new(producer)
    }

    pub(super) fn send(producer: &Producer, permit: Permit) -> Result<oneshot::Receiver<Outcome>, Rejection> {
        send_at(producer, permit, 1)
    }

    pub(super) fn send_at(
        producer: &Producer,
        permit: Permit,
        timestamp_ms: i64,
    ) -> Result<oneshot::Receiver<Outcome>, Rejection> {
        let (sender, report) = oneshot::channel();
        producer
            .try_admit()
            .ok_or_else(|| Rejection::Closed("it is being replaced".to_owned()))?
            .send(Outgoing {
                partition: 0,
                key: "bob",
                value: b"hi",
                timestamp_ms,
                traceparent: Some(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
                in_flight: Box::new(InFlight { report_to: ReportSender::One(sender), permit, size: 100 }),
            })
            .map(|()| report)
    }

    #[tokio::test]
    async fn permit_is_released_by_the_report_not_by_the_call() {
        // No broker listens there, so the record stays until it times out.
        let producer = producer(&[("bootstrap.servers", "127.0.0.1:1"), ("delivery.timeout.ms", "300")]);
        let budget = Budget::of_items(2);
        let permit = || budget.try_acquire(1).expect("there is capacity");
        let abandoned = send(&producer, permit()).expect("it is enqueued");
        let awaited = send(&producer, permit()).expect("it is enqueued");
        drop(abandoned);
        assert_eq!(budget.used().items, 2);
        assert!(budget.try_acquire(1).is_err());
        assert_eq!(awaited.await, Ok(Outcome::Unknown));
        producer.flush(Duration::from_secs(5)).await;
        assert_eq!(budget.used().items, 0);
    }

    #[tokio::test]
    async fn closed_producer_rejects_records() {
        let producer = producer(&[("bootstrap.servers", "127.0.0.1:1")]);
        producer.close("the topic does not exist".into());
        let budget = Budget::of_items(1);
        let rejected = send(&producer, budget.try_acquire(1).expect("there is capacity")).map(|_| ());
        assert_eq!(rejected, Err(Rejection::Closed("the topic does not exist".into())));
        assert_eq!(budget.used().items, 0);
    }
}
