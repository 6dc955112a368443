//! The producer: the handle that records are sent through, its delivery reports, and its replacement after a fatal
//! error.

pub(crate) mod context;
mod offsets;
pub(crate) mod preflight;
pub(crate) mod rejections;
pub(crate) mod settings;
mod stall_timer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use metrics::counter;
use msg_common::admin::Readiness;
use msg_common::partition::Partition;
use msg_common::record::{TRACEPARENT_HEADER, VERSION, VERSION_HEADER};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, PurgeConfig, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::budget::Permit;
use crate::metrics::PRODUCERS_REPLACED;
pub(crate) use crate::producer::context::{DeliveryContext, Signals};
use crate::producer::stall_timer::StallTimer;
use crate::send::outcome::Outcome;

/// The component of [`Readiness`] for the producer.
pub(crate) const COMPONENT: &str = "producer";

/// How often, and at which interval, a replaced producer is purged: a send may have started before it was replaced.
const PURGES: usize = 5;
const PURGE_INTERVAL: Duration = Duration::from_secs(1);

/// How often to check whether the producer is stalled.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

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

pub(crate) struct Outgoing<'a> {
    /// Computed by the gateway, not by librdkafka.
    pub(crate) partition: Partition,
    /// The `recv_id`.
    pub(crate) key: &'a str,
    /// An encoded MsgRecord.
    pub(crate) value: &'a [u8],
    /// Milliseconds since 1970.
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
    config: ClientConfig,
    topic: String,
    current: ArcSwap<ThreadedProducer<DeliveryContext>>,
    /// Why records are rejected; `None` while the topic can be used.
    closed: ArcSwapOption<String>,
    signals: Arc<Signals>,
    version: String,
    backoff: Duration,
}

