//! Owns the gateway's metrics: names, descriptions, and the handles of the hot path. [`describe`] says what each metric means.

use metrics::{Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram};

use crate::status::Failure;

/// Completed calls, by `method` and `outcome` (OK, OVERLOADED, QUOTA_EXCEEDED, or a reason of ErrorInfo).
pub(crate) const REQUESTS: &str = "msg_gateway_requests_total";
/// Messages of batches and streams with a result, by `method` and `outcome`. SendMsg is counted as calls.
pub(crate) const MESSAGES: &str = "msg_gateway_messages_total";
pub(crate) const SEND_STREAMS: &str = "msg_gateway_send_streams";
pub(crate) const SEND_SECONDS: &str = "msg_gateway_send_duration_seconds";
pub(crate) const READ_SECONDS: &str = "msg_gateway_read_duration_seconds";
pub(crate) const SLOW_READER_DISCONNECTS: &str = "msg_gateway_slow_reader_disconnects_total";
pub(crate) const INFLIGHT_MSGS: &str = "msg_gateway_inflight_msgs";
pub(crate) const INFLIGHT_BYTES: &str = "msg_gateway_inflight_bytes";
pub(crate) const BUFFERED_REQUEST_BYTES: &str = "msg_gateway_buffered_request_bytes";
pub(crate) const DELIVERIES: &str = "msg_gateway_deliveries_total";
pub(crate) const DELIVERY_FAILURES: &str = "msg_gateway_delivery_failures_total";
pub(crate) const CONNECTIONS: &str = "msg_gateway_connections";
pub(crate) const CONNECTIONS_REFUSED: &str = "msg_gateway_connections_refused_total";
pub(crate) const OPEN_CALLS: &str = "msg_gateway_open_calls";
pub(crate) const CALLS_REJECTED: &str = "msg_gateway_calls_rejected_total";
pub(crate) const UNREAD_RESPONSE_BYTES: &str = "msg_gateway_unread_response_bytes";
pub(crate) const HANDSHAKE_TIMEOUTS: &str = "msg_gateway_handshake_timeouts_total";
pub(crate) const TRANSPORT_ERRORS: &str = "msg_gateway_transport_errors_total";
pub(crate) const AUTH_REJECTIONS: &str = "msg_gateway_auth_rejections_total";
pub(crate) const AUTH_KEY_FETCHES: &str = "msg_gateway_auth_key_fetches_total";
pub(crate) const AUTH_KEYS_AGE: &str = "msg_gateway_auth_keys_age_seconds";
pub(crate) const QUOTA_REJECTIONS: &str = "msg_gateway_quota_rejections_total";
pub(crate) const QUOTA_BUCKETS_FORGOTTEN: &str = "msg_gateway_quota_buckets_forgotten_total";
pub(crate) const TOPIC_USABLE: &str = "msg_gateway_topic_usable";
pub(crate) const TOPIC_UNSAFE_SETTINGS: &str = "msg_gateway_topic_unsafe_settings";
pub(crate) const TOPIC_EXTRA_PARTITIONS: &str = "msg_gateway_topic_extra_partitions";
pub(crate) const PREFLIGHT_CHECKS: &str = "msg_gateway_preflight_checks_total";
pub(crate) const PRODUCERS_REPLACED: &str = "msg_gateway_producers_replaced_total";
pub(crate) const HINTS: &str = "msg_gateway_hints_total";
pub(crate) const HINTS_RELIABLE: &str = "msg_gateway_hints_reliable";
pub(crate) const HINT_READERS_REPLACED: &str = "msg_gateway_hint_readers_replaced_total";
pub(crate) const WATCH_QUERIES: &str = "msg_gateway_watch_queries_total";
pub(crate) const STORED_WAITERS: &str = "msg_gateway_stored_waiters";
/// Results of messages that callers waited for, by `source`: hint or table.
pub(crate) const STORED_RESULTS: &str = "msg_gateway_stored_results_total";
pub(crate) const WATCHERS: &str = "msg_gateway_watchers";
pub(crate) const WATCHED_INBOXES: &str = "msg_gateway_watched_inboxes";
pub(crate) const WATCH_CACHE_BYTES: &str = "msg_gateway_watch_cache_bytes";
/// Messages that were sent to watchers, by `source`: cache or table.
pub(crate) const WATCHED_MSGS: &str = "msg_gateway_watched_msgs_total";

