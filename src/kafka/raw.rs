//! Wraps the few calls of librdkafka that rust-rdkafka does not wrap, each in a safe function.

use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, OwnedHeaders};
use uuid::Uuid;

use super::{ClientError, RequestError};
use crate::partition::Partition;

/// Whether a record is in the log, according to librdkafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It was sent to no broker, or each broker that received it rejected it.
    No,
    /// It was sent to a broker, and no response arrived.
    Possibly,
    /// A broker confirmed that its log has the record.
    Yes,
}

/// Returns what librdkafka knows of the record of a delivery report.
pub fn persistence(message: &BorrowedMessage<'_>) -> Persistence {
    // SAFETY: the pointer is valid for as long as the borrowed message.
    match unsafe { rd::rd_kafka_message_status(message.ptr()) } {
        rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED => Persistence::No,
        rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED => Persistence::Possibly,
        rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_PERSISTED => Persistence::Yes,
    }
}

/// Returns whether a delivery report is about a request to a broker. Otherwise librdkafka failed the record in its queue.
pub fn was_requested(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the pointer is valid for as long as the borrowed message.
    unsafe { rd::rd_kafka_message_broker_id(message.ptr()) >= 0 }
}

/// Returns the time since the record of a delivery report was enqueued, or `None` if librdkafka does not know it.
pub fn latency(message: &BorrowedMessage<'_>) -> Option<Duration> {
    // SAFETY: the pointer is valid for as long as the borrowed message.
    let micros = unsafe { rd::rd_kafka_message_latency(message.ptr()) };
    u64::try_from(micros).ok().map(Duration::from_micros)
}

/// Returns headers whose keys may be any bytes. rust-rdkafka accepts only keys in UTF-8 without NUL.
pub fn headers<'a>(pairs: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Result<OwnedHeaders, ClientError> {
    let headers = OwnedHeaders::new();
    // The wrapper's borrowed headers are librdkafka's own, behind a reference.
    let list = std::ptr::from_ref(headers.as_borrowed()).cast_mut().cast::<rd::rd_kafka_headers_t>();
    for (key, value) in pairs {
        let length = isize::try_from(key.len()).expect("no slice is longer");
        let (bytes, size) = value.map_or((std::ptr::null(), 0), |value| (value.as_ptr().cast(), value.len()));
        let size = isize::try_from(size).expect("no slice is longer");
        // SAFETY: only `headers` owns the list; librdkafka copies key and value; the pointer of a missing value is null.
        let code = unsafe { rd::rd_kafka_header_add(list, key.as_ptr().cast(), length, bytes, size) };
        if code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(ClientError::Kafka(KafkaError::Global(code.into())));
        }
    }
    Ok(headers)
}

/// Sets the leader epoch of each offset, or -1 if it is unknown. librdkafka validates a position that has a leader epoch.
pub fn set_leader_epochs(list: &mut TopicPartitionList, leader_epoch: impl Fn(Partition) -> i32) {
    // SAFETY: the list is alive and borrowed exclusively; `cnt` is the number of its elements.
    unsafe {
        let list = &mut *list.ptr();
        for index in 0..usize::try_from(list.cnt).unwrap_or(0) {
            let element = list.elems.add(index);
            rd::rd_kafka_topic_partition_set_leader_epoch(element, leader_epoch((*element).partition));
        }
    }
}

/// What a broker returns about a topic, in addition to its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// The ID, or `None` if the broker does not return IDs (before 3.1). A recreated topic has another ID.
    pub id: Option<Uuid>,
    /// Whether the client's user may write to the topic, or `None` if the broker does not return that.
    pub may_write: Option<bool>,
}

/// Returns the ID of a topic, or `None` if the broker does not return IDs. Blocks up to `timeout`.
pub fn topic_id<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<Uuid>, RequestError> {
    describe_topic(client, topic, timeout).map(|described| described.id)
}

/// Describes a topic. Blocks up to `timeout`.
///
/// librdkafka sends the request to the broker that it assumes to be the controller. With KRaft that is any broker, and the same one
/// until the client reads new metadata: if that broker is down, the request would wait for it. So this function first requests
/// the metadata, from a broker that responds.
pub fn describe_topic<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<TopicDescription, RequestError> {
    read_description(client, topic, timeout).map_err(RequestError::of_topic("read the ID", topic))
}

