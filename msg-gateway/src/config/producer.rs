//! Every librdkafka setting of the producer, with its reason.

use std::time::Duration;

use msg_common::kafka::{ClientPurpose, ClientSetup, KafkaOptions};
use msg_common::limits::Limits;

use super::send::SendOptions;

pub(crate) fn producer(kafka: &KafkaOptions, limits: &Limits, send: &SendOptions) -> ClientSetup {
    let mut config = kafka.client_config(ClientPurpose::Producer);
    let record = limits.max_record_bytes();
    // The gateway's own limits are reached first. A delivery callback releases its permit, and librdkafka counts a
    // record until the whole batch of reports is done, so for a moment it may hold twice as many.
    let queue_msgs = 2 * send.max_inflight_msgs;
    let queue_kbytes = 2 * (send.max_inflight_bytes.max(record) / 1024 + 1);
    // Settings that KAFKA_PROPERTIES may change. A record that is reported sooner than the backoff was tried once (ADR
    // 32), so the backoff is longer than Kafka usually needs to reject a batch.
    for (key, value) in [
        ("compression.type", "lz4".to_owned()),
        ("linger.ms", millis(send.linger)),
        ("retry.backoff.ms", "250".to_owned()),
    ] {
        if config.get(key).is_none() {
            config.set(key, value);
        }
    }
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("delivery.timeout.ms", millis(send.delivery_timeout))
        // Well below the delivery timeout, so that there is time for a retry if a broker hangs.
        .set("request.timeout.ms", millis(send.request_timeout))
        .set("socket.timeout.ms", millis(send.request_timeout))
        .set("message.max.bytes", record.max(1_000_000).to_string())
        // The broker's limit applies to batches. The topic only has to accept one message of the largest size.
        .set("batch.size", record.min(1_000_000).to_string())
        .set("queue.buffering.max.messages", queue_msgs.to_string())
        .set("queue.buffering.max.kbytes", queue_kbytes.to_string());
    config
}

/// Returns the shortest time that librdkafka waits before it retries a record.
pub(crate) fn shortest_backoff(config: &ClientSetup) -> Duration {
    let millis = |key, default| config.get(key).and_then(|value| value.parse().ok()).unwrap_or(default);
    let (backoff, max): (u64, u64) = (millis("retry.backoff.ms", 100), millis("retry.backoff.max.ms", 1000));
    // librdkafka's jitter subtracts up to 20 %, and then its maximum applies.
    Duration::from_micros((backoff * 800).min(max * 1000))
}

/// Returns how long after it was enqueued a record can still appear in the topic: the last request that carries it
/// starts before the delivery timeout, and needs no longer than the request timeout.
pub(crate) fn settle(send: &SendOptions) -> Duration {
    send.delivery_timeout + send.request_timeout
}

fn millis(time: Duration) -> String {
    (time.as_micros() as f64 / 1000.0).to_string()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Config;

    fn made_from(words: &[&str]) -> ClientSetup {
        let config = Config::parse_from(std::iter::once(&"msg-gateway").chain(words));
        producer(&config.kafka, &config.limits, &config.send)
    }

    #[test]
    fn librdkafka_accepts_the_smallest_and_the_largest() {
        for words in [
            &["--max-content-bytes=0", "--max-id-bytes=1", "--linger=0ms"][..],
            &[],
            &[
                "--max-content-bytes=900MiB",
                "--max-id-bytes=1024",
                "--max-inflight-msgs=5000000",
                "--max-inflight-bytes=1023GiB",
                "--delivery-timeout=1h",
                "--request-timeout=300s",
                "--linger=1s",
            ],
        ] {
            made_from(words).config().create_native_config().expect("librdkafka accepts it");
        }
    }

    #[test]
    fn properties_without_effect_on_the_guarantees_can_be_set() {
        let config = made_from(&["--kafka-properties=compression.type=zstd,linger.ms=7"]);
        assert_eq!((config.get("compression.type"), config.get("linger.ms")), (Some("zstd"), Some("7")));
        assert_eq!(made_from(&["--linger=1500us"]).get("linger.ms"), Some("1.5"));
        assert_eq!(shortest_backoff(&made_from(&[])), Duration::from_millis(200));
        let short = made_from(&["--kafka-properties=retry.backoff.ms=50,retry.backoff.max.ms=30"]);
        assert_eq!(shortest_backoff(&short), Duration::from_millis(30));
    }
}
