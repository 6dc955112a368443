//! What both services need of Kafka: how to reach it, what a safe topic is, and the few calls of librdkafka that
//! rust-rdkafka does not wrap.

pub mod ends;
pub mod raw;
pub mod topic;

use clap::Args;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::repeat::Repeats;

/// Which cluster and topic, and how to talk to it.
#[derive(Args, Clone, Debug)]
pub struct KafkaOptions {
    /// Brokers to begin with, such as kafka-1:9092,kafka-2:9092
    #[arg(long, env = "KAFKA_BROKERS", default_value = "127.0.0.1:9092", value_name = "HOST:PORT,…")]
    pub kafka_brokers: String,
    /// The topic that carries the messages; it must be there
    #[arg(long, env = "KAFKA_TOPIC", default_value = "msgs", value_name = "NAME")]
    pub kafka_topic: String,
    /// The small topic through which gateways learn what was just stored; empty: none. Without it, and while it is away,
    /// they look at the table from time to time [default: the topic's name with -hints behind it]
    #[arg(long, env = "HINTS_TOPIC", value_name = "NAME")]
    pub hints_topic: Option<String>,
    /// Further librdkafka settings as key=value, separated by commas or line ends
    #[arg(long, env = "KAFKA_PROPERTIES", default_value = "", value_name = "KEY=VALUE,…", hide_env_values = true)]
    pub kafka_properties: String,
}

/// Settings that the guarantees rest on, or that a setting of the service's own stands for: KAFKA_PROPERTIES may not
/// change them.
const OURS: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "batch.size",
    "bootstrap.servers",
    "check.crcs",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "fetch.max.bytes",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "heartbeat.interval.ms",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "message.max.bytes",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "request.required.acks",
    "request.timeout.ms",
    "session.timeout.ms",
    "socket.timeout.ms",
    "transactional.id",
];

impl KafkaOptions {
    /// Where hints go, if there are any.
    pub fn hints_topic(&self) -> Option<String> {
        match self.hints_topic.as_deref() {
            Some("") => None,
            Some(topic) => Some(topic.to_owned()),
            None => Some(format!("{}-hints", self.kafka_topic)),
        }
    }

    /// What is wrong with these settings.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.kafka_brokers.is_empty() {
            problems.push("--kafka-brokers is empty".into());
        }
        if !valid_topic(&self.kafka_topic) {
            problems.push("--kafka-topic must be 1 to 249 of the characters a-z, A-Z, 0-9, `.`, `_`, `-`".into());
        } else if self.hints_topic().is_some_and(|topic| !valid_topic(&topic) || topic == self.kafka_topic) {
            problems.push("--hints-topic must be the name of another topic than --kafka-topic, or empty".into());
        }
        let mut config = ClientConfig::new();
        for entry in self.entries() {
            match entry {
                Ok((key, _)) if OURS.contains(&key) => {
                    problems.push(format!("--kafka-properties: {key} is set by the service"));
                }
                Ok((key, value)) => {
                    config.set(key, value);
                }
                // The entry may hold a password, so it is not repeated.
                Err(()) => problems.push("--kafka-properties: an entry is not key=value".into()),
            }
        }
        if let Err(error) = config.create_native_config() {
            problems.push(format!("--kafka-properties: {error}"));
        }
        problems
    }

    /// The client settings that both services share, with the user's on top.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.kafka_brokers)
            .set("client.id", "msg")
            // A topic made by a client's mistake would have unsafe settings.
            .set("allow.auto.create.topics", "false")
            // The default backs off to 10 s, which a restarted broker's callers would feel.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            // A broker whose address is gone does not refuse a connection, it is silent: 30 s is the default.
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true");
        for (key, value) in self.entries().flatten() {
            config.set(key, value);
        }
        config
    }

    fn entries(&self) -> impl Iterator<Item = Result<(&str, &str), ()>> {
        self.kafka_properties
            .split([',', '\n'])
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(|entry| entry.split_once('=').map(|(key, value)| (key.trim(), value.trim())).ok_or(()))
    }
}

fn valid_topic(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=249).contains(&name.len()) && name.chars().all(allowed) && name != "." && name != ".."
}

/// Logs of librdkafka. Its errors are mostly about connections that it makes anew by itself, again and again while a broker
/// is away: each is logged at growing intervals.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    static REPEATS: Repeats = Repeats::new();
    let logged = || {
        // The same but for times and counts.
        let condition = message.replace(|c: char| c.is_ascii_digit(), "");
        REPEATS.occurred(&format!("{facility} {condition}"))
    };
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(facility, message, "librdkafka");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            if let Some(repeated) = logged() {
                tracing::warn!(facility, message, repeated, "librdkafka");
            }
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(facility, message, "librdkafka"),
        RDKafkaLogLevel::Debug => tracing::debug!(facility, message, "librdkafka"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(properties: &str) -> KafkaOptions {
        KafkaOptions {
            kafka_brokers: "127.0.0.1:9092".into(),
            kafka_topic: "msgs".into(),
            hints_topic: None,
            kafka_properties: properties.into(),
        }
    }

    #[test]
    fn properties_are_passed_on() {
        let options = with("linger.ms=7, metadata.max.age.ms = 5000\nclient.id=me");
        assert_eq!(options.problems(), Vec::<String>::new());
        let config = options.client_config();
        assert_eq!((config.get("linger.ms"), config.get("client.id")), (Some("7"), Some("me")));
    }

    #[test]
    fn what_the_guarantees_rest_on_cannot_be_changed() {
        let problems = with("acks=1,enable.idempotence=false,nonsense,no.such.key=1").problems();
        assert_eq!(problems.len(), 4, "{problems:?}");
    }
}
