//! Sending: a message is checked at the door, given its id and its partition, handed to the producer, and
//! answered when its delivery report or its deadline comes.

pub mod admission;
pub mod deadline;
pub mod outcome;
pub mod trace;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use msg_common::id::msg_id;
use msg_common::limits::{Limits, Violation};
use msg_common::partition::{Partition, partition_for};
use msg_common::proto::{Msg, Placement, SendMsgRequest, WaitFor};
use msg_common::record;
use prost::Message;
use prost_types::Timestamp;
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::metrics::SendMetrics;
use crate::producer::{InFlight, Outgoing, Producer, Refusal};
use crate::send::admission::{Admission, Full, RECORD_OVERHEAD};
use crate::send::deadline::Timing;
use crate::send::outcome::Outcome;
use crate::status::Failure;

/// What is known of a call beside its request.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// When its head arrived.
    pub arrival: Instant,
    /// The caller's time-out, from then.
    pub timeout: Option<Duration>,
    /// The caller's W3C trace context, as it came.
    pub traceparent: Option<&'a [u8]>,
}

/// Takes messages and answers for them.
pub struct Sender {
    limits: Limits,
    partitions: Partition,
    timing: Timing,
    settle: Duration,
    admission: Arc<Admission>,
    producer: Arc<Producer>,
    metrics: SendMetrics,
}

impl Sender {
    /// `settle` is how long after it was handed over a record can still appear in the topic.
    pub fn new(
        limits: Limits,
        partitions: Partition,
        timing: Timing,
        settle: Duration,
        admission: Arc<Admission>,
        producer: Arc<Producer>,
    ) -> Self {
        Sender { limits, partitions, timing, settle, admission, producer, metrics: SendMetrics::new() }
    }

    /// Sends one message and waits until Kafka has it for good.
    pub async fn send(&self, request: SendMsgRequest, call: Call<'_>) -> Result<Placement, Failure> {
        let msg = self.check(request)?;
        let now = Instant::now();
        let answer_by = self.timing.answer_by(call.arrival, call.timeout, now)?;
        let pending = self.hand_over(msg, call.traceparent)?;
        // Whoever drops this future, the record and its permit live on until the delivery report.
        let outcome = tokio::time::timeout_at(answer_by.into(), pending.report).await;
        self.metrics.seconds.record(call.arrival.elapsed());
        match outcome {
            Ok(Ok(Outcome::Stored { offset })) => {
                self.metrics.ok.increment(1);
                Ok(Placement { offset, ..pending.placement })
            }
            Ok(Ok(Outcome::NotSent(code))) => Err(Failure::NotSent(format!("Kafka refused the message: {code}"))),
            Ok(Ok(Outcome::TooLarge)) => Err(too_large()),
            // A sender that is gone without a word is a producer that was dropped with the record in it.
            Ok(Ok(Outcome::Unknown) | Err(_)) | Err(_) => {
                // Kafka may be away, which nothing else tells before the delivery time-out.
                self.producer.signals().check.notify_one();
                Err(Failure::OutcomeUnknown { msg_id: pending.msg_id, settles_by: pending.taken_at + self.settle })
            }
        }
    }

    /// The request's message, if it breaks no rule.
    fn check(&self, request: SendMsgRequest) -> Result<Msg, Failure> {
        let mut violations = match &request.msg {
            Some(msg) => self.limits.violations("msg", msg),
            None => vec![Violation { field: "msg".into(), description: "must be set".into() }],
        };
        let wait_for = WaitFor::try_from(request.wait_for);
        if wait_for.is_err() {
            let description = format!("{} is not a WaitFor", request.wait_for);
            violations.push(Violation { field: "wait_for".into(), description });
        }
        match (request.msg, violations.is_empty()) {
            (Some(msg), true) if wait_for != Ok(WaitFor::Stored) => Ok(msg),
            (Some(_), true) => Err(Failure::NotImplemented("wait_for WAIT_FOR_STORED is not implemented yet")),
            _ => Err(Failure::Invalid(violations)),
        }
    }

    /// Everything up to the producer's queue: there is no waiting in it, so nothing half done can be dropped.
    fn hand_over(&self, msg: Msg, traceparent: Option<&[u8]>) -> Result<Pending, Failure> {
        // Before it is encoded: a gateway that is full must refuse cheaply.
        let bytes = msg.encoded_len() + msg.recv_id.len() + RECORD_OVERHEAD;
        let permit = self.admission.admit(bytes).map_err(|full| {
            Failure::Overloaded(match full {
                Full::Msgs => "too many messages in flight".into(),
                Full::Bytes => "too many bytes in flight".into(),
            })
        })?;
        let msg_id = msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id);
        let taken_at = SystemTime::now();
        let since_epoch = taken_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let send_time_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        let key = msg.recv_id.clone();
        let partition = partition_for(key.as_bytes(), self.partitions);
        let value = record::encode(msg, msg_id, send_time_ms);
        let (answer, report) = oneshot::channel();
        let outgoing = Outgoing {
            partition,
            key: &key,
            value: &value,
            timestamp_ms: send_time_ms,
            traceparent: traceparent.filter(|value| trace::is_valid(value)),
            in_flight: Box::new(InFlight { answer, permit }),
        };
        self.producer.send(outgoing).map_err(refused)?;
        let placement = Placement {
            msg_id: msg_id.to_string(),
            partition,
            offset: 0,
            send_time: Some(timestamp(send_time_ms)),
            stored: None,
        };
        Ok(Pending { msg_id, taken_at, placement, report })
    }
}

/// A record that the producer has.
struct Pending {
    msg_id: Uuid,
    taken_at: SystemTime,
    placement: Placement,
    report: oneshot::Receiver<Outcome>,
}

/// What it means that the producer did not take a record.
fn refused(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Closed(reason) => Failure::NotSent(reason),
        Refusal::Failed(RDKafkaErrorCode::QueueFull) => Failure::Overloaded("the producer's queue is full".into()),
        Refusal::Failed(RDKafkaErrorCode::MessageSizeTooLarge) => too_large(),
        Refusal::Failed(code) => Failure::NotSent(format!("the producer refused the message: {code}")),
    }
}

fn too_large() -> Failure {
    Failure::TooLarge("the message is larger than the topic takes".into())
}

fn timestamp(millis: i64) -> Timestamp {
    let nanos = i32::try_from(millis.rem_euclid(1000)).expect("below 1000") * 1_000_000;
    Timestamp { seconds: millis.div_euclid(1000), nanos }
}
