//! A message on its way into Kafka: its id, its partition and its bytes, and what is kept of it until it is answered.

use std::time::{Duration, SystemTime};

use msg_common::id::msg_id;
use msg_common::partition::{Partition, partition_for};
use msg_common::proto::{Msg, Placement};
use msg_common::record;
use prost::Message;
use prost_types::Timestamp;
use rdkafka::types::RDKafkaErrorCode;
use uuid::Uuid;

use crate::producer::{Answer, InFlight, Outgoing, Producer, Refusal};
use crate::send::admission::{Full, Permit, RECORD_OVERHEAD};
use crate::status::Failure;

/// What is kept of a message that the producer has.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its inbox.
    pub recv_id: String,
    /// Its id.
    pub msg_id: Uuid,
    partition: Partition,
    taken_at: SystemTime,
    send_time_ms: i64,
}

impl Taken {
    /// The placement of an accepted message; `offset` is `None` if Kafka confirmed the record without it.
    pub fn placement(&self, offset: Option<i64>) -> Placement {
        Placement {
            msg_id: self.msg_id.to_string(),
            partition: self.partition,
            offset,
            send_time: Some(timestamp(self.send_time_ms)),
            stored: None,
        }
    }

    /// Nobody knows whether Kafka has it; nor will it come later than `settle` after it was taken.
    pub fn unknown(&self, settle: Duration) -> Failure {
        Failure::OutcomeUnknown { msg_id: self.msg_id, settles_by: self.taken_at + settle }
    }
}

/// What a message takes while it is in flight, in bytes.
pub fn bytes_in_flight(msg: &Msg) -> usize {
    msg.encoded_len() + msg.recv_id.len() + RECORD_OVERHEAD
}

/// The id of a message.
pub fn id_of(msg: &Msg) -> Uuid {
    msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id)
}

/// A message as a record.
pub struct Record {
    taken: Taken,
    value: Vec<u8>,
}

impl Record {
    /// Of this message, for one of so many partitions.
    pub fn new(msg: Msg, msg_id: Uuid, partitions: Partition) -> Self {
        let taken_at = SystemTime::now();
        let since_epoch = taken_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let send_time_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        let recv_id = msg.recv_id.clone();
        let partition = partition_for(recv_id.as_bytes(), partitions);
        let value = record::encode(msg, msg_id, send_time_ms);
        Record { taken: Taken { recv_id, msg_id, partition, taken_at, send_time_ms }, value }
    }

    /// Puts it into the producer's queue. There is no waiting in it, so nothing half done can be dropped. What is kept of it
    /// is there whether the producer took it or not.
    pub fn hand_over(
        self,
        producer: &Producer,
        traceparent: Option<&[u8]>,
        answer: Answer,
        permit: Permit,
    ) -> (Taken, Result<(), Failure>) {
        let size = record::batch_bytes(self.taken.recv_id.len(), self.value.len(), traceparent.map(<[u8]>::len));
        let outgoing = Outgoing {
            partition: self.taken.partition,
            key: &self.taken.recv_id,
            value: &self.value,
            timestamp_ms: self.taken.send_time_ms,
            traceparent,
            in_flight: Box::new(InFlight { answer, permit, size }),
        };
        let result = producer.send(outgoing).map_err(refused);
        (self.taken, result)
    }

    /// What would be kept of it.
    #[cfg(test)]
    pub fn kept(self) -> Taken {
        self.taken
    }
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

/// The broker does not take it.
pub fn too_large() -> Failure {
    Failure::TooLarge("the message is larger than the topic takes".into())
}

/// There is no room in flight.
pub fn overloaded(full: Full) -> Failure {
    Failure::Overloaded(match full {
        Full::Msgs => "too many messages in flight".into(),
        Full::Bytes => "too many bytes in flight".into(),
    })
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
    use crate::send::admission::Admission;

    #[tokio::test]
    async fn permit_is_held_from_hand_over_until_the_report() {
        // Nobody listens there, so the record stays until its timeout.
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("delivery.timeout.ms", "500").set("linger.ms", "0");
        let producer = Producer::new(config, "msgs").expect("the settings are good");
        producer.open();
        let admission = Admission::new(1, 10_000);
        let permit = admission.admit(100).expect("there is capacity");
        let msg = Msg { recv_id: "bob".into(), ..Msg::default() };
        let record = Record::new(msg.clone(), id_of(&msg), 1);
        let (answer, report) = oneshot::channel();
        let (_, enqueued) = record.hand_over(&producer, None, Answer::One(answer), permit);
        enqueued.expect("it is enqueued");
        // Its caller is gone, and the record is not.
        drop(report);
        assert_eq!(admission.taken(), (1, 100));
        assert!(admission.admit(1).is_err(), "a caller that sends and cancels passes the limit");
        producer.flush(Duration::from_secs(30)).await;
        assert_eq!(admission.taken(), (0, 0));

        // What the producer does not take gives its permit back at once.
        producer.close("a test".into());
        let permit = admission.admit(100).expect("there is capacity");
        let record = Record::new(msg.clone(), id_of(&msg), 1);
        let (answer, _report) = oneshot::channel();
        assert!(record.hand_over(&producer, None, Answer::One(answer), permit).1.is_err());
        assert_eq!(admission.taken(), (0, 0));
    }
}
