//! The parts of librdkafka's consumer that rust-rdkafka does not wrap, each behind a safe function: one queue for the
//! records of all partitions, separate from the queue of events, and commits whose response is awaited until our own
//! deadline.

use std::ffi::CString;
use std::ptr;
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use machine::driver::Fetched;
use machine::{LeaderEpoch, Partition, RecordOffset};
use msg_common::kafka::ClientError;
use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::types::RDKafkaErrorCode;

use super::fetch_error::FetchError;
use super::pace::Pace;
use crate::lane::headers::Headers;
use crate::lane::item::RawRecord;

/// The maximum number of records that one call consumes.
pub(crate) const CHUNK: usize = 1000;

/// The interval at which the queue is checked for enough records under load.
const STEP: Duration = Duration::from_millis(2);

/// The queue that receives the records of all partitions that are not throttled.
///
/// The consumer's own queue then contains only events, so that rebalances are handled and the poll interval is kept
/// while no record is consumed. Records that are not consumed stay in librdkafka, which starts no fetch while
/// `queued.min.messages` of them do.
#[derive(Debug)]
pub(crate) struct RecordsQueue {
    queue: *mut rd::rd_kafka_queue_t,
    messages: Vec<*mut rd::rd_kafka_message_t>,
    pace: Pace,
}

// SAFETY: librdkafka's queues may be used from any thread, and this one is used only through a mutable reference.
unsafe impl Send for RecordsQueue {}

impl RecordsQueue {
    /// Creates a queue, which has to be dropped before the client.
    pub(crate) fn new<C: ClientContext>(client: &Client<C>) -> Self {
        // SAFETY: the client is alive; the queue is destroyed once, in `drop`.
        let queue = unsafe { rd::rd_kafka_queue_new(client.native_ptr()) };
        RecordsQueue { queue, messages: vec![ptr::null_mut(); CHUNK], pace: Pace::default() }
    }

    /// Forwards the partition's records to this queue from now on, starting with those that wait in the partition's own
    /// queue. Has to be called before each assignment of the partition.
    pub(crate) fn forward<C: ClientContext>(&self, client: &Client<C>, topic: &str, partition: Partition) {
        self.forward_to(client, topic, partition, self.queue);
    }

    /// Leaves the partition's records in the partition's own queue from now on, where those of one fetch wait.
    /// librdkafka's pause would discard them, and would outlive the assignment.
    pub(crate) fn stop_forwarding<C: ClientContext>(&self, client: &Client<C>, topic: &str, partition: Partition) {
        self.forward_to(client, topic, partition, ptr::null_mut());
    }

    fn forward_to<C: ClientContext>(
        &self,
        client: &Client<C>,
        topic: &str,
        partition: Partition,
        to: *mut rd::rd_kafka_queue_t,
    ) {
        let topic = CString::new(topic).expect("a topic's name holds no NUL");
        // SAFETY: the queues are alive, or `to` is null; the reference to the partition's queue is released.
        unsafe {
            let records = rd::rd_kafka_queue_get_partition(client.native_ptr(), topic.as_ptr(), partition);
            assert!(!records.is_null(), "a consumer has a queue for each partition");
            rd::rd_kafka_queue_forward(records, to);
            rd::rd_kafka_queue_destroy(records);
        }
    }

