//! librdkafka's callbacks: they pass delivery reports to the calls that wait for them, and errors to the tasks that
//! handle them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use metrics::{Counter, counter};
use msg_common::kafka::{CreatedAt, raw};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::metrics::DELIVERIES;
use crate::producer::rejections::Rejections;
use crate::producer::{InFlight, Report, ReportSender, code_of, offsets};
use crate::send::outcome::{FailedDelivery, Outcome};

/// The events of the callbacks, for the rest of the gateway.
pub(crate) struct Signals {
    /// The producer reported an error, which may be fatal.
    pub(crate) error: Notify,
    /// An event after which the topic should be checked.
    pub(crate) check: Notify,
    pub(crate) rejections: Rejections,
    /// The ID of the topic when it was last checked; `None` if it is not known.
    pub(crate) topic_id: Arc<ArcSwapOption<Uuid>>,
    /// The records of batches that a broker rejected as too large. Each holds its permit, so there are not more than
    /// may be in flight.
    oversized: Mutex<Vec<InFlight>>,
    started: Instant,
    /// When the last record was confirmed, in milliseconds after `started`, plus 1; 0 for never.
    confirmed: AtomicU64,
}

impl Signals {
    pub(crate) fn new() -> Self {
        Signals {
            error: Notify::new(),
            check: Notify::new(),
            rejections: Rejections::default(),
            topic_id: Arc::default(),
            oversized: Mutex::default(),
            started: Instant::now(),
            confirmed: AtomicU64::new(0),
        }
    }

    /// Returns whether a record was confirmed since `when`. Then Kafka is available, whatever a check says.
    pub(crate) fn confirmed_since(&self, when: Instant) -> bool {
        let confirmed = self.confirmed.load(Ordering::Relaxed);
        confirmed > 0 && self.started + Duration::from_millis(confirmed - 1) >= when
    }

    /// Returns the records of rejected batches whose own size has to be compared with the topic's limit. Read the
    /// limit after this: then it is the one that rejected them, or a later one.
    pub(crate) fn take_oversized(&self) -> Vec<InFlight> {
        std::mem::take(&mut *self.oversized.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn judge_size(&self, in_flight: InFlight) {
        self.oversized.lock().unwrap_or_else(PoisonError::into_inner).push(in_flight);
    }

    fn confirm(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.confirmed.store(millis + 1, Ordering::Relaxed);
    }
}

impl Default for Signals {
    fn default() -> Self {
        Self::new()
    }
}

/// The callbacks of one librdkafka producer. They run in a task of the runtime, or in a
/// flush, and must not block.
pub(crate) struct DeliveryContext {
    signals: Arc<Signals>,
    stored: Counter,
    /// A record that is reported sooner than this was tried once.
    backoff: Duration,
    /// The settings of the producer.
    pub(super) created: CreatedAt,
}

impl DeliveryContext {
    /// Creates callbacks that notify `signals`. librdkafka waits for `backoff` or longer before it retries a record.
    pub(crate) fn new(signals: Arc<Signals>, backoff: Duration, created: CreatedAt) -> Self {
        let stored = counter!(DELIVERIES, "outcome" => Outcome::Stored { offset: None }.label());
        DeliveryContext { signals, stored, backoff, created }
    }

    fn failed(&self, error: &KafkaError, message: &rdkafka::message::BorrowedMessage<'_>) -> Outcome {
        let failed = FailedDelivery {
            code: code_of(error),
            persistence: raw::persistence(message),
            requested: raw::was_requested(message),
            latency: raw::latency(message),
        };
        let outcome = Outcome::of_failure(&failed, self.backoff);
        let by_broker = failed.rejected_by_broker();
        self.signals.rejections.failed(message.partition(), failed.code, by_broker, Instant::now());
        self.signals.check.notify_one();
        outcome
    }
}

/// Sends the outcome of a record to the call that waits for it, if it still does.
pub(crate) fn report(in_flight: InFlight, outcome: Outcome) {
    // Release the permit before the caller gets the outcome. Otherwise a caller that sends one message after another
    // could be rejected because of its own last one.
    let InFlight { report_to, permit, .. } = in_flight;
    drop(permit);
    // The caller may have disconnected, or have timed out.
    match report_to {
        ReportSender::One(report) => drop(report.send(outcome)),
        ReportSender::Many { entry, reports } => drop(reports.send(Report { entry, outcome })),
    }
}

/// Reports a failed delivery, and counts it.
pub(crate) fn report_failure(in_flight: InFlight, outcome: Outcome) {
    counter!(DELIVERIES, "outcome" => outcome.label()).increment(1);
    report(in_flight, outcome);
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        msg_common::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(code = %code_of(&error), reason, "producer reported an error");
        // A fatal error has the code of its cause, so it cannot be recognized here: the supervisor queries it.
        self.signals.error.notify_one();
        self.signals.check.notify_one();
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, in_flight: Box<InFlight>) {
        match result {
            Ok(message) => {
                self.signals.confirm();
                self.signals.rejections.confirmed(message.partition());
                self.stored.increment(1);
                let offset = offsets::confirmed(message.partition(), message.offset());
                report(*in_flight, Outcome::Stored { offset });
            }
            Err((error, message)) => {
                offsets::failed();
                match self.failed(error, message) {
                    // The batch as a whole was too large. Whether a record is too large itself is known when the limit
                    // is.
                    Outcome::NotSent(RDKafkaErrorCode::MessageSizeTooLarge) => self.signals.judge_size(*in_flight),
                    outcome => report_failure(*in_flight, outcome),
                }
            }
        }
    }
}
