//! The Kafka code that both services share: the settings of the clients, the requirements of a safe topic, and the few calls
//! of librdkafka that rust-rdkafka does not wrap.

pub mod cause;
mod client;
pub mod coordinator;
pub mod ends;
mod error;
pub mod events;
mod oauth;
#[cfg(feature = "kafka-tls")]
mod openssl;
pub mod polled;
mod properties;
mod purpose;
pub mod raw;
mod renewal;
mod security;
mod tls_probe;
pub mod topic;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DeliveryResult, ProducerContext};
use tokio_util::sync::CancellationToken;

pub use self::client::{ClientSetup, KafkaClient, OwnsClient};
pub use self::error::{ClientError, RequestError};
pub(crate) use self::oauth::describe;
pub use self::oauth::{OauthOptions, SharedToken};
use self::properties::{Properties, Source};
pub use self::purpose::ClientPurpose;
pub use self::renewal::{ClientSettings, CreatedAt, FileChanges, FilesError, Generation};
pub use self::security::{Mechanism, Protocol, SecurityOptions};
use crate::config::{FileError, Secret, SettingError, read_text};
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
    #[arg(long, env = "KAFKA_PROPERTIES", default_value = "", value_name = "KEY=VALUE,…")]
    pub kafka_properties: Secret,
    /// File with additional librdkafka settings, one key=value per line, so that a value may contain commas. Lines that
    /// start with # are comments. When the file changes, the Kafka clients are replaced
    #[arg(long, env = "KAFKA_PROPERTIES_FILE", value_name = "FILE")]
    pub kafka_properties_file: Option<PathBuf>,
    /// The protocol, the login and the certificates.
    #[command(flatten)]
    pub security: SecurityOptions,
    /// The settings of clients that are in force.
    #[arg(skip)]
    pub accepted: AcceptedProperties,
    /// Whether clients have to be replaced.
    #[arg(skip)]
    pub generation: Generation,
    /// The token that clients log in with, if the mechanism is OAUTHBEARER.
    #[arg(skip)]
    pub token: SharedToken,
}

/// The operator's settings of clients that are in force, with the content of their files: a file that is being replaced, or
/// is broken, must never be the reason why no client can be created. Clones share them.
#[derive(Clone, Default)]
pub struct AcceptedProperties(Arc<Mutex<Option<Entries>>>);

/// Names and values of librdkafka's settings.
type Entries = Vec<(String, String)>;

impl std::fmt::Debug for AcceptedProperties {
    /// Shows no values: one of them is the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcceptedProperties").finish_non_exhaustive()
    }
}

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
        [self.client_problems(&self.properties()), self.security.oauth.content_problems()].concat()
    }

    /// Returns the problems of everything that a client is created from. A token is not: it is replaced in the client.
    fn client_problems(&self, properties: &Properties) -> Vec<String> {
        let protocol = properties.get("security.protocol").unwrap_or("plaintext");
        let mut problems = properties::broker_problems(&self.kafka_brokers, protocol);
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
        if !security::BUILT_IN {
            problems.extend(security::build_problem(properties));
        }
        problems.extend_from_slice(&properties.problems);
        problems
    }

    /// Returns the settings of a client for this purpose, which each client adds its own to. The operator's properties
    /// override them. The `client.id` is the purpose's; if the operator gives one, the name of the service in it is
    /// replaced by that.
    pub fn client_config(&self, purpose: ClientPurpose) -> ClientSetup {
        self.config_with(purpose, self.accepted_properties())
    }

    fn config_with(&self, purpose: ClientPurpose, properties: Entries) -> ClientSetup {
        #[cfg(feature = "kafka-tls")]
        openssl::keep_until_the_end();
        let mut config = ClientSetup::new(self.token.clone());
        config
            .set("bootstrap.servers", &self.kafka_brokers)
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
        let has_tls =
            |(key, value): &(String, String)| key == "security.protocol" && value.to_ascii_lowercase().ends_with("ssl");
        if properties.iter().any(has_tls) {
            config
                // The system's CAs are in another folder than the one that a statically linked OpenSSL was built for.
                .set("ssl.ca.location", "probe")
                // A certificate of another host must not be accepted, whatever the CA.
                .set("ssl.endpoint.identification.algorithm", "https");
        }
        for (key, value) in properties {
            config.set(key, value);
        }
        let id = purpose.client_id(config.get("client.id"));
        config.set("client.id", id);
        config
    }

    /// Returns the `client.id` of this purpose, which all processes of a service share.
    pub fn client_id(&self, purpose: ClientPurpose) -> String {
        self.client_config(purpose).get("client.id").unwrap_or_default().to_owned()
    }

    /// Returns a task that keeps the clients' token fresh until `stop`, if they log in with one.
    pub fn refresh_token(&self, stop: CancellationToken) -> Option<impl Future<Output = ()> + Send + use<>> {
        self.security.oauth.refresh(&self.token, stop)
    }

    /// Returns the properties that are in force. Until there are some, it reads them.
    fn accepted_properties(&self) -> Entries {
        let mut accepted = self.accepted.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(accepted) = &*accepted {
            return accepted.clone();
        }
        let properties = self.properties();
        *accepted = properties.problems.is_empty().then(|| properties.entries.clone());
        properties.entries
    }

    /// Lets each new client use these properties. A client was created with them.
    fn accept(&self, properties: Entries) {
        *self.accepted.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(properties);
    }

    /// Returns the files that the settings of clients are read from, each with its flag.
    fn files(&self) -> Vec<(&'static str, &PathBuf)> {
        let properties = self.kafka_properties_file.iter().map(|file| ("--kafka-properties-file", file));
        properties.chain(self.security.files()).collect()
    }

    fn properties(&self) -> Properties {
        let mut properties = Properties::default();
        properties.read(self.kafka_properties.expose(), Source::Setting);
        if let Some(file) = &self.kafka_properties_file {
            match read_settings(file).map_err(SettingError::of_file("--kafka-properties-file")) {
                Ok(text) => properties.read(&text, Source::File),
                Err(error) => properties.problems.push(chain(&error)),
            }
        }
        self.security.add_to(&mut properties);
        properties
    }

    /// Returns why librdkafka cannot create a client with these settings. It creates one that connects to no broker, and
    /// drops it.
    pub fn creation_problem(&self, config: &ClientSetup, role: Role) -> Option<String> {
        let mut alone = config.config().clone();
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
        // The map does not have the values of secrets.
        let secrets = alone.config_map().into_keys().filter(|key| properties::is_secret(key));
        let secrets = secrets.filter_map(|key| alone.get(key)).filter(|secret| !secret.is_empty());
        let reason = secrets.fold(reason, |reason, secret| reason.replace(secret, "…"));
        let flag = self.security.flag_of(&reason);
        Some(format!("{flag}: librdkafka rejects the combination of settings: {reason}"))
    }
}

/// Reads a file with settings. An empty one is an error: most likely what writes it has failed.
fn read_settings(file: &Path) -> Result<String, FileError> {
    let text = read_text(file)?;
    if text.trim().is_empty() { Err(FileError::Empty(file.to_owned())) } else { Ok(text) }
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
mod tests;
