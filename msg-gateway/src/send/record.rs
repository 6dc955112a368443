//! Makes the record of a message, and keeps the parts of a message that its result needs.

use std::time::{Duration, SystemTime};

use msg_common::id::msg_id;
use msg_common::partition::{Partition, partition_for};
use msg_common::proto::{Msg, Placement};
use msg_common::record;
use msg_common::repeat::Repeats;
use prost::Message;
use prost_types::Timestamp;
use rdkafka::types::RDKafkaErrorCode;
use uuid::Uuid;

use crate::budget::{Amount, Permit};
use crate::producer::{Admission, InFlight, Outgoing, Rejection, ReportSender};
use crate::status::Failure;

/// Bytes that a record needs in addition to its key and value: librdkafka's structures, headers and queue entries.
const RECORD_OVERHEAD: usize = 512;

/// A message that was enqueued in the producer and has no result yet.
#[derive(Clone, Debug)]
pub(crate) struct PendingSend {
    pub(crate) recv_id: String,
    pub(crate) msg_id: Uuid,
    partition: Partition,
    accepted_at: SystemTime,
    send_time_ms: i64,
}

impl PendingSend {
    /// Returns the placement of the accepted message. `offset` is `None` if Kafka confirmed the record without it.
    pub(crate) fn placement(&self, offset: Option<i64>) -> Placement {
        Placement {
            msg_id: self.msg_id.to_string(),
            partition: self.partition,
            offset,
            send_time: Some(timestamp(self.send_time_ms)),
            stored: None,
        }
    }

    /// Returns the error for an unknown outcome. The record cannot appear later than `settle` after it was accepted.
    pub(crate) fn unknown(&self, settle: Duration) -> Failure {
        Failure::OutcomeUnknown { msg_id: self.msg_id, settles_by: self.accepted_at + settle }
    }
}

/// Returns the amount in flight of a message: itself, and the bytes that it needs.
pub(crate) fn amount_in_flight(msg: &Msg) -> Amount {
    Amount { items: 1, size: msg.encoded_len() + msg.recv_id.len() + RECORD_OVERHEAD }
}

pub(crate) fn id_of(msg: &Msg) -> Uuid {
    msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id)
}

/// A message, encoded as a record.
pub(crate) struct Record {
    pending: PendingSend,
    value: Vec<u8>,
}

impl Record {
    /// Encodes a message and chooses its partition out of `partitions`.
    pub(crate) fn new(msg: Msg, msg_id: Uuid, partitions: Partition) -> Self {
        let accepted_at = SystemTime::now();
        let since_epoch = accepted_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let send_time_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        let recv_id = msg.recv_id.clone();
        let partition = partition_for(recv_id.as_bytes(), partitions);
        let value = record::encode(msg, msg_id, send_time_ms);
        Record { pending: PendingSend { recv_id, msg_id, partition, accepted_at, send_time_ms }, value }
    }

    /// Puts the record into the producer's queue. It does not wait, so it cannot be dropped partway. The pending send
    /// is returned even if the producer rejects the record.
    pub(crate) fn enqueue(
        self,
        admission: &Admission<'_>,
        traceparent: Option<&[u8]>,
        report_to: ReportSender,
        permit: Permit,
    ) -> (PendingSend, Result<(), Failure>) {
        let size = record::batch_bytes(self.pending.recv_id.len(), self.value.len(), traceparent.map(<[u8]>::len));
        let outgoing = Outgoing {
            partition: self.pending.partition,
            key: &self.pending.recv_id,
            value: &self.value,
            timestamp_ms: self.pending.send_time_ms,
            traceparent,
            in_flight: Box::new(InFlight { report_to, permit, size }),
        };
        let result = admission.send(outgoing).map_err(|rejection| rejected(&rejection));
        (self.pending, result)
    }

    pub(crate) fn pending(self) -> PendingSend {
        self.pending
    }
}

static REJECTIONS: Repeats = Repeats::new();

/// Returns the error for a record that the producer rejected.
fn rejected(rejection: &Rejection) -> Failure {
    match rejection {
        Rejection::Closed(_) => not_accepting(),
        Rejection::Failed(RDKafkaErrorCode::QueueFull) => Failure::Overloaded("the producer's queue is full".into()),
        Rejection::Failed(RDKafkaErrorCode::MessageSizeTooLarge) => too_large(),
        Rejection::Failed(code) => {
            // The caller can do nothing with librdkafka's text.
            let error = code.to_string();
            if let Some(repeated) = REJECTIONS.occurred(&error) {
                tracing::warn!(error, repeated, "the producer rejected a message");
            }
            Failure::NotSent("the gateway could not send the message to Kafka".into())
        }
    }
}

/// Returns the error for messages while the producer is closed. The reason, such as a setting of the topic, is for the
/// operator: readiness has it.
pub(crate) fn not_accepting() -> Failure {
    Failure::NotSent("Kafka is unavailable, or its topic cannot be used; the gateway's readiness says why".into())
}

pub(crate) fn too_large() -> Failure {
    Failure::TooLarge("the message is larger than the topic accepts".into())
}

fn timestamp(millis: i64) -> Timestamp {
    let nanos = i32::try_from(millis.rem_euclid(1000)).expect("below 1000") * 1_000_000;
    Timestamp { seconds: millis.div_euclid(1000), nanos }
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use tokio::sync::oneshot;

    use super::*;
    use crate::budget::Budget;
    use crate::producer::Producer;

    fn admission(producer: &Producer) -> Admission<'_> {
        producer.try_admit().expect("it is not replaced")
    }

    #[tokio::test]
    async fn permit_is_held_from_enqueueing_until_the_report() {
        // No broker listens there, so the record stays until its timeout.
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("delivery.timeout.ms", "500").set("linger.ms", "0");
        let producer =
            Producer::new(msg_common::kafka::ClientSettings::fixed(config), "msgs").expect("the settings are good");
        producer.open();
        let budget = Budget::of_items(1);
        let permit = budget.try_acquire(1).expect("there is capacity");
        let msg = Msg { recv_id: "bob".into(), ..Msg::default() };
        let record = Record::new(msg.clone(), id_of(&msg), 1);
        let (sender, report) = oneshot::channel();
        let (_, enqueued) = record.enqueue(&admission(&producer), None, ReportSender::One(sender), permit);
        enqueued.expect("it is enqueued");
        // The caller has disconnected, and the record is still in flight.
        drop(report);
        assert_eq!(budget.used().items, 1);
        assert!(budget.try_acquire(1).is_err(), "a caller that sends and cancels passes the limit");
        producer.flush(Duration::from_secs(30)).await;
        assert_eq!(budget.used().items, 0);

        // A record that the producer rejects releases its permit immediately.
        producer.close("a test".into());
        let permit = budget.try_acquire(1).expect("there is capacity");
        let record = Record::new(msg.clone(), id_of(&msg), 1);
        let (sender, _report) = oneshot::channel();
        assert!(record.enqueue(&admission(&producer), None, ReportSender::One(sender), permit).1.is_err());
        assert_eq!(budget.used().items, 0);
    }
}