/// Describes every metric. Call it once, after the recorder is installed.
pub fn describe() {
    describe_counter!(REQUESTS, "Completed calls, by method and outcome");
    describe_counter!(MESSAGES, "Messages of batches and streams that have a result, by method and outcome");
    describe_gauge!(SEND_STREAMS, "Open StreamSendMsg streams");
    describe_histogram!(SEND_SECONDS, Unit::Seconds, "Time from the arrival of a SendMsg request to its response");
    describe_histogram!(
        READ_SECONDS,
        Unit::Seconds,
        "Time from the arrival of a read request to its response, by method"
    );
    describe_counter!(
        SLOW_READER_DISCONNECTS,
        "Connections that were closed because the caller did not read a response in time"
    );
    describe_gauge!(INFLIGHT_MSGS, "Messages that were given to the producer and that Kafka has not confirmed");
    describe_gauge!(
        INFLIGHT_BYTES,
        Unit::Bytes,
        "Bytes of messages that were given to the producer and that Kafka has not confirmed"
    );
    describe_gauge!(BUFFERED_REQUEST_BYTES, Unit::Bytes, "Bytes of partially received requests");
    describe_counter!(DELIVERIES, "Delivery reports, by outcome");
    describe_counter!(DELIVERY_FAILURES, "Failed deliveries, by librdkafka's error code");
    describe_gauge!(CONNECTIONS, "Open connections");
    describe_counter!(
        CONNECTIONS_REFUSED,
        "Connections that were closed immediately because MAX_CONNECTIONS were open"
    );
    describe_gauge!(OPEN_CALLS, "Open calls, each until its last response is written");
    describe_counter!(
        CALLS_REJECTED,
        "Calls that were rejected because MAX_OPEN_CALLS, or the maximum of their kind, were open"
    );
    describe_gauge!(UNREAD_RESPONSE_BYTES, Unit::Bytes, "Bytes of responses that callers have not read");
    describe_counter!(
        HANDSHAKE_TIMEOUTS,
        "Connections that were closed because their TLS and HTTP/2 handshakes timed out"
    );
    describe_counter!(TRANSPORT_ERRORS, "Calls that failed in the transport, by reason");
    describe_counter!(
        AUTH_REJECTIONS,
        "Calls, and messages of batches and streams, that were rejected because of who their caller is, by reason"
    );
    describe_counter!(AUTH_KEY_FETCHES, "Attempts to fetch the keys of the token issuer, by outcome");
    describe_gauge!(
        AUTH_KEYS_AGE,
        Unit::Seconds,
        "Age of the token issuer's keys at the last attempt to fetch them: 0 while the issuer responds"
    );
    describe_counter!(
        QUOTA_REJECTIONS,
        "Calls, and messages of batches and streams, that were rejected because a quota is used up, by quota"
    );
    describe_counter!(
        QUOTA_BUCKETS_FORGOTTEN,
        "Senders and tenants whose use was forgotten too early because more than QUOTA_BUCKETS sent, by table"
    );
    describe_gauge!(TOPIC_USABLE, "1 if the topic can be used, 0 if not");
    describe_gauge!(TOPIC_UNSAFE_SETTINGS, "Settings of the topic that may lose accepted messages");
    describe_gauge!(TOPIC_EXTRA_PARTITIONS, "Partitions of the topic above TOPIC_PARTITIONS, which are not used");
    describe_counter!(PREFLIGHT_CHECKS, "Preflight checks of the topic, by outcome");
    describe_counter!(
        PRODUCERS_REPLACED,
        "Replaced producers: after a fatal error, when every delivery timed out, or for a recreated topic"
    );
    describe_counter!(HINTS, "Hints that were read, by outcome");
    describe_gauge!(HINTS_RELIABLE, "1 if all hints are read, 0 if not; then the table is polled more often");
    describe_counter!(
        HINT_READERS_REPLACED,
        "Clients for the hints topic that were replaced because they failed or were stalled"
    );
    describe_counter!(WATCH_QUERIES, "Queries of the table for WatchMsgs and WAIT_FOR_STORED");
    describe_gauge!(STORED_WAITERS, "Messages that callers wait for with WAIT_FOR_STORED");
    describe_counter!(STORED_RESULTS, "Results of messages that callers waited for with WAIT_FOR_STORED, by source");
    describe_gauge!(WATCHERS, "Open WatchMsgs streams");
    describe_gauge!(WATCHED_INBOXES, "Inboxes over all WatchMsgs streams");
    describe_gauge!(
        WATCH_CACHE_BYTES,
        Unit::Bytes,
        "Bytes of the newest messages of watched inboxes that are kept in memory"
    );
    describe_counter!(WATCHED_MSGS, "Messages that were sent to watchers, by source");
}

/// Counts a completed call. It is slower than a handle, so successful sends use [`SendMetrics`].
pub(crate) fn answered(method: &'static str, outcome: &'static str) {
    counter!(REQUESTS, "method" => method, "outcome" => outcome).increment(1);
}

/// The metrics of a successful send.
pub(crate) struct SendMetrics {
    pub(crate) ok: Counter,
    pub(crate) seconds: Histogram,
}

impl SendMetrics {
    /// Returns handles of the installed recorder.
    pub(crate) fn new() -> Self {
        SendMetrics {
            ok: counter!(REQUESTS, "method" => "SendMsg", "outcome" => "OK"),
            seconds: metrics::histogram!(SEND_SECONDS),
        }
    }
}

/// The outcome of a call or a message that did not fail.
const OK: &str = "OK";

/// Returns the outcome of a result, as the metrics name it.
pub(crate) fn outcome<T>(result: &Result<T, Failure>) -> &'static str {
    result.as_ref().map_or_else(Failure::outcome, |_| OK)
}

/// Counters for the messages of batches or streams.
pub(crate) struct MessageMetrics {
    method: &'static str,
    ok: Counter,
}

impl MessageMetrics {
    /// Returns the counters for this method.
    pub(crate) fn new(method: &'static str) -> Self {
        MessageMetrics { method, ok: counter!(MESSAGES, "method" => method, "outcome" => OK) }
    }

    pub(crate) fn count<T>(&self, result: &Result<T, Failure>) {
        self.add(outcome(result), 1);
    }

    pub(crate) fn add(&self, outcome: &'static str, count: u64) {
        match outcome {
            OK => self.ok.increment(count),
            _ => counter!(MESSAGES, "method" => self.method, "outcome" => outcome).increment(count),
        }
    }
}

/// Gauges of waiters and watchers.
pub(crate) struct WatchGauges {
    pub(crate) cached: Gauge,
    pub(crate) hints: Gauge,
}

impl WatchGauges {
    /// Returns handles of the installed recorder.
    pub(crate) fn new() -> Self {
        WatchGauges { cached: metrics::gauge!(WATCH_CACHE_BYTES), hints: metrics::gauge!(HINTS_RELIABLE) }
    }
}
