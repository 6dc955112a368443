//! A test's direct access to Kafka: it writes any record.

use std::ffi::CString;
use std::time::Duration;

use msg_common::partition::{Partition, partition_for};
use msg_common::proto::{Msg, SessionType};
use msg_common::record;
use rdkafka::ClientConfig;
use rdkafka::bindings as rd;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use uuid::Uuid;

const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(crate) struct RawRecord {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) version: Option<&'static str>,
}

/// A message from `from` to `to` with the content `body`.
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

/// The record that a gateway would write for this message.
pub(crate) fn record_of(msg: &Msg) -> RawRecord {
    record_with_id(msg, msg_id_of(msg))
}

/// A record of this message with an ID that need not be its own.
pub(crate) fn record_with_id(msg: &Msg, msg_id: Uuid) -> RawRecord {
    RawRecord {
        key: Some(msg.recv_id.clone().into_bytes()),
        value: Some(record::encode(msg.clone(), msg_id, 1_700_000_000_000)),
        version: Some("1"),
    }
}

/// The ID of a message with a `client_msg_id`.
pub(crate) fn msg_id_of(msg: &Msg) -> Uuid {
    msg_common::id::msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id)
}

pub(crate) struct RecordWriter {
    producer: BaseProducer,
    topic: String,
    partitions: Partition,
}

impl RecordWriter {
    pub(crate) fn new(brokers: &str, topic: &str, partitions: Partition) -> RecordWriter {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("enable.idempotence", "true")
            .set("queue.buffering.max.messages", "2000000")
            .set("queue.buffering.max.kbytes", "2000000")
            .set("message.max.bytes", "2000000")
            .set("linger.ms", "2")
            .create()
            .unwrap();
        RecordWriter { producer, topic: topic.into(), partitions }
    }

    /// Writes to the partition of the record's key.
    pub(crate) fn put(&self, record: &RawRecord) {
        let partition = partition_for(record.key.as_deref().unwrap_or_default(), self.partitions);
        self.put_to(partition, record);
    }

    pub(crate) fn put_to(&self, partition: Partition, record: &RawRecord) {
        let mut headers = OwnedHeaders::new().insert(Header { key: "traceparent", value: Some("00-0-0-00") });
        if let Some(version) = record.version {
            headers = headers.insert(Header { key: record::VERSION_HEADER, value: Some(version) });
        }
        let mut base = BaseRecord::<[u8], [u8]>::to(&self.topic).partition(partition).headers(headers);
        base.key = record.key.as_deref();
        base.payload = record.value.as_deref();
        self.producer.send(base).map_err(|(error, _)| error).unwrap();
    }

    /// Writes with an additional header, whose name may be any bytes. The interface of rust-rdkafka accepts only
    /// text.
    pub(crate) fn put_with_header(&self, partition: Partition, record: &RawRecord, name: &[u8], value: &[u8]) {
        let topic = CString::new(self.topic.as_str()).unwrap();
        let version = record.version.unwrap_or_default();
        let (key, body) = (record.key.as_deref().unwrap_or_default(), record.value.as_deref().unwrap_or_default());
        use rd::rd_kafka_vtype_t as tag;
        // SAFETY: each tag is followed by the arguments that librdkafka reads for it, and all of them live until the
        // call returns: with COPY the key and the value are copied. The producer owns the headers afterwards.
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

    /// Waits until every in-sync replica has all records.
    pub(crate) fn flush(&self) {
        self.producer.flush(TIMEOUT).unwrap();
    }
}
