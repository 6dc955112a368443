//! Settings of the sends: the topic, the times and the limits.

use std::time::Duration;

use clap::Args;
use msg_common::config::{parse_bytes, parse_duration};
use msg_common::partition::Partition;

/// How messages are sent.
#[derive(Args, Clone, Debug)]
pub struct SendOptions {
    /// How many of the topic's partitions are used: the same in every gateway, and changed only after a drain
    #[arg(long, env = "TOPIC_PARTITIONS", default_value_t = 16, value_name = "N")]
    pub topic_partitions: Partition,
    /// Accepts a topic that may lose accepted messages (a single broker, for instance)
    #[arg(long, env = "ALLOW_UNSAFE_TOPIC")]
    pub allow_unsafe_topic: bool,
    /// How long a record may wait for others to the same partition
    #[arg(long, env = "LINGER", default_value = "1ms", value_parser = parse_duration, value_name = "TIME")]
    pub linger: Duration,
    /// How long Kafka may take to confirm a record before it is given up
    #[arg(long, env = "DELIVERY_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub delivery_timeout: Duration,
    /// How long one request to a broker may take before it is tried again
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "8s", value_parser = parse_duration, value_name = "TIME")]
    pub request_timeout: Duration,
    /// How long a send may take to answer when its caller sets no shorter deadline; below the delivery time-out
    #[arg(long, env = "MAX_SEND_WAIT", default_value = "20s", value_parser = parse_duration, value_name = "TIME")]
    pub max_send_wait: Duration,
    /// How long before its caller's deadline a send is answered
    #[arg(long, env = "DEADLINE_MARGIN", default_value = "20ms", value_parser = parse_duration, value_name = "TIME")]
    pub deadline_margin: Duration,
    /// Most messages that are taken and not yet confirmed by Kafka
    #[arg(long, env = "MAX_INFLIGHT_MSGS", default_value_t = 20_000, value_name = "N")]
    pub max_inflight_msgs: usize,
    /// Most bytes of such messages
    #[arg(long, env = "MAX_INFLIGHT_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_inflight_bytes: usize,
    /// At how many messages of one stream that are not answered yet no further request is read from it
    #[arg(long, env = "MAX_STREAM_INFLIGHT_MSGS", default_value_t = 1000, value_name = "N")]
    pub max_stream_inflight_msgs: usize,
    /// Most StreamSendMsg streams at a time
    #[arg(long, env = "MAX_SEND_STREAMS", default_value_t = 2000, value_name = "N")]
    pub max_send_streams: usize,
    /// Most messages over all of these streams that were read and whose results their callers have not taken yet; with so
    /// many, no further request is read. 1,000 or more
    #[arg(long, env = "MAX_UNTAKEN_RESULTS", default_value_t = 50_000, value_name = "N")]
    pub max_untaken_results: usize,
    /// Most batches of more than 40 messages at a time, from their begin until their answer is sent, which may have 1.5 MiB
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
            "--max-send-wait must be below --delivery-timeout: an answer by then must not call a record lost that is still on its way",
        );
        require(
            self.deadline_margin + self.linger < self.max_send_wait,
            "--deadline-margin and --linger together must be below --max-send-wait",
        );
        problems
    }
}
