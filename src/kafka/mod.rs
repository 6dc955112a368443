//! The Kafka code that both services share: the settings of the clients, the requirements of a safe topic, and the few calls
//! of librdkafka that rust-rdkafka does not wrap.

pub mod cause;
pub mod coordinator;
pub mod ends;
mod error;
pub mod events;
pub mod polled;
mod properties;
pub mod raw;
pub mod topic;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DeliveryResult, ProducerContext};

pub use self::error::{ClientError, RequestError};
use self::properties::{Properties, Source};
use crate::config::{SettingError, read_text};
use crate::error::chain;
use crate::repeat::Repeats;

/// The cluster, the topics and the settings of the clients.
#[derive(Args, Clone, Debug)]
pub struct KafkaOptions {
    /// Initial Kafka brokers, such as kafka-1:9092,kafka-2:9092. The client gets the addresses of all brokers from them
    #[arg(long, env = "KAFKA_BROKERS", default_value = "127.0.0.1:9092", value_name = "HOST:PORT,…")]
    pub kafka_brokers: String,
    /// Topic that carries the messages. It must exist
    #[arg(long, env = "KAFKA_TOPIC", default_value = "msgs", value_name = "NAME")]
    pub kafka_topic: String,
    /// Topic that carries the hints: which inboxes have new rows. `none` turns hints off. Without hints, gateways find
    /// new rows by polling the table, so watches and WAIT_FOR_STORED respond later [default: the topic's name followed
    /// by -hints]
    #[arg(long, env = "HINTS_TOPIC", value_name = "NAME")]
    pub hints_topic: Option<String>,
    /// Additional librdkafka settings as key=value, separated by commas or line ends
    #[arg(long, env = "KAFKA_PROPERTIES", default_value = "", value_name = "KEY=VALUE,…", hide_env_values = true)]
    pub kafka_properties: String,
    /// File with additional librdkafka settings, one key=value per line, so that a value may contain commas. Lines that
    /// start with # are comments. The file is read at startup, and again for each new client
    #[arg(long, env = "KAFKA_PROPERTIES_FILE", value_name = "FILE")]
    pub kafka_properties_file: Option<PathBuf>,
    /// The entries of the file when it was last readable.
    #[arg(skip)]
    pub last_properties: LastProperties,
}

/// The entries of the properties file that were read last. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct LastProperties(Arc<Mutex<Vec<(String, String)>>>);

/// The kind of a client: librdkafka checks the settings of each differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "Kafka's own words")]
pub enum Role {
    Producer,
    Consumer,
}

impl KafkaOptions {
    /// Returns the name of the hints topic, or `None` if hints are off.
    pub fn hints_topic(&self) -> Option<String> {
        match self.hints_topic.as_deref() {
            Some("" | "none") => None,
            Some(topic) => Some(topic.to_owned()),
            None => Some(format!("{}-hints", self.kafka_topic)),
        }
    }

    /// Returns one line for each problem of these settings.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = properties::broker_problems(&self.kafka_brokers);
        let form = "must be 1 to 249 of the characters a-z, A-Z, 0-9, `.`, `_`, `-`";
        if !valid_topic(&self.kafka_topic) {
            problems.push(format!("--kafka-topic {form}"));
        } else if self.hints_topic().is_some_and(|topic| !valid_topic(&topic)) {
            problems.push(match self.hints_topic {
                Some(_) => format!("--hints-topic {form}, or `none`"),
                None => "--kafka-topic with -hints at its end is too long: give --hints-topic".to_owned(),
            });
        } else if self.hints_topic().as_ref() == Some(&self.kafka_topic) {
            problems.push("--hints-topic must be another topic than --kafka-topic, or `none`".into());
        }
        match self.properties() {
            Ok(properties) => problems.extend(properties.problems),
            Err(error) => problems.push(chain(&error)),
        }
        problems
    }

    /// Returns the settings that all clients share. The operator's properties override them.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.kafka_brokers)
            .set("client.id", "msg")
            // A topic that a client creates by mistake would have unsafe settings.
            .set("allow.auto.create.topics", "false")
            // The default's backoff grows to 10 s, which would delay sends after a broker restart.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            // If a broker's host is down, the connection is not refused, and the client waits for this timeout. The default is
            // 30 s.
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true");
        for (key, value) in self.current_properties() {
            config.set(key, value);
        }
        config
    }

    /// Returns the `client.id`, which all processes of a service share.
    pub fn client_id(&self) -> String {
        self.client_config().get("client.id").unwrap_or_default().to_owned()
    }

    /// Returns the properties as they are now. While the file is missing or invalid, for example because it is being
    /// replaced, it returns the previous ones.
    fn current_properties(&self) -> Vec<(String, String)> {
        let mut last = self.last_properties.0.lock().unwrap_or_else(PoisonError::into_inner);
        let problems = match self.properties() {
            Ok(properties) if properties.problems.is_empty() => {
                *last = properties.entries;
                return last.clone();
            }
            Ok(properties) => properties.problems.join("; "),
            Err(error) => chain(&error),
        };
        tracing::error!(problems, "cannot read the properties of kafka clients again, using the previous ones");
        last.clone()
    }

    fn properties(&self) -> Result<Properties, SettingError> {
        let mut properties = Properties::default();
        properties.read(&self.kafka_properties, Source::Setting);
        if let Some(file) = &self.kafka_properties_file {
            let text = read_text(file).map_err(SettingError::of_file("--kafka-properties-file"))?;
            properties.read(&text, Source::File);
        }
        Ok(properties)
    }
}

