//! The consumer's queue of events. Its errors have their topic, partition and offset, which rust-rdkafka leaves out.

use std::ffi::{CStr, c_char};
use std::slice;

use machine::driver::Happened;
use machine::{Partition, RecordOffset};
use msg_common::kafka::ClientError;
use msg_common::kafka::events::pass_log_line;
use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

use super::fetch_error::FetchError;

#[derive(Debug)]
pub(crate) enum Polled {
    Happened(Happened),
    /// The whole topic cannot be consumed.
    Topic(RDKafkaRespErr, String),
    Fatal(ClientError),
    /// Any other error, with librdkafka's text.
    Error(RDKafkaErrorCode, String),
}

/// Converts a rebalance into an event of the driver.
pub(crate) fn rebalance(error: RDKafkaRespErr, partitions: Vec<Partition>) -> Happened {
    if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
        Happened::Assigned(partitions)
    } else {
        Happened::Revoked(partitions)
    }
}

/// The queue. The consumer stays in its group only while the queue is polled.
#[derive(Debug)]
pub(crate) struct EventQueue(*mut rd::rd_kafka_queue_t);

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for EventQueue {}

impl EventQueue {
    /// Opens the queue, which has to be dropped before the client.
    pub(crate) fn new<C: ClientContext>(client: &Client<C>) -> Self {
        // SAFETY: the client is alive, and a consumer has this queue; the reference is released once, in `drop`.
        EventQueue(unsafe { rd::rd_kafka_queue_get_consumer(client.native_ptr()) })
    }

    /// Returns the next event, or `None` if the queue is empty.
    pub(crate) fn poll<C: ClientContext>(&self, client: &Client<C>) -> Option<Polled> {
        loop {
            // SAFETY: the queue is alive; the event is checked, and destroyed once, after its last use.
            let happened = unsafe {
                let event = rd::rd_kafka_queue_poll(self.0, 0);
                if event.is_null() {
                    return None;
                }
                let happened = read(event, client);
                rd::rd_kafka_event_destroy(event);
                happened
            };
            if happened.is_some() {
                return happened;
            }
        }
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        // SAFETY: the queue was opened in `new`, and is released only here.
        unsafe { rd::rd_kafka_queue_destroy(self.0) };
    }
}

/// # Safety
/// `event` outlives the call.
unsafe fn read<C: ClientContext>(event: *mut rd::rd_kafka_event_t, client: &Client<C>) -> Option<Polled> {
    // SAFETY: as above; everything read below is owned by the event, and copied.
    unsafe {
        match rd::rd_kafka_event_type(event) {
            rd::RD_KAFKA_EVENT_REBALANCE => {
                let list = rd::rd_kafka_event_topic_partition_list(event).as_ref();
                let partitions = list.filter(|list| !list.elems.is_null()).map(|list| {
                    let elements = slice::from_raw_parts(list.elems, usize::try_from(list.cnt).unwrap_or(0));
                    elements.iter().map(|element| element.partition).collect()
                });
                Some(Polled::Happened(rebalance(rd::rd_kafka_event_error(event), partitions.unwrap_or_default())))
            }
            rd::RD_KAFKA_EVENT_ERROR => Some(error(event)),
            rd::RD_KAFKA_EVENT_FETCH => {
                let message = rd::rd_kafka_event_message_next(event).as_ref()?;
                if message.err == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    return Some(Polled::Happened(Happened::Record(message.partition, RecordOffset(message.offset))));
                }
                let error = FetchError::of(message).into_driver();
                Some(Polled::Happened(Happened::FetchFailed(message.partition, error)))
            }
            rd::RD_KAFKA_EVENT_LOG => {
                pass_log_line(event, client);
                None
            }
            // Other kinds of events are not enabled, or have a queue of their own.
            _ => None,
        }
    }
}

/// # Safety
/// `event` is an error that outlives the call.
unsafe fn error(event: *mut rd::rd_kafka_event_t) -> Polled {
    // SAFETY: as above; the partition is ours to destroy, once, after its last use.
    unsafe {
        let native = rd::rd_kafka_event_error(event);
        let (code, text) = (RDKafkaErrorCode::from(native), copied(rd::rd_kafka_event_error_string(event)));
        if rd::rd_kafka_event_error_is_fatal(event) != 0 || code == RDKafkaErrorCode::Fatal {
            return Polled::Fatal(ClientError::Event { code, text });
        }
        let of = rd::rd_kafka_event_topic_partition(event);
        if of.is_null() {
            // If an error concerns a whole topic, librdkafka names the topic only in the text.
            let of_topic = matches!(
                code,
                RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::InvalidTopic
            );
            return if of_topic { Polled::Topic(native, text) } else { Polled::Error(code, text) };
        }
        let (partition, offset) = ((*of).partition, (*of).offset);
        rd::rd_kafka_topic_partition_destroy(of);
        if partition < 0 {
            return Polled::Topic(native, text);
        }
        Polled::Happened(Happened::FetchFailed(partition, FetchError::new(native, offset, text).into_driver()))
    }
}

/// # Safety
/// `string` is null, or a C string that outlives the call.
unsafe fn copied(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}