    /// Waits up to `wait` for a record, and appends the records and errors that are available. The errors of a
    /// partition are in order with its records. Under load they wait there for some milliseconds, so that the client fetches
    /// less often.
    pub(crate) fn consume(&mut self, wait: Duration, into: &mut Vec<Fetched<RawRecord>>) {
        let count = self.consume_available(wait);
        for message in &self.messages[..count] {
            // SAFETY: librdkafka filled this slot; the message is valid until it is destroyed, which happens once.
            unsafe {
                let view = &**message;
                into.push(if view.err == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    Fetched::Record(copy(view))
                } else {
                    Fetched::Failed(view.partition, FetchError::of(view).into_driver())
                });
                rd::rd_kafka_message_destroy(*message);
            }
        }
    }

    /// Fills `messages`, and returns the number of filled slots.
    fn consume_available(&mut self, wait: Duration) -> usize {
        let deadline = Instant::now() + wait;
        // librdkafka would wait for a whole chunk: wait for one record, then consume the others without waiting.
        let first = self.consume_into(wait, 0, 1);
        if first == 0 {
            return 0;
        }
        loop {
            let now = Instant::now();
            match self.pace.wait_until(now, first + self.queued()).map(|until| until.min(deadline)) {
                Some(until) if now < until => thread::sleep(until.duration_since(now).min(STEP)),
                _ => break,
            }
        }
        let count = first + self.consume_into(Duration::ZERO, first, CHUNK - first);
        self.pace.consumed(Instant::now(), count);
        count
    }

    /// Returns the number of records and errors in the queue.
    fn queued(&self) -> usize {
        // SAFETY: the queue is alive.
        unsafe { rd::rd_kafka_queue_length(self.queue) }
    }

    fn consume_into(&mut self, wait: Duration, from: usize, max: usize) -> usize {
        let millis = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let slots = &mut self.messages[from..from + max];
        // SAFETY: the queue is alive and there are `max` slots to fill.
        let count = unsafe { rd::rd_kafka_consume_batch_queue(self.queue, millis, slots.as_mut_ptr(), slots.len()) };
        usize::try_from(count).unwrap_or(0)
    }
}

impl Drop for RecordsQueue {
    fn drop(&mut self) {
        // SAFETY: the queue was created in `new`, and is destroyed only here.
        unsafe { rd::rd_kafka_queue_destroy(self.queue) };
    }
}

/// # Safety
/// `message` came from librdkafka, without an error, and is not destroyed yet.
unsafe fn copy(message: &rd::rd_kafka_message_t) -> RawRecord {
    // SAFETY: librdkafka gives a pointer and the length behind it, or null.
    let (key, value) = unsafe { (bytes(message.key, message.key_len), bytes(message.payload, message.len)) };
    let mut packed = Vec::with_capacity(key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + 96);
    packed.extend_from_slice(key.unwrap_or_default());
    packed.extend_from_slice(value.unwrap_or_default());
    // SAFETY: as above.
    unsafe { pack_headers(message, &mut packed) };
    let mut rest = Bytes::from(packed);
    let key = key.map(|key| rest.split_to(key.len()));
    let value = value.map(|value| rest.split_to(value.len()));
    // SAFETY: as above.
    let leader_epoch = LeaderEpoch(unsafe { rd::rd_kafka_message_leader_epoch(message) });
    let (partition, offset) = (message.partition, RecordOffset(message.offset));
    RawRecord { partition, offset, leader_epoch, key, value, headers: Headers(rest) }
}

/// # Safety
/// As for `copy`.
unsafe fn pack_headers(message: &rd::rd_kafka_message_t, packed: &mut Vec<u8>) {
    let mut headers = ptr::null_mut();
    // SAFETY: the headers belong to the message, and each name and value is valid as long as they are. Names are read
    // as bytes: rust-rdkafka panics at one that is not UTF-8.
    unsafe {
        let code = rd::rd_kafka_message_headers(ptr::from_ref(message), &mut headers);
        if code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return;
        }
        for index in 0.. {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            let code = rd::rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut size);
            if code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return;
            }
            let name = std::ffi::CStr::from_ptr(name).to_bytes();
            Headers::pack(packed, name, bytes(value.cast_mut(), size));
        }
    }
}

/// # Safety
/// `data` is null, or there are `length` bytes behind it.
unsafe fn bytes<'a>(data: *mut std::ffi::c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: as above; an empty slice may have any pointer but null.
    (!data.is_null()).then(|| unsafe { slice::from_raw_parts(data.cast::<u8>(), length) })
}

