//! The producer: how librdkafka is set up, the handle that records go through, and how it is replaced
//! after a fatal error.

pub mod context;
pub mod preflight;
pub mod settings;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use metrics::counter;
use msg_common::admin::Readiness;
use msg_common::partition::Partition;
use msg_common::record::{TRACEPARENT_HEADER, VERSION, VERSION_HEADER};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::metrics::PRODUCERS_REPLACED;
pub use crate::producer::context::{Context, Signals};
use crate::send::admission::Permit;
use crate::send::outcome::Outcome;

/// The component of [`Readiness`] that speaks for the producer.
pub const COMPONENT: &str = "producer";

/// What travels with a record through librdkafka until its delivery report.
pub struct InFlight {
    /// Where the report goes. Nobody may be listening any more.
    pub answer: oneshot::Sender<Outcome>,
    /// The record's place in flight, given back when this is dropped.
    pub permit: Permit,
}

/// A record on its way out.
pub struct Outgoing<'a> {
    /// Computed by us, not by librdkafka.
    pub partition: Partition,
    /// The `recv_id`.
    pub key: &'a str,
    /// An encoded MsgRecord.
    pub value: &'a [u8],
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
    /// A valid trace context, if the caller sent one.
    pub traceparent: Option<&'a [u8]>,
    /// Comes back with the delivery report.
    pub in_flight: Box<InFlight>,
}

/// Why a record was not taken; it was certainly not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The topic cannot be used at present, and why.
    Closed(String),
    /// librdkafka did not take it.
    Failed(RDKafkaErrorCode),
}

/// The handle that records go through. There is one librdkafka producer behind it at a time.
pub struct Producer {
    config: ClientConfig,
    topic: String,
    current: ArcSwap<ThreadedProducer<Context>>,
    /// Why nothing may be sent; `None` while the topic can be used.
    closed: ArcSwapOption<String>,
    signals: Arc<Signals>,
    version: String,
}

impl Producer {
    /// A producer that takes nothing until [`Producer::open`].
    pub fn new(config: ClientConfig, topic: &str) -> KafkaResult<Self> {
        let signals = Arc::new(Signals::new());
        let current = config.create_with_context(Context::new(signals.clone()))?;
        Ok(Producer {
            config,
            topic: topic.to_owned(),
            current: ArcSwap::from_pointee(current),
            closed: ArcSwapOption::from_pointee("the topic has not been checked yet".to_owned()),
            signals,
            version: VERSION.to_string(),
        })
    }

    /// What its callbacks have to tell.
    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// From now on records are taken.
    pub fn open(&self) {
        self.closed.store(None);
    }

    /// From now on every record is refused with this reason.
    pub fn close(&self, reason: String) {
        self.closed.store(Some(Arc::new(reason)));
    }

    /// Puts a record into the queue. Never blocks. What became of it comes through `in_flight`.
    pub fn send(&self, record: Outgoing<'_>) -> Result<(), Refusal> {
        if let Some(reason) = &*self.closed.load() {
            return Err(Refusal::Closed(reason.to_string()));
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
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            if code == RDKafkaErrorCode::Fatal {
                self.signals.fatal.notify_one();
            }
            Refusal::Failed(code)
        })
    }

    /// How many records have no delivery report yet.
    pub fn queued(&self) -> i32 {
        self.current.load().in_flight_count()
    }

    /// Replaces the librdkafka producer after each fatal error, until told to stop.
    pub async fn supervise(self: Arc<Self>, readiness: Readiness, drain: Duration, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.signals.fatal.notified() => {}
                () = stop.cancelled() => return,
            }
            // A report of the producer that was replaced meanwhile comes here too.
            let Some((code, detail)) = self.current.load().client().fatal_error() else {
                continue;
            };
            readiness.not_ready(COMPONENT, format!("fatal error {code}: {detail}"));
            match self.config.create_with_context(Context::new(self.signals.clone())) {
                Ok(fresh) => self.replace(Arc::new(fresh), &readiness, drain),
                Err(error) => {
                    tracing::error!(%error, "cannot make a new producer");
                    self.signals.fatal.notify_one();
                }
            }
            // A broker that answers each producer with a fatal error must not make us spin.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn replace(&self, fresh: Arc<ThreadedProducer<Context>>, readiness: &Readiness, drain: Duration) {
        let old = self.current.swap(fresh);
        counter!(PRODUCERS_REPLACED).increment(1);
        readiness.ready(COMPONENT);
        // Its reports are still to come, and its drop would throw away the records without one.
        tokio::task::spawn_blocking(move || finish(&old, drain));
    }

    /// Waits until every record has its delivery report, for up to `drain`; how many have none then.
    pub async fn flush(&self, drain: Duration) -> i32 {
        let producer = self.current.load_full();
        let flushed = tokio::task::spawn_blocking(move || finish(&producer, drain)).await;
        flushed.unwrap_or_else(|_| self.queued())
    }
}

fn finish(producer: &ThreadedProducer<Context>, drain: Duration) -> i32 {
    if let Err(error) = producer.flush(drain) {
        tracing::warn!(%error, records = producer.in_flight_count(), "records without a delivery report are given up");
    }
    producer.in_flight_count()
}

/// The code within librdkafka's answer.
pub(crate) fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}
