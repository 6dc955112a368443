//! Settings of the sends: the topic, the times and the limits.

use std::time::Duration;

use clap::Args;
use msg_common::config::{parse_bytes, parse_duration};
use msg_common::partition::Partition;

/// Limits and timeouts of sends.
#[derive(Args, Clone, Debug)]
pub struct SendOptions {
    /// Number of the topic's partitions that are used. It must be the same in every gateway; change it only after a
    /// drain
    #[arg(long, env = "TOPIC_PARTITIONS", default_value_t = 16, value_name = "N")]
    pub topic_partitions: Partition,
    /// Accept a topic that may lose accepted messages, such as one on a single broker. Without it, the gateway is not
    /// ready
    #[arg(long, env = "ALLOW_UNSAFE_TOPIC")]
    pub allow_unsafe_topic: bool,
    /// Time that a record may wait for others to the same partition, so that they are sent together
    #[arg(long, env = "LINGER", default_value = "1ms", value_parser = parse_duration, value_name = "TIME")]
    pub linger: Duration,
    /// Timeout for Kafka to confirm a record, over all attempts. After it, the producer abandons the record
    #[arg(long, env = "DELIVERY_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub delivery_timeout: Duration,
    /// Timeout for one request to a broker. After it, the request is retried
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "8s", value_parser = parse_duration, value_name = "TIME")]
    pub request_timeout: Duration,
    /// Maximum time until a send responds if its caller sets no shorter deadline; less than --delivery-timeout. After
    /// it, the outcome is unknown
    #[arg(long, env = "MAX_SEND_WAIT", default_value = "20s", value_parser = parse_duration, value_name = "TIME")]
    pub max_send_wait: Duration,
    /// Time before its caller's deadline at which a send responds, so that the response arrives in time
    #[arg(long, env = "DEADLINE_MARGIN", default_value = "20ms", value_parser = parse_duration, value_name = "TIME")]
    pub deadline_margin: Duration,
    /// Maximum number of messages in flight: given to the producer, and not confirmed by Kafka. At it, SendMsg and
    /// BatchSendMsg fail with RESOURCE_EXHAUSTED, and streams wait
    #[arg(long, env = "MAX_INFLIGHT_MSGS", default_value_t = 20_000, value_name = "N")]
    pub max_inflight_msgs: usize,
    /// Maximum bytes of messages in flight. At it, sends fail or wait as at --max-inflight-msgs
    #[arg(long, env = "MAX_INFLIGHT_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_inflight_bytes: usize,
    /// Maximum number of messages of one stream that have no result yet. At it, no further request is read from the
    /// stream
    #[arg(long, env = "MAX_STREAM_INFLIGHT_MSGS", default_value_t = 1000, value_name = "N")]
    pub max_stream_inflight_msgs: usize,
    /// Maximum number of open StreamSendMsg streams. Above it, new streams fail with RESOURCE_EXHAUSTED
    #[arg(long, env = "MAX_SEND_STREAMS", default_value_t = 2000, value_name = "N")]
    pub max_send_streams: usize,
    /// Maximum number of messages, over all StreamSendMsg streams, whose results are not read by the caller; 1000 or
    /// more. At it, no further request is read
    #[arg(long, env = "MAX_UNREAD_RESULTS", default_value_t = 50_000, value_name = "N")]
    pub max_unread_results: usize,
    /// Maximum number of concurrent batches of more than 40 messages, each until its response of up to 1.5 MiB is read.
    /// Above it, such batches fail with RESOURCE_EXHAUSTED
    #[arg(long, env = "MAX_BATCHES", default_value_t = 256, value_name = "N")]
    pub max_batches: usize,
}

impl SendOptions {
    pub(super) fn problems(&self) -> Vec<String> {
        // librdkafka's queue.buffering.max.messages and .kbytes end at 10,000,000 and 2^31 - 1; we set them to twice ours.
        const MAX_MSGS: usize = 5_000_000;
        const MAX_BYTES: usize = 1 << 40;
        let mut problems = Vec::new();
        let mut require = |ok: bool, problem: &str| {
            if !ok {
                problems.push(problem.to_owned());
            }
        };
        require(self.topic_partitions >= 1, "--topic-partitions must be at least 1");
        require((1..=MAX_MSGS).contains(&self.max_inflight_msgs), "--max-inflight-msgs must be 1 to 5000000");
        require(self.max_inflight_bytes <= MAX_BYTES, "--max-inflight-bytes must be at most 1024GiB");
        require(self.linger <= Duration::from_secs(1), "--linger must be at most 1s");
        require(
            (Duration::from_millis(100)..=Duration::from_secs(300)).contains(&self.request_timeout),
            "--request-timeout must be 100ms to 300s",
        );
        require(
            self.delivery_timeout >= 2 * self.request_timeout && self.delivery_timeout <= Duration::from_secs(3600),
            "--delivery-timeout must be at least twice --request-timeout, and at most 1h",
        );
        require(
            self.max_send_wait < self.delivery_timeout,
            "--max-send-wait must be below --delivery-timeout: a response must not report a record in flight as lost",
        );
        require(
            self.deadline_margin + self.linger < self.max_send_wait,
            "--deadline-margin and --linger together must be below --max-send-wait",
        );
        problems
    }
}