impl Producer {
    /// Creates a producer that rejects every record until [`Producer::open`].
    pub(crate) fn new(config: ClientConfig, topic: &str) -> KafkaResult<Self> {
        let signals = Arc::new(Signals::new());
        let backoff = settings::shortest_backoff(&config);
        let current = config.create_with_context(DeliveryContext::new(signals.clone(), backoff))?;
        Ok(Producer {
            config,
            topic: topic.to_owned(),
            current: ArcSwap::from_pointee(current),
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

    /// Enqueues a record. It never blocks. The outcome is sent through `in_flight`.
    pub(crate) fn send(&self, record: Outgoing<'_>) -> Result<(), Rejection> {
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

    /// Replaces the librdkafka producer after a fatal error, and after it has confirmed nothing for longer than
    /// `drain`. Runs until `stop`.
    pub(crate) async fn supervise(self: Arc<Self>, readiness: Readiness, drain: Duration, stop: CancellationToken) {
        let mut timer = StallTimer::new(drain);
        let mut checks = tokio::time::interval(CHECK_INTERVAL);
        loop {
            tokio::select! {
                () = self.signals.error.notified() => {}
                _ = checks.tick() => self.replace_stuck(&mut timer),
                () = stop.cancelled() => return,
            }
            // Most errors are not fatal, and a replaced producer may still report some.
            let Some((code, detail)) = self.current.load().client().fatal_error() else {
                continue;
            };
            readiness.not_ready(COMPONENT, format!("fatal error {code}: {detail}"));
            match self.create() {
                Ok(fresh) => self.replace(Arc::new(fresh), &readiness, drain),
                Err(error) => {
                    tracing::error!(%error, "cannot create a producer");
                    self.signals.error.notify_one();
                }
            }
            // If a broker makes each new producer fail, this must not spin.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Does nothing while the topic cannot be used: another producer would not help.
    fn replace_stuck(&self, timer: &mut StallTimer) {
        let now = Instant::now();
        let since = self.signals.rejections.timing_out_since(now);
        if self.closed.load().is_some() || !timer.expired(since, now) {
            return;
        }
        tracing::warn!("replacing stalled producer, all deliveries time out");
        if let Err(error) = self.replace_abandoning() {
            tracing::error!(%error, "cannot create a producer");
        }
    }

    fn replace(&self, fresh: Arc<ThreadedProducer<DeliveryContext>>, readiness: &Readiness, drain: Duration) {
        let old = self.swap(fresh);
        readiness.ready(COMPONENT);
        // Its delivery reports are outstanding. Dropping it now would discard its records without a report.
        tokio::task::spawn_blocking(move || finish(&old, drain));
    }

    /// Replaces the librdkafka producer, and abandons the records of the old one: their outcome is unknown. This is
    /// for a recreated topic, where records to the old one are neither delivered nor timed out and block the records
    /// behind them, and for a stalled producer.
    pub(crate) fn replace_abandoning(&self) -> KafkaResult<()> {
        let fresh = self.create()?;
        let old = self.swap(Arc::new(fresh));
        tokio::task::spawn_blocking(move || purge(&old));
        Ok(())
    }

    fn create(&self) -> KafkaResult<ThreadedProducer<DeliveryContext>> {
        self.config.create_with_context(DeliveryContext::new(self.signals.clone(), self.backoff))
    }

    fn swap(&self, fresh: Arc<ThreadedProducer<DeliveryContext>>) -> Arc<ThreadedProducer<DeliveryContext>> {
        counter!(PRODUCERS_REPLACED).increment(1);
        self.current.swap(fresh)
    }

    /// Waits until every record has its delivery report, for up to `drain`. Returns how many have none.
    pub(crate) async fn flush(&self, drain: Duration) -> i32 {
        let producer = self.current.load_full();
        let flushed = tokio::task::spawn_blocking(move || finish(&producer, drain)).await;
        flushed.unwrap_or_else(|_| self.queued())
    }
}

fn finish(producer: &ThreadedProducer<DeliveryContext>, drain: Duration) -> i32 {
    if let Err(error) = producer.flush(drain) {
        tracing::warn!(%error, records = producer.in_flight_count(), "abandoned records without a delivery report");
    }
    producer.in_flight_count()
}

/// Purges the records of a replaced producer, each with its report, and those that were being enqueued when it was
/// replaced.
fn purge(producer: &ThreadedProducer<DeliveryContext>) {
    for _ in 0..PURGES {
        producer.purge(PurgeConfig::default().queue().inflight());
        let _ = producer.flush(PURGE_INTERVAL);
        std::thread::sleep(PURGE_INTERVAL);
    }
    let records = producer.in_flight_count();
    if records > 0 {
        tracing::warn!(records, "abandoned records without a delivery report");
    }
}

/// Returns librdkafka's code of the error.
pub(crate) fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}

#[cfg(test)]
mod mock_tests;

#[cfg(test)]
mod tests {
    use rdkafka::bindings::{rd_kafka_resp_err_t, rd_kafka_test_fatal_error};

    use super::*;
    use crate::budget::Budget;

    /// Creates a producer whose cluster is librdkafka's own mock, or does not exist.
    fn producer(settings: &[(&str, &str)]) -> Arc<Producer> {
        let mut config = ClientConfig::new();
        config.set("enable.idempotence", "true").set("linger.ms", "0");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let producer = Producer::new(config, "msgs").expect("the settings are good");
        producer.open();
        Arc::new(producer)
    }

    fn send(producer: &Producer, permit: Permit) -> Result<oneshot::Receiver<Outcome>, Rejection> {
        let (sender, report) = oneshot::channel();
        producer
            .send(Outgoing {
                partition: 0,
                key: "bob",
                value: b"hi",
                timestamp_ms: 1,
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

    #[tokio::test(flavor = "multi_thread")]
    async fn replaced_producer_reports_unknown_and_releases_permits() {
        // No broker listens there, and nothing times out.
        let producer = producer(&[("bootstrap.servers", "127.0.0.1:1")]);
        let budget = Budget::of_items(10_000);
        let permit = || budget.try_acquire(1).expect("there is capacity");
        let before: Vec<_> = (0..100).map(|_| send(&producer, permit()).expect("it is enqueued")).collect();
        let sending = producer.clone();
        // Enqueues records while the producer is replaced.
        let (permits, stop) = (budget.clone(), CancellationToken::new());
        let (stopped, _ends_the_sender) = (stop.clone(), stop.clone().drop_guard());
        let sender = tokio::task::spawn_blocking(move || {
            while !stopped.is_cancelled() {
                if let Ok(permit) = permits.try_acquire(1) {
                    let _ = send(&sending, permit);
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        producer.replace_abandoning().expect("the settings are good");
        for report in before {
            // The report must arrive before the old producer is dropped, which is later.
            let report = tokio::time::timeout(3 * PURGE_INTERVAL, report).await;
            assert_eq!(report.expect("it is reported before the old producer is dropped"), Ok(Outcome::Unknown));
        }
        stop.cancel();
        sender.await.expect("it ends");
        // Only the records of the new producer hold permits.
        let left = async || {
            while budget.used().items != usize::try_from(producer.queued()).expect("it is positive") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), left()).await.expect("the permits of the old one are released");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn producer_with_a_fatal_error_is_replaced() {
        let producer = producer(&[("test.mock.num.brokers", "1")]);
        let budget = Budget::of_items(2);
        let permit = || budget.try_acquire(1).expect("there is capacity");
        let stored = send(&producer, permit()).expect("it is enqueued").await;
        assert_eq!(stored, Ok(Outcome::Stored { offset: Some(0) }));

        let readiness = Readiness::waiting_for(&[]);
        let mut ready = readiness.watch();
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(producer.clone().supervise(readiness, Duration::from_secs(5), stop.clone()));
        let broken = producer.current.load_full();
        // SAFETY: the client lives as long as `broken`, and the text is a C string.
        unsafe {
            let code = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
            rd_kafka_test_fatal_error(broken.client().native_ptr(), code, c"a test".as_ptr());
        }
        drop(broken);
        ready.changed().await.expect("the supervisor runs");
        ready.wait_for(|ready| *ready).await.expect("the supervisor runs");
        // The new producer has a mock cluster of its own, whose topic is empty.
        let stored = send(&producer, permit()).expect("the new one accepts it").await;
        assert_eq!(stored, Ok(Outcome::Stored { offset: Some(0) }));
        stop.cancel();
        supervisor.await.expect("it ends");
    }
}