fn read_description<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<TopicDescription, ClientError> {
    let name = CString::new(topic).map_err(KafkaError::Nul)?;
    let started = Instant::now();
    client.fetch_metadata(Some(topic), timeout)?;
    let left = timeout.saturating_sub(started.elapsed());
    let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
    let rk = client.native_ptr();
    let mut names = [name.as_ptr()];
    // SAFETY: every pointer comes from librdkafka, is checked where it may be null, and is freed once, after the last
    // use of what it owns; `names` lives until the collection has copied it.
    unsafe {
        let topics = rd::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
        let queue = rd::rd_kafka_queue_new(rk);
        let options = rd::rd_kafka_AdminOptions_new(rk, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let mut reason = [0; 256];
        rd::rd_kafka_AdminOptions_set_request_timeout(options, millis, reason.as_mut_ptr(), reason.len());
        let rejected = rd::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        if !rejected.is_null() {
            rd::rd_kafka_error_destroy(rejected);
        }
        rd::rd_kafka_DescribeTopics(rk, topics, options, queue);
        // Wait a little longer than the request: its own timeout error says more.
        let event = rd::rd_kafka_queue_poll(queue, millis.saturating_add(500));
        let described = description(event);
        if !event.is_null() {
            rd::rd_kafka_event_destroy(event);
        }
        rd::rd_kafka_AdminOptions_destroy(options);
        rd::rd_kafka_queue_destroy(queue);
        rd::rd_kafka_TopicCollection_destroy(topics);
        described
    }
}

/// # Safety
/// `event` is null, or an event that outlives the call.
unsafe fn description(event: *mut rd::rd_kafka_event_t) -> Result<TopicDescription, ClientError> {
    if event.is_null() {
        return Err(ClientError::TimedOut);
    }
    // SAFETY: the event is valid; everything read below is owned by it; indices are below the counts.
    unsafe {
        let code = rd::rd_kafka_event_error(event);
        if code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(ClientError::Event { code: code.into(), text: text(rd::rd_kafka_event_error_string(event)) });
        }
        let result = rd::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0;
        let topics = rd::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if count != 1 {
            return Err(ClientError::Unexpected(count));
        }
        let topic = *topics;
        let code = rd::rd_kafka_error_code(rd::rd_kafka_TopicDescription_error(topic));
        if code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(ClientError::Kafka(KafkaError::Global(code.into())));
        }
        let id = rd::rd_kafka_TopicDescription_topic_id(topic);
        let high = rd::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned();
        let low = rd::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned();
        let id = Uuid::from_u64_pair(high, low);
        let mut rights = 0;
        let operations = rd::rd_kafka_TopicDescription_authorized_operations(topic, &mut rights);
        // A user that gets a description has a right: without any, the broker did not return them.
        let may_write = (!operations.is_null() && rights > 0).then(|| {
            let operations = std::slice::from_raw_parts(operations, rights);
            operations.contains(&rd::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE)
        });
        Ok(TopicDescription { id: (!id.is_nil()).then_some(id), may_write })
    }
}

/// # Safety
/// `string` is a C string that outlives the call.
unsafe fn text(string: *const std::ffi::c_char) -> String {
    // SAFETY: as above.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rdkafka::ClientConfig;
    use rdkafka::message::DeliveryResult;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    /// Passes the values of a real delivery report to the test.
    struct Reports(mpsc::Sender<(Persistence, bool, bool)>);

    impl ClientContext for Reports {}

    impl ProducerContext for Reports {
        type DeliveryOpaque = ();

        fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
            let (Ok(message) | Err((_, message))) = result;
            let known = latency(message).is_some_and(|latency| latency < Duration::from_secs(60));
            self.0.send((persistence(message), was_requested(message), known)).expect("the test receives it");
        }
    }

    #[test]
    fn delivery_reports_say_whether_a_broker_may_have_the_record() {
        use RDKafkaRespErr as Error;
        let (sender, reports) = mpsc::channel();
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", "1").set("retries", "0").set("linger.ms", "0");
        let producer: BaseProducer<Reports> = config.create_with_context(Reports(sender)).expect("a producer");
        let report = || {
            producer
                .send(BaseRecord::to("msgs").partition(0).key("k").payload("v"))
                .map_err(|(error, _)| error)
                .expect("sent");
            producer.flush(Duration::from_secs(30)).expect("it is reported");
            reports.recv().expect("it is reported")
        };
        assert_eq!(report(), (Persistence::Yes, true, true));
        let cluster = producer.client().mock_cluster().expect("it is a mock");
        for (error, expected) in [
            (Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND, Persistence::Possibly),
            (Error::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, Persistence::No),
        ] {
            cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
            assert_eq!(report(), (expected, true, true), "{error:?}");
        }
        // librdkafka purges the record from its queue, and no broker received a request.
        cluster.broker_down(-1).expect("all brokers stop");
        producer
            .send(BaseRecord::to("msgs").partition(0).key("k").payload("v"))
            .map_err(|(error, _)| error)
            .expect("queued");
        producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        producer.flush(Duration::from_secs(30)).expect("it is reported");
        assert!(!reports.recv().expect("it is reported").1);
    }
}
