//! Sends messages: checks a message, determines its ID and partition, enqueues it in the producer, and returns a result when
//! its delivery report arrives or its deadline passes. SendMsg sends one message, BatchSendMsg many together, and
//! StreamSendMsg many on a stream.

mod batch;
pub mod deadline;
pub mod offline;
pub(crate) mod outcome;
pub(crate) mod record;
pub(crate) mod stored;
pub(crate) mod stream;
pub mod trace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use msg_common::limits::{Limits, MAX_REQUEST_MSGS, Violation};
use msg_common::partition::Partition;
use msg_common::proto::{Msg, Placement, SendMsgRequest, SendResult, WaitFor, send_result};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::oneshot;

use crate::auth::rules::Caller;
use crate::budget::Budgets;
use crate::config::Config;
use crate::config::producer as settings;
use crate::metrics::{MessageMetrics, SendMetrics};
use crate::producer::{Admission, Producer, ReportSender};
use crate::quota::{Account, Rates};
use crate::send::deadline::Timing;
use crate::send::outcome::Outcome;
use crate::send::record::{PendingSend, Record, amount_in_flight, id_of, not_accepting, too_large};
use crate::send::stored::Awaited;
use crate::status::Failure;
use crate::watch::waiters::Waiters;

/// The part of a call that is not its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// When the head of the request arrived.
    pub(crate) arrival: Instant,
    /// The caller's timeout, which starts at `arrival`.
    pub(crate) timeout: Option<Duration>,
    /// The caller's W3C trace context, not validated yet.
    pub(crate) traceparent: Option<&'a [u8]>,
    pub(crate) caller: &'a Caller,
    /// Whom the call is counted for.
    pub(crate) account: Account,
}

/// Sends messages and reports their outcomes.
pub(crate) struct Sender {
    limits: Limits,
    partitions: Partition,
    timing: Timing,
    /// How long after a record was enqueued it can still appear in the topic.
    settle_time: Duration,
    budgets: Arc<Budgets>,
    rates: Rates,
    producer: Arc<Producer>,
    waiters: Arc<Waiters>,
    metrics: SendMetrics,
    batch_metrics: MessageMetrics,
    stream_metrics: MessageMetrics,
    /// With this many messages of a stream without a result, no further request is read from it.
    max_stream_inflight: usize,
    /// Maximum number of messages of a batch that may wait to be stored.
    max_waiting: usize,
}

impl Sender {
    pub(crate) fn new(config: &Config, budgets: Arc<Budgets>, producer: Arc<Producer>, waiters: Arc<Waiters>) -> Self {
        Sender {
            limits: config.limits.clone(),
            partitions: config.send.topic_partitions,
            timing: Timing {
                max_wait: config.send.max_send_wait,
                margin: config.send.deadline_margin,
                shortest: config.send.linger,
            },
            settle_time: settings::settle(&config.send),
            budgets,
            rates: Rates::new(&config.quota),
            producer,
            waiters,
            metrics: SendMetrics::new(),
            batch_metrics: MessageMetrics::new("BatchSendMsg"),
            stream_metrics: MessageMetrics::new("StreamSendMsg"),
            max_stream_inflight: config.send.max_stream_inflight_msgs,
            max_waiting: config.watch.max_stored_waiters,
        }
    }

    /// Sends one message and waits until it is accepted, or until it is stored if the request says so.
    pub(crate) async fn send(&self, request: SendMsgRequest, call: Call<'_>) -> Result<Placement, Failure> {
        let (msg, until_stored) = self.check(request)?;
        call.caller.check_send(&msg, || "msg.send_id".into())?;
        let respond_by = self.timing.respond_by(call.arrival, call.timeout, Instant::now())?;
        let awaited = if until_stored { Some(Awaited::new(&self.waiters, &msg)?) } else { None };
        // Acquire before the message is encoded: a full gateway must reject cheaply.
        let permit = self.budgets.in_flight.try_acquire_for(call.account.caller, amount_in_flight(&msg))?;
        // While it waits, its permit bounds the memory. If this future is dropped, nothing was sent.
        let admission = self.admit(respond_by).await?;
        // Last: a message that is rejected for another reason must not use up a quota.
        self.rates.take(&msg, call.account)?;
        let msg_id = id_of(&msg);
        let (sender, report) = oneshot::channel();
        let traceparent = call.traceparent.filter(|value| trace::is_valid(value));
        let record = Record::new(msg, msg_id, self.partitions);
        let (pending, enqueued) = record.enqueue(&admission, traceparent, ReportSender::One(sender), permit);
        drop(admission);
        enqueued?;
        // If this future is dropped, the record and its permit stay until the delivery report.
        let report = tokio::time::timeout_at(respond_by.into(), report).await;
        // If the report's sender was dropped, the producer was dropped together with the record.
        let outcome = report.map_or(Outcome::Unknown, |report| report.unwrap_or(Outcome::Unknown));
        let result = match (self.result_of(&pending, outcome), awaited) {
            (Ok(placement), Some(awaited)) => awaited.stored(pending.recv_id, placement, respond_by).await,
            (result, _) => result,
        };
        self.metrics.seconds.record(call.arrival.elapsed());
        if result.is_ok() {
            self.metrics.ok.increment(1);
        }
        result
    }

