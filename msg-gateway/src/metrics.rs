//! The gateway's metrics: their names, what they mean, and the handles that the hot path counts with.

use metrics::{Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram};

use crate::status::Failure;

/// Calls that were answered, by `method` and `outcome` (OK, OVERLOADED, or a reason of ErrorInfo).
pub const REQUESTS: &str = "msg_gateway_requests_total";
/// Messages of batches and streams that were answered, by `method` and `outcome`; SendMsg's are its calls.
pub const MESSAGES: &str = "msg_gateway_messages_total";
/// Open StreamSendMsg streams.
pub const SEND_STREAMS: &str = "msg_gateway_send_streams";
/// From the arrival of a SendMsg to its answer, for those that were handed to the producer.
pub const SEND_SECONDS: &str = "msg_gateway_send_duration_seconds";
/// From the arrival of a read to its answer, by `method`.
pub const READ_SECONDS: &str = "msg_gateway_read_duration_seconds";
/// Connections that were ended because an answer was not taken.
pub const ANSWERS_NOT_TAKEN: &str = "msg_gateway_answers_not_taken_total";
/// Messages that were taken and are not yet confirmed by Kafka.
pub const INFLIGHT_MSGS: &str = "msg_gateway_inflight_msgs";
/// Their bytes.
pub const INFLIGHT_BYTES: &str = "msg_gateway_inflight_bytes";
/// Bytes of requests that have not arrived in full yet.
pub const ARRIVING_BYTES: &str = "msg_gateway_arriving_bytes";
/// Delivery reports, by `outcome`.
pub const DELIVERIES: &str = "msg_gateway_deliveries_total";
/// Deliveries that failed, by `code` of librdkafka.
pub const DELIVERY_FAILURES: &str = "msg_gateway_delivery_failures_total";
/// Open connections.
pub const CONNECTIONS: &str = "msg_gateway_connections";
/// Connections that were closed at once because there were too many.
pub const CONNECTIONS_REFUSED: &str = "msg_gateway_connections_refused_total";
/// Calls that are open: until the last of their responses is written.
pub const OPEN_CALLS: &str = "msg_gateway_open_calls";
/// Calls that were rejected because too many are open.
pub const CALLS_REJECTED: &str = "msg_gateway_calls_rejected_total";
/// Bytes of responses that callers have not read.
pub const UNREAD_RESPONSE_BYTES: &str = "msg_gateway_unread_response_bytes";
/// Connections that were closed because they did not speak HTTP/2 in time.
pub const HANDSHAKES_NOT_ENDED: &str = "msg_gateway_handshakes_not_ended_total";
/// Calls that the transport answered with an error, by `reason`.
pub const TRANSPORT_ERRORS: &str = "msg_gateway_transport_errors_total";
/// 1 while the topic can be used, 0 while it cannot.
pub const TOPIC_USABLE: &str = "msg_gateway_topic_usable";
/// Settings of the topic under which an accepted message could be lost.
pub const TOPIC_UNSAFE_SETTINGS: &str = "msg_gateway_topic_unsafe_settings";
/// Partitions that the topic has beyond those that are used.
pub const TOPIC_EXTRA_PARTITIONS: &str = "msg_gateway_topic_extra_partitions";
/// Checks of the topic, by `outcome`.
pub const PREFLIGHTS: &str = "msg_gateway_preflights_total";
/// Producers that were replaced after a fatal error.
pub const PRODUCERS_REPLACED: &str = "msg_gateway_producers_replaced_total";
/// Hints of what was stored that were read, by `outcome`.
pub const HINTS: &str = "msg_gateway_hints_total";
/// 1 while hints are read and complete, 0 while the table is polled often instead.
pub const HINTS_RELIABLE: &str = "msg_gateway_hints_reliable";
/// Clients that read hints and were replaced, because they failed or were stalled.
pub const HINT_READERS_REPLACED: &str = "msg_gateway_hint_readers_replaced_total";
/// Statements that ask the table on behalf of those who wait and watch.
pub const TABLE_LOOKS: &str = "msg_gateway_table_looks_total";
/// Messages that callers wait for until they are stored.
pub const WAITING_MSGS: &str = "msg_gateway_waiting_msgs";
/// Open WatchMsgs streams.
pub const WATCHERS: &str = "msg_gateway_watchers";
/// Inboxes over all of these streams.
pub const WATCHED_INBOXES: &str = "msg_gateway_watched_inboxes";
/// Bytes of what was stored last in the watched inboxes.
pub const WATCH_CACHE_BYTES: &str = "msg_gateway_watch_cache_bytes";
/// Messages that were given to watchers, by `source`: the cache, or the table.
pub const WATCHED_MSGS: &str = "msg_gateway_watched_msgs_total";

