//! The gateway's metrics: their names, what they mean, and the handles that the hot path counts with.

use metrics::{Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram};

/// Calls that were answered, by `method` and `outcome` (OK, OVERLOADED, or a reason of ErrorInfo).
pub const REQUESTS: &str = "msg_gateway_requests_total";
/// From the arrival of a send to its answer, for sends that were handed to the producer.
pub const SEND_SECONDS: &str = "msg_gateway_send_duration_seconds";
/// From the arrival of a read to its answer, by `method`.
pub const READ_SECONDS: &str = "msg_gateway_read_duration_seconds";
/// Messages that were taken and are not yet confirmed by Kafka.
pub const INFLIGHT_MSGS: &str = "msg_gateway_inflight_msgs";
/// Their bytes.
pub const INFLIGHT_BYTES: &str = "msg_gateway_inflight_bytes";
/// Bytes of requests that have not arrived in full yet.
pub const ARRIVING_BYTES: &str = "msg_gateway_arriving_bytes";
/// Delivery reports, by `outcome`.
pub const DELIVERIES: &str = "msg_gateway_deliveries_total";
/// Open connections.
pub const CONNECTIONS: &str = "msg_gateway_connections";
/// Connections that were closed at once because there were too many.
pub const CONNECTIONS_REFUSED: &str = "msg_gateway_connections_refused_total";
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

/// Describes every metric, once, after the recorder is there.
pub fn describe() {
    describe_counter!(REQUESTS, "Calls that were answered, by method and outcome");
    describe_histogram!(SEND_SECONDS, Unit::Seconds, "From the arrival of a send to its answer");
    describe_histogram!(READ_SECONDS, Unit::Seconds, "From the arrival of a read to its answer, by method");
    describe_gauge!(INFLIGHT_MSGS, "Messages that were taken and are not yet confirmed by Kafka");
    describe_gauge!(INFLIGHT_BYTES, Unit::Bytes, "Bytes of messages that are not yet confirmed by Kafka");
    describe_gauge!(ARRIVING_BYTES, Unit::Bytes, "Bytes of requests that have not arrived in full yet");
    describe_counter!(DELIVERIES, "Delivery reports, by outcome");
    describe_gauge!(CONNECTIONS, "Open connections");
    describe_counter!(CONNECTIONS_REFUSED, "Connections that were closed at once because there were too many");
    describe_counter!(TRANSPORT_ERRORS, "Calls that the transport answered with an error, by reason");
    describe_gauge!(TOPIC_USABLE, "1 while the topic can be used, 0 while it cannot");
    describe_gauge!(TOPIC_UNSAFE_SETTINGS, "Settings of the topic under which an accepted message could be lost");
    describe_gauge!(TOPIC_EXTRA_PARTITIONS, "Partitions that the topic has beyond those that are used");
    describe_counter!(PREFLIGHTS, "Checks of the topic, by outcome");
    describe_counter!(PRODUCERS_REPLACED, "Producers that were replaced after a fatal error");
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

/// Gauges that are set by looking from time to time.
pub struct Levels {
    /// See [`INFLIGHT_MSGS`].
    pub inflight_msgs: Gauge,
    /// See [`INFLIGHT_BYTES`].
    pub inflight_bytes: Gauge,
    /// See [`ARRIVING_BYTES`].
    pub arriving_bytes: Gauge,
}

impl Levels {
    /// Handles of the recorder that is installed.
    pub fn new() -> Self {
        Levels {
            inflight_msgs: metrics::gauge!(INFLIGHT_MSGS),
            inflight_bytes: metrics::gauge!(INFLIGHT_BYTES),
            arriving_bytes: metrics::gauge!(ARRIVING_BYTES),
        }
    }
}

impl Default for Levels {
    fn default() -> Self {
        Self::new()
    }
}