/// Starts fetching these partitions, in a cooperative group; an empty list only responds to a rebalance.
pub(crate) fn incremental_assign<C: ClientContext>(
    client: &Client<C>,
    list: &TopicPartitionList,
) -> Result<(), ClientError> {
    // SAFETY: both are alive.
    unsafe { into_result(rd::rd_kafka_incremental_assign(client.native_ptr(), list.ptr())) }
}

/// Stops fetching these partitions, in a cooperative group; an empty list only responds to a rebalance.
pub(crate) fn incremental_unassign<C: ClientContext>(
    client: &Client<C>,
    list: &TopicPartitionList,
) -> Result<(), ClientError> {
    // SAFETY: both are alive.
    unsafe { into_result(rd::rd_kafka_incremental_unassign(client.native_ptr(), list.ptr())) }
}

/// # Safety
/// `error` is null, or the caller owns it and does not use it afterwards.
unsafe fn into_result(error: *mut rd::rd_kafka_error_t) -> Result<(), ClientError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: as above; the text is copied before the error is destroyed.
    unsafe {
        let code = rd::rd_kafka_error_code(error).into();
        let text = std::ffi::CStr::from_ptr(rd::rd_kafka_error_string(error)).to_string_lossy().into_owned();
        rd::rd_kafka_error_destroy(error);
        Err(ClientError::Event { code, text })
    }
}

/// Sends offset commits and receives their responses. A synchronous commit has no deadline, so within a rebalance it
/// would block the group.
#[derive(Debug)]
pub(crate) struct CommitQueue(*mut rd::rd_kafka_queue_t);

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for CommitQueue {}

impl CommitQueue {
    /// Creates a queue, which has to be dropped before the client.
    pub(crate) fn new<C: ClientContext>(client: &Client<C>) -> Self {
        // SAFETY: the client is alive; the queue is destroyed once, in `drop`.
        CommitQueue(unsafe { rd::rd_kafka_queue_new(client.native_ptr()) })
    }

    /// Sends a commit. Its response contains `round`.
    pub(crate) fn commit<C: ClientContext>(
        &self,
        client: &Client<C>,
        offsets: &TopicPartitionList,
        round: usize,
    ) -> Result<(), RDKafkaErrorCode> {
        let opaque = ptr::without_provenance_mut(round);
        // SAFETY: all are alive; librdkafka copies the list; the opaque is a number and never dereferenced.
        let code = unsafe { rd::rd_kafka_commit_queue(client.native_ptr(), offsets.ptr(), self.0, None, opaque) };
        into_code_result(code)
    }

    /// Returns the round and result of the next response, or `None` if there is none yet.
    pub(crate) fn poll(&self) -> Option<(usize, Result<(), RDKafkaErrorCode>)> {
        // SAFETY: the queue is alive; the event is checked and destroyed once, after its last use; the list is its own.
        unsafe {
            let event = rd::rd_kafka_queue_poll(self.0, 0);
            if event.is_null() {
                return None;
            }
            let round = rd::rd_kafka_event_opaque(event).addr();
            let mut result = into_code_result(rd::rd_kafka_event_error(event));
            let list = rd::rd_kafka_event_topic_partition_list(event);
            if result.is_ok() && !list.is_null() && !(*list).elems.is_null() {
                let elements = slice::from_raw_parts((*list).elems, usize::try_from((*list).cnt).unwrap_or(0));
                result = elements.iter().try_for_each(|element| into_code_result(element.err));
            }
            rd::rd_kafka_event_destroy(event);
            Some((round, result))
        }
    }
}

impl Drop for CommitQueue {
    fn drop(&mut self) {
        // SAFETY: the queue was created in `new`, and is destroyed only here.
        unsafe { rd::rd_kafka_queue_destroy(self.0) };
    }
}

fn into_code_result(code: rd::rd_kafka_resp_err_t) -> Result<(), RDKafkaErrorCode> {
    match code {
        rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        failed => Err(failed.into()),
    }
}