/// Describes every metric, once, after the recorder is there.
pub fn describe() {
    describe_counter!(REQUESTS, "Calls that were answered, by method and outcome");
    describe_counter!(MESSAGES, "Messages of batches and streams that were answered, by method and outcome");
    describe_gauge!(SEND_STREAMS, "Open StreamSendMsg streams");
    describe_histogram!(SEND_SECONDS, Unit::Seconds, "From the arrival of a SendMsg to its answer");
    describe_histogram!(READ_SECONDS, Unit::Seconds, "From the arrival of a read to its answer, by method");
    describe_counter!(ANSWERS_NOT_TAKEN, "Connections that were ended because an answer was not taken");
    describe_gauge!(INFLIGHT_MSGS, "Messages that were taken and are not yet confirmed by Kafka");
    describe_gauge!(INFLIGHT_BYTES, Unit::Bytes, "Bytes of messages that are not yet confirmed by Kafka");
    describe_gauge!(ARRIVING_BYTES, Unit::Bytes, "Bytes of requests that have not arrived in full yet");
    describe_counter!(DELIVERIES, "Delivery reports, by outcome");
    describe_counter!(DELIVERY_FAILURES, "Deliveries that failed, by code");
    describe_gauge!(CONNECTIONS, "Open connections");
    describe_counter!(CONNECTIONS_REFUSED, "Connections that were closed at once because there were too many");
    describe_gauge!(OPEN_CALLS, "Calls that are open, until the last of their responses is written");
    describe_counter!(CALLS_REJECTED, "Calls that were rejected because too many are open");
    describe_gauge!(UNREAD_RESPONSE_BYTES, Unit::Bytes, "Bytes of responses that callers have not read");
    describe_counter!(HANDSHAKES_NOT_ENDED, "Connections that were closed because they did not speak HTTP/2 in time");
    describe_counter!(TRANSPORT_ERRORS, "Calls that the transport answered with an error, by reason");
    describe_gauge!(TOPIC_USABLE, "1 while the topic can be used, 0 while it cannot");
    describe_gauge!(TOPIC_UNSAFE_SETTINGS, "Settings of the topic under which an accepted message could be lost");
    describe_gauge!(TOPIC_EXTRA_PARTITIONS, "Partitions that the topic has beyond those that are used");
    describe_counter!(PREFLIGHTS, "Checks of the topic, by outcome");
    describe_counter!(
        PRODUCERS_REPLACED,
        "Producers that were replaced: after a fatal error, when every delivery timed out, and for a recreated topic"
    );
    describe_counter!(HINTS, "Hints of what was stored that were read, by outcome");
    describe_gauge!(HINTS_RELIABLE, "1 while hints are read and complete, 0 while the table is polled often instead");
    describe_counter!(HINT_READERS_REPLACED, "Clients that read hints and were replaced: they failed or were stalled");
    describe_counter!(TABLE_LOOKS, "Statements that ask the table on behalf of those who wait and watch");
    describe_gauge!(WAITING_MSGS, "Messages that callers wait for until they are stored");
    describe_gauge!(WATCHERS, "Open WatchMsgs streams");
    describe_gauge!(WATCHED_INBOXES, "Inboxes over all WatchMsgs streams");
    describe_gauge!(WATCH_CACHE_BYTES, Unit::Bytes, "Bytes of what was stored last in the watched inboxes");
    describe_counter!(WATCHED_MSGS, "Messages that were given to watchers, by source");
}

