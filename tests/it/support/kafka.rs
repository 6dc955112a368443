//! A test's own view of Kafka: it writes records as it likes, and reads what the group has committed.

use std::ffi::CString;
use std::time::{Duration, Instant};

use msg_common::partition::{Partition, partition_for};
use msg_common::proto::{Msg, SessionType};
use msg_common::record;
use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
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

    /// With one more header, whose name may be any bytes: the client's own interface wants text.
    pub(crate) fn put_with_header(&self, partition: Partition, record: &Raw, name: &[u8], value: &[u8]) {
        let topic = CString::new(self.topic.as_str()).unwrap();
        let version = record.version.unwrap_or_default();
        let (key, body) = (record.key.as_deref().unwrap_or_default(), record.value.as_deref().unwrap_or_default());
        use rd::rd_kafka_vtype_t as tag;
        // SAFETY: each tag is followed by what librdkafka reads for it, and everything lives until the call is over: with
        // COPY the key and the value are copied. The headers are the producer's from then on.
        let code = unsafe {
            let headers = rd::rd_kafka_headers_new(2);
            for (name, value) in [(record::VERSION_HEADER.as_bytes(), version.as_bytes()), (name, value)] {
                let (size, length) = (name.len().cast_signed(), value.len().cast_signed());
                rd::rd_kafka_header_add(headers, name.as_ptr().cast(), size, value.as_ptr().cast(), length);
            }
            rd::rd_kafka_producev(
                self.producer.client().native_ptr(),
                tag::RD_KAFKA_VTYPE_TOPIC,
                topic.as_ptr(),
                tag::RD_KAFKA_VTYPE_PARTITION,
                partition,
                tag::RD_KAFKA_VTYPE_MSGFLAGS,
                rd::RD_KAFKA_MSG_F_COPY,
                tag::RD_KAFKA_VTYPE_KEY,
                key.as_ptr(),
                key.len(),
                tag::RD_KAFKA_VTYPE_VALUE,
                body.as_ptr(),
                body.len(),
                tag::RD_KAFKA_VTYPE_HEADERS,
                headers,
                tag::RD_KAFKA_VTYPE_END,
            )
        };
        assert_eq!(code, rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
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
    // The coordinator of a young cluster's first group may still be on its way.
    let committed = answered("committed offsets", || consumer.committed_offsets(list.clone(), TIMEOUT));
    let offset = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    committed.elements().iter().map(offset).collect()
}

/// Where each partition ends.
pub(crate) fn ends(brokers: &str, topic: &str, partitions: Partition) -> Vec<i64> {
    // With a new client each time: one that once heard of no such partition believes that for longer than we wait.
    let client = || ClientConfig::new().set("bootstrap.servers", brokers).create::<BaseConsumer>();
    // So may the leader of a young topic's partition.
    let end = |partition| answered("ends", || client()?.fetch_watermarks(topic, partition, TIMEOUT)).1;
    (0..partitions).map(end).collect()
}

/// Asks until there is an answer.
fn answered<T>(what: &str, ask: impl Fn() -> KafkaResult<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "no {what}: {error}"),
        }
    }
}
