//! Sending: a message is checked at the door, given its id and its partition, handed to the producer, and
//! answered when its delivery report or its deadline comes. One at a time, many together, or on a stream.

mod batch;
pub(crate) mod budget;
pub mod deadline;
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
use tokio::sync::{Semaphore, oneshot};

use crate::buffer_budget::BufferBudget;
use crate::config::Config;
use crate::metrics::{MessageMetrics, SendMetrics};
use crate::producer::{Producer, ReportSender, settings};
use crate::response_permit::ResponseBudget;
use crate::send::budget::SendBudget;
use crate::send::deadline::Timing;
use crate::send::outcome::Outcome;
use crate::send::record::{PendingSend, Record, bytes_in_flight, id_of, overloaded, too_large};
use crate::send::stored::Awaited;
use crate::status::Failure;
use crate::watch::waiters::Waiters;

/// What is known of a call beside its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// When its head arrived.
    pub(crate) arrival: Instant,
    /// The caller's time-out, from then.
    pub(crate) timeout: Option<Duration>,
    /// The caller's W3C trace context, as it came.
    pub(crate) traceparent: Option<&'a [u8]>,
}

/// Takes messages and answers for them.
pub(crate) struct Sender {
    limits: Limits,
    partitions: Partition,
    timing: Timing,
    /// How long after it was handed over a record can still appear in the topic.
    settle_time: Duration,
    budget: Arc<SendBudget>,
    producer: Arc<Producer>,
    waiters: Arc<Waiters>,
    metrics: SendMetrics,
    batch_metrics: MessageMetrics,
    stream_metrics: MessageMetrics,
    /// At how many unanswered messages of a stream no more are read.
    max_stream_inflight: usize,
    /// Requests of streams that wait for room.
    blocked_requests: Arc<BufferBudget>,
    /// Places of open streams.
    streams: Arc<Semaphore>,
    /// Places of entries of streams, from when they are read until their results are pending.
    results: Arc<Semaphore>,
    /// Places of batches whose answers may be large.
    batches: Arc<Semaphore>,
    /// Bytes of results that are not read.
    responses: Arc<ResponseBudget>,
    /// Most messages whose rows may be awaited.
    max_waiting: usize,
}

impl Sender {
    /// Sends as configured, through this producer, as far as there is room.
    pub(crate) fn new(
        config: &Config,
        budget: Arc<SendBudget>,
        producer: Arc<Producer>,
        waiters: Arc<Waiters>,
        responses: Arc<ResponseBudget>,
    ) -> Self {
        Sender {
            limits: config.limits.clone(),
            partitions: config.send.topic_partitions,
            timing: Timing {
                max_wait: config.send.max_send_wait,
                margin: config.send.deadline_margin,
                shortest: config.send.linger,
            },
            settle_time: settings::settle(&config.send),
            budget,
            producer,
            waiters,
            metrics: SendMetrics::new(),
            batch_metrics: MessageMetrics::new("BatchSendMsg"),
            stream_metrics: MessageMetrics::new("StreamSendMsg"),
            max_stream_inflight: config.send.max_stream_inflight_msgs,
            blocked_requests: BufferBudget::new(config.server.max_arriving_bytes),
            streams: semaphore(config.send.max_send_streams),
            results: semaphore(config.send.max_untaken_results),
            batches: semaphore(config.send.max_batches),
            responses,
            max_waiting: config.watch.max_waiting_msgs,
        }
    }

    /// Sends one message and waits until Kafka has it for good, or the database if asked.
    pub(crate) async fn send(&self, request: SendMsgRequest, call: Call<'_>) -> Result<Placement, Failure> {
        let (msg, until_stored) = self.check(request)?;
        let answer_by = self.timing.answer_by(call.arrival, call.timeout, Instant::now())?;
        let awaited = if until_stored { Some(Awaited::new(&self.waiters, &msg)?) } else { None };
        // Before it is encoded: a gateway that is full must refuse cheaply.
        let permit = self.budget.acquire(bytes_in_flight(&msg)).map_err(overloaded)?;
        let msg_id = id_of(&msg);
        let (answer, report) = oneshot::channel();
        let traceparent = call.traceparent.filter(|value| trace::is_valid(value));
        let record = Record::new(msg, msg_id, self.partitions);
        let (pending, enqueued) = record.enqueue(&self.producer, traceparent, ReportSender::One(answer), permit);
        enqueued?;
        // Whoever drops this future, the record and its permit live on until the delivery report.
        let report = tokio::time::timeout_at(answer_by.into(), report).await;
        // A sender that is gone without a word is a producer that was dropped with the record in it.
        let outcome = report.map_or(Outcome::Unknown, |report| report.unwrap_or(Outcome::Unknown));
        let result = match (self.result_of(&pending, outcome), awaited) {
            (Ok(placement), Some(awaited)) => awaited.stored(pending.recv_id, placement, answer_by).await,
            (result, _) => result,
        };
        self.metrics.seconds.record(call.arrival.elapsed());
        if result.is_ok() {
            self.metrics.ok.increment(1);
        }
        result
    }

    /// What a delivery report, or its absence, means for the caller.
    fn result_of(&self, pending: &PendingSend, outcome: Outcome) -> Result<Placement, Failure> {
        match outcome {
            Outcome::Stored { offset } => Ok(pending.placement(offset)),
            Outcome::NotSent(RDKafkaErrorCode::MessageSizeTooLarge) => {
                let text =
                    "Kafka rejected the batch in which the message was sent as too large; the message itself is not";
                Err(Failure::NotSent(text.into()))
            }
            Outcome::NotSent(code) => Err(Failure::NotSent(format!("Kafka rejected the message: {code}"))),
            Outcome::TooLarge => Err(too_large()),
            Outcome::Unknown => {
                // Kafka may be away, which nothing else tells before the delivery time-out.
                self.producer.signals().check.notify_one();
                Err(pending.unknown(self.settle_time))
            }
        }
    }

    /// Whether an entry of a batch or a stream breaks a rule; `path` names it in the request.
    fn check_entry(&self, msg: &Msg, path: impl FnOnce() -> String) -> Result<(), Failure> {
        // The path is made only where it is needed: nearly every message is good.
        if self.limits.violations("", msg).is_empty() {
            return Ok(());
        }
        Err(Failure::Invalid(self.limits.violations(&path(), msg)))
    }

    /// The request's message, if it breaks no rule, and whether to wait until it is stored.
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

fn semaphore(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
}

/// Whether an answer has to wait for the row.
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

/// One entry's result as the contract has it.
fn into_result(result: Result<Placement, Failure>) -> SendResult {
    let result = match result {
        Ok(placement) => send_result::Result::Placement(placement),
        Err(failure) => send_result::Result::Error(failure.of_entry()),
    };
    SendResult { result: Some(result) }
}