/// Counts an answered call. Slower than a handle: for what is not every send.
pub fn answered(method: &'static str, outcome: &'static str) {
    counter!(REQUESTS, "method" => method, "outcome" => outcome).increment(1);
}

/// What a successful send counts with.
pub struct SendMetrics {
    /// Answered OK.
    pub ok: Counter,
    /// Arrival to answer.
    pub seconds: Histogram,
}

impl SendMetrics {
    /// Handles of the recorder that is installed.
    pub fn new() -> Self {
        SendMetrics {
            ok: counter!(REQUESTS, "method" => "SendMsg", "outcome" => "OK"),
            seconds: metrics::histogram!(SEND_SECONDS),
        }
    }
}

impl Default for SendMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What the messages of batches or streams are counted with.
pub struct MessageMetrics {
    method: &'static str,
    ok: Counter,
}

impl MessageMetrics {
    /// Of this method.
    pub fn new(method: &'static str) -> Self {
        MessageMetrics { method, ok: counter!(MESSAGES, "method" => method, "outcome" => "OK") }
    }

    /// Counts one that is answered.
    pub fn count<T>(&self, result: &Result<T, Failure>) {
        match result {
            Ok(_) => self.ok.increment(1),
            Err(failure) => {
                counter!(MESSAGES, "method" => self.method, "outcome" => failure.outcome()).increment(1);
            }
        }
    }
}

/// Gauges that are set by looking from time to time.
pub struct InFlightGauges {
    /// See [`INFLIGHT_MSGS`].
    pub inflight_msgs: Gauge,
    /// See [`INFLIGHT_BYTES`].
    pub inflight_bytes: Gauge,
    /// See [`ARRIVING_BYTES`].
    pub arriving_bytes: Gauge,
    /// See [`OPEN_CALLS`].
    pub open_calls: Gauge,
    /// See [`UNREAD_RESPONSE_BYTES`].
    pub unread_response_bytes: Gauge,
}

impl InFlightGauges {
    /// Handles of the recorder that is installed.
    pub fn new() -> Self {
        InFlightGauges {
            inflight_msgs: metrics::gauge!(INFLIGHT_MSGS),
            inflight_bytes: metrics::gauge!(INFLIGHT_BYTES),
            arriving_bytes: metrics::gauge!(ARRIVING_BYTES),
            open_calls: metrics::gauge!(OPEN_CALLS),
            unread_response_bytes: metrics::gauge!(UNREAD_RESPONSE_BYTES),
        }
    }
}

impl Default for InFlightGauges {
    fn default() -> Self {
        Self::new()
    }
}

/// Gauges of those who wait and watch.
pub struct WatchGauges {
    /// See [`WAITING_MSGS`].
    pub waiting: Gauge,
    /// See [`WATCHERS`].
    pub watchers: Gauge,
    /// See [`WATCHED_INBOXES`].
    pub inboxes: Gauge,
    /// See [`WATCH_CACHE_BYTES`].
    pub cached: Gauge,
    /// See [`HINTS_RELIABLE`].
    pub hints: Gauge,
}

impl WatchGauges {
    /// Handles of the recorder that is installed.
    pub fn new() -> Self {
        WatchGauges {
            waiting: metrics::gauge!(WAITING_MSGS),
            watchers: metrics::gauge!(WATCHERS),
            inboxes: metrics::gauge!(WATCHED_INBOXES),
            cached: metrics::gauge!(WATCH_CACHE_BYTES),
            hints: metrics::gauge!(HINTS_RELIABLE),
        }
    }
}

impl Default for WatchGauges {
    fn default() -> Self {
        Self::new()
    }
}