    /// Waits until records can be enqueued, for a short time while the producer is replaced.
    async fn admit(&self, respond_by: Instant) -> Result<Admission<'_>, Failure> {
        let admitted = tokio::time::timeout_at(respond_by.into(), self.producer.admit()).await;
        admitted.ok().flatten().ok_or_else(not_accepting)
    }

    /// Turns the outcome of a record into the caller's result. After an unknown outcome it has the topic checked.
    fn result_of(&self, pending: &PendingSend, outcome: Outcome) -> Result<Placement, Failure> {
        if outcome == Outcome::Unknown {
            self.check_topic();
        }
        result_of(pending, outcome, self.settle_time)
    }

    /// Has the topic checked: Kafka may be unavailable. Without this check, only the delivery timeout would show it.
    fn check_topic(&self) {
        self.producer.signals().check.notify_one();
    }

    /// Checks the request. Returns its message, and whether to wait until it is stored.
    fn check(&self, request: SendMsgRequest) -> Result<(Msg, bool), Failure> {
        let mut violations = match &request.msg {
            Some(msg) => self.limits.violations("msg", msg),
            None => vec![must_be_set("msg")],
        };
        let until_stored = until_stored(request.wait_for);
        match (request.msg, until_stored) {
            (Some(msg), Ok(until_stored)) if violations.is_empty() => Ok((msg, until_stored)),
            (_, until_stored) => {
                violations.extend(until_stored.err());
                Err(Failure::Invalid(violations))
            }
        }
    }
}

/// Turns the outcome of a record into the caller's result. `settle_time` is how long after it was enqueued it can still
/// appear in the topic.
fn result_of(pending: &PendingSend, outcome: Outcome, settle_time: Duration) -> Result<Placement, Failure> {
    match outcome {
        Outcome::Stored { offset } => Ok(pending.placement(offset)),
        Outcome::NotSent(RDKafkaErrorCode::MessageSizeTooLarge) => {
            let text = "Kafka rejected the batch in which the message was sent as too large; the message itself is not";
            Err(Failure::NotSent(text.into()))
        }
        // The log and the readiness name Kafka's error.
        Outcome::NotSent(_) => Err(Failure::NotSent("Kafka rejected the message".into())),
        Outcome::TooLarge => Err(too_large()),
        Outcome::Unknown => Err(pending.unknown(settle_time)),
    }
}

/// Checks an entry of a batch or a stream, and whether its caller may send it. `path` names it in the request.
fn check_entry(limits: &Limits, caller: &Caller, msg: &Msg, path: impl FnOnce() -> String) -> Result<(), Failure> {
    // Build the path only for a violation: nearly every message is valid.
    if limits.violations("", msg).is_empty() {
        return caller.check_send(msg, || format!("{}.send_id", path()));
    }
    Err(Failure::Invalid(limits.violations(&path(), msg)))
}

/// Returns whether the result has to wait for the row.
fn until_stored(wait_for: i32) -> Result<bool, Violation> {
    match WaitFor::try_from(wait_for) {
        Ok(wait_for) => Ok(wait_for == WaitFor::Stored),
        Err(_) => Err(Violation { field: "wait_for".into(), description: format!("{wait_for} is not a WaitFor") }),
    }
}

fn must_be_set(field: &str) -> Violation {
    Violation { field: field.into(), description: "must be set".into() }
}

fn check_count(field: &str, count: usize) -> Option<Violation> {
    let description = match count {
        0 => "must not be empty".into(),
        1..=MAX_REQUEST_MSGS => return None,
        _ => format!("has {count} entries; at most {MAX_REQUEST_MSGS}"),
    };
    Some(Violation { field: field.into(), description })
}

/// Converts the result of one entry to its proto message.
fn into_result(result: Result<Placement, Failure>) -> SendResult {
    let result = match result {
        Ok(placement) => send_result::Result::Placement(placement),
        Err(failure) => send_result::Result::Error(failure.of_entry()),
    };
    SendResult { result: Some(result) }
}