/// Returns why librdkafka cannot create a client with these settings. It creates one that connects to no broker, and drops it.
pub fn creation_problem(config: &ClientConfig, role: Role) -> Option<String> {
    let mut alone = config.clone();
    alone.remove("bootstrap.servers");
    let created = match role {
        Role::Producer => alone.create_with_context::<_, BaseProducer<SilentContext>>(SilentContext).map(drop),
        Role::Consumer => alone.create_with_context::<_, BaseConsumer<SilentContext>>(SilentContext).map(drop),
    };
    let reason = match created.err()? {
        KafkaError::ClientConfig(_, reason, key, _) => format!("{key}: {reason}"),
        KafkaError::ClientCreation(reason) => reason,
        error => error.to_string(),
    };
    let secrets = alone.config_map().into_iter().filter(|(key, _)| properties::is_secret(key)).map(|(_, value)| value);
    let reason = secrets.fold(reason, |reason, secret| reason.replace(secret, "…"));
    Some(format!("--kafka-properties: librdkafka rejects the combination of settings: {reason}"))
}

/// The callbacks of a client that is never used: they drop logs and errors.
struct SilentContext;

impl ClientContext for SilentContext {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for SilentContext {}

impl ProducerContext for SilentContext {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

fn valid_topic(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=249).contains(&name.len()) && name.chars().all(allowed) && name != "." && name != ".."
}

/// Writes a log line of librdkafka. Most of its errors are about connections that librdkafka reopens by itself, and they
/// repeat while a broker is unavailable. So each error is logged at growing intervals.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    static REPEATS: Repeats = Repeats::new();
    let logged = || {
        // Lines that differ only in times and counts are the same condition.
        let condition = message.replace(|c: char| c.is_ascii_digit(), "");
        REPEATS.occurred(&format!("{facility} {condition}"))
    };
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(facility, detail = message, "librdkafka");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            if let Some(repeated) = logged() {
                tracing::warn!(facility, detail = message, repeated, "librdkafka");
            }
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(facility, detail = message, "librdkafka"),
        RDKafkaLogLevel::Debug => tracing::debug!(facility, detail = message, "librdkafka"),
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
            kafka_properties_file: None,
            last_properties: LastProperties::default(),
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
    fn properties_that_the_guarantees_need_cannot_be_changed() {
        let problems = with("acks=1,enable.idempotence=false,nonsense,no.such.key=1").problems();
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    #[test]
    fn properties_of_a_missing_file_are_the_previous_ones() {
        let folder = std::env::temp_dir().join(format!("msg-properties-{}", std::process::id()));
        std::fs::write(&folder, "client.id=one,two").expect("it is written");
        let options = KafkaOptions { kafka_properties_file: Some(folder.clone()), ..with("") };
        assert_eq!(options.problems(), Vec::<String>::new());
        assert_eq!(options.client_config().get("client.id"), Some("one,two"));
        std::fs::write(&folder, "client.id=three").expect("it is written");
        assert_eq!(options.client_config().get("client.id"), Some("three"));
        std::fs::remove_file(&folder).expect("it is removed");
        assert_eq!(options.client_config().get("client.id"), Some("three"));
        assert_eq!(options.problems().len(), 1);
    }

    #[test]
    fn settings_that_exclude_each_other_are_rejected() {
        let config = with("security.protocol=sasl_plaintext,sasl.mechanism=SCRAM-SHA-256").client_config();
        let problem = creation_problem(&config, Role::Producer).expect("the user name is missing");
        assert!(problem.contains("--kafka-properties") && problem.len() > 70, "{problem}");
        assert_eq!(creation_problem(&with("").client_config(), Role::Consumer), None);
    }
}
