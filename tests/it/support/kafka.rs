//! A test's own view of Kafka: it writes records as it likes, and reads what the group has committed.

use std::time::Duration;

use msg_common::partition::{Partition, partition_for};
use msg_common::proto::{Msg, SessionType};
use msg_common::record;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use uuid::Uuid;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A record to write.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) version: Option<&'static str>,
}

/// A message as a test writes one: `body` from `from` to `to`.
pub(crate) fn msg(from: &str, to: &str, id: &str, body: impl Into<Vec<u8>>) -> Msg {
    Msg {
        recv_id: to.into(),
        send_id: from.into(),
        client_msg_id: id.into(),
        session_type: SessionType::Single.into(),
        content_type: "text/plain".into(),
        content: body.into().into(),
        attributes: [("lang".to_owned(), "en".to_owned())].into(),
    }
}

/// The record that a gateway would write for it.
pub(crate) fn good(msg: &Msg) -> Raw {
    let msg_id = msg_common::id::msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id);
    Raw {
        key: Some(msg.recv_id.clone().into_bytes()),
        value: Some(record::encode(msg.clone(), msg_id, 1_700_000_000_000)),
        version: Some("1"),
    }
}

/// The id of a message with a `client_msg_id`.
pub(crate) fn id_of(msg: &Msg) -> Uuid {
    msg_common::id::msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id)
}

/// Writes to one topic.
pub(crate) struct Writer {
    producer: BaseProducer,
    topic: String,
    partitions: Partition,
}

impl Writer {
    pub(crate) fn new(brokers: &str, topic: &str, partitions: Partition) -> Writer {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("enable.idempotence", "true")
            .set("queue.buffering.max.messages", "2000000")
            .set("queue.buffering.max.kbytes", "2000000")
            .set("message.max.bytes", "2000000")
            .set("linger.ms", "2")
            .create()
            .unwrap();
        Writer { producer, topic: topic.into(), partitions }
    }

    /// To the partition of its key.
    pub(crate) fn put(&self, record: &Raw) {
        let partition = partition_for(record.key.as_deref().unwrap_or_default(), self.partitions);
        self.put_to(partition, record);
    }

    pub(crate) fn put_to(&self, partition: Partition, record: &Raw) {
        let mut headers = OwnedHeaders::new().insert(Header { key: "traceparent", value: Some("00-0-0-00") });
        if let Some(version) = record.version {
            headers = headers.insert(Header { key: record::VERSION_HEADER, value: Some(version) });
        }
        let mut base = BaseRecord::<[u8], [u8]>::to(&self.topic).partition(partition).headers(headers);
        base.key = record.key.as_deref();
        base.payload = record.value.as_deref();
        self.producer.send(base).map_err(|(error, _)| error).unwrap();
    }

    /// Until every broker has everything.
    pub(crate) fn flush(&self) {
        self.producer.flush(TIMEOUT).unwrap();
    }
}

/// What a group has committed, by partition; `None` where nothing is.
pub(crate) fn committed(brokers: &str, group: &str, topic: &str, partitions: Partition) -> Vec<Option<i64>> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", group).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let committed = consumer.committed_offsets(list, TIMEOUT).unwrap();
    let offset = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    committed.elements().iter().map(offset).collect()
}

/// Where each partition ends.
pub(crate) fn ends(brokers: &str, topic: &str, partitions: Partition) -> Vec<i64> {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    (0..partitions).map(|partition| consumer.fetch_watermarks(topic, partition, TIMEOUT).unwrap().1).collect()
}
