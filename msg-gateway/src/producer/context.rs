//! librdkafka's callbacks: delivery reports go to the calls that wait for them, troubles to the tasks that act on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::{Counter, counter};
use msg_common::kafka::raw::persistence;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Notify;

use crate::metrics::DELIVERIES;
use crate::producer::{Answer, InFlight, Report, code_of};
use crate::send::outcome::Outcome;

/// What the callbacks tell the rest of the gateway.
pub struct Signals {
    /// The producer has an error, which may be fatal.
    pub error: Notify,
    /// Something happened that makes a look at the topic worth while.
    pub check: Notify,
    started: Instant,
    /// When the last record was confirmed, in milliseconds after `started`, plus 1; 0 for never.
    confirmed: AtomicU64,
}

impl Signals {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        Signals { error: Notify::new(), check: Notify::new(), started: Instant::now(), confirmed: AtomicU64::new(0) }
    }

    /// Whether a record was confirmed since `when`: then Kafka is there, whatever else seems.
    pub fn confirmed_since(&self, when: Instant) -> bool {
        let confirmed = self.confirmed.load(Ordering::Relaxed);
        confirmed > 0 && self.started + Duration::from_millis(confirmed - 1) >= when
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

/// The callbacks of one librdkafka producer. They run on its polling thread and must not block.
pub struct Context {
    signals: Arc<Signals>,
    stored: Counter,
}

impl Context {
    /// Callbacks that tell `signals`.
    pub fn new(signals: Arc<Signals>) -> Self {
        Context { signals, stored: counter!(DELIVERIES, "outcome" => Outcome::Stored { offset: 0 }.label()) }
    }

    fn failed(&self, code: RDKafkaErrorCode, outcome: Outcome) {
        counter!(DELIVERIES, "outcome" => outcome.label()).increment(1);
        // Thousands may fail at once, each of which would say the same.
        tracing::debug!(%code, outcome = outcome.label(), "a record was not confirmed");
        self.signals.check.notify_one();
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        msg_common::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(code = %code_of(&error), reason, "the producer reports an error");
        // A fatal error comes with the code of its cause, so it cannot be told from here: the supervisor asks.
        self.signals.error.notify_one();
        self.signals.check.notify_one();
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, in_flight: Box<InFlight>) {
        let outcome = match result {
            Ok(message) => {
                self.signals.confirm();
                self.stored.increment(1);
                Outcome::Stored { offset: message.offset() }
            }
            Err((error, message)) => {
                let code = code_of(error);
                let outcome = Outcome::of_failure(code, persistence(message));
                self.failed(code, outcome);
                outcome
            }
        };
        // The place is free before the caller knows: one that sends a message after another never meets itself.
        let InFlight { answer, permit } = *in_flight;
        drop(permit);
        // The caller may have gone, or have been answered at its deadline.
        match answer {
            Answer::One(answer) => drop(answer.send(outcome)),
            Answer::Many { entry, reports } => drop(reports.send(Report { entry, outcome })),
        }
    }
}
