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
    /// The entries when all files were last readable.
    #[arg(skip)]
    pub last_properties: LastProperties,
    /// Whether clients have to be replaced.
    #[arg(skip)]
    pub generation: Generation,
    /// The token that clients log in with, if the mechanism is OAUTHBEARER.
    #[arg(skip)]
    pub token: SharedToken,
}

/// The operator's settings of clients that were read last. Clones share them.
#[derive(Clone, Default)]
pub struct LastProperties(Arc<Mutex<Vec<(String, String)>>>);

impl std::fmt::Debug for LastProperties {
    /// Shows no values: one of them is the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LastProperties").finish_non_exhaustive()
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
        [self.client_problems(), self.security.oauth.content_problems()].concat()
    }

    /// Returns the problems of everything that a client is created from. A token is not: it is replaced in the client.
    fn client_problems(&self) -> Vec<String> {
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
        let properties = self.properties();
        if !security::BUILT_IN {
            problems.extend(security::build_problem(&properties));
        }
        problems.extend(properties.problems);
        problems
    }

    /// Returns the settings of a client for this purpose, which each client adds its own to. The operator's properties
    /// override them. The `client.id` is the purpose's; if the operator gives one, the name of the service in it is
    /// replaced by that.
    pub fn client_config(&self, purpose: ClientPurpose) -> ClientSetup {
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
        let properties = self.current_properties();
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

    /// Returns the properties as they are now. While the file is missing or invalid, for example because it is being
    /// replaced, it returns the previous ones.
    fn current_properties(&self) -> Vec<(String, String)> {
        let mut last = self.last_properties.0.lock().unwrap_or_else(PoisonError::into_inner);
        let properties = self.properties();
        if properties.problems.is_empty() {
            *last = properties.entries;
            return last.clone();
        }
        let problems = properties.problems.join("; ");
        tracing::error!(problems, "cannot read the properties of kafka clients again, using the previous ones");
        last.clone()
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
        let secrets = alone.config_map().into_iter().filter(|(key, _)| properties::is_secret(key));
        let reason = secrets.fold(reason, |reason, (_, secret)| reason.replace(secret, "…"));
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
mod tests {
    use super::*;

    fn with(properties: &str) -> KafkaOptions {
        KafkaOptions {
            kafka_brokers: "127.0.0.1:9092".into(),
            kafka_topic: "msgs".into(),
            hints_topic: None,
            kafka_properties: properties.into(),
            kafka_properties_file: None,
            security: SecurityOptions::default(),
            last_properties: LastProperties::default(),
            generation: Generation::default(),
            token: SharedToken::default(),
        }
    }

    #[test]
    fn properties_are_passed_on() {
        let options = with("linger.ms=7, metadata.max.age.ms = 5000\nclient.id=me");
        assert_eq!(options.problems(), Vec::<String>::new());
        let config = options.client_config(ClientPurpose::Producer);
        assert_eq!((config.get("linger.ms"), config.get("client.id")), (Some("7"), Some("me-producer")));
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
        assert_eq!(options.client_config(ClientPurpose::Consumer).get("client.id"), Some("one,two-consumer"));
        std::fs::write(&folder, "client.id=three").expect("it is written");
        assert_eq!(options.client_config(ClientPurpose::Consumer).get("client.id"), Some("three-consumer"));
        std::fs::remove_file(&folder).expect("it is removed");
        assert_eq!(options.client_config(ClientPurpose::Consumer).get("client.id"), Some("three-consumer"));
        assert_eq!(options.problems().len(), 1);
    }

    #[test]
    fn debug_of_the_options_shows_no_password() {
        let options = with("sasl.password=hunter2");
        options.client_config(ClientPurpose::Producer);
        assert!(!format!("{options:?}").contains("hunter"), "{options:?}");
    }

    #[test]
    fn settings_that_exclude_each_other_are_rejected() {
        let options = with("security.protocol=sasl_plaintext,sasl.mechanism=SCRAM-SHA-256");
        let problem = options.creation_problem(&options.client_config(ClientPurpose::Producer), Role::Producer);
        let problem = problem.expect("the user name is missing");
        assert!(problem.contains("--kafka-properties") && problem.len() > 70, "{problem}");
        let options = with("");
        assert_eq!(options.creation_problem(&options.client_config(ClientPurpose::Consumer), Role::Consumer), None);
    }

    #[test]
    fn every_compression_is_built_in() {
        for codec in ["zstd", "lz4", "snappy", "gzip"] {
            let options = with(&format!("compression.type={codec}"));
            assert_eq!(
                options.creation_problem(&options.client_config(ClientPurpose::Producer), Role::Producer),
                None,
                "{codec}"
            );
        }
    }

    #[test]
    #[cfg(feature = "kafka-tls")]
    fn tls_and_every_mechanism_are_built_in() {
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] {
            let login = format!("sasl.mechanism={mechanism},sasl.username=a,sasl.password=b");
            let options = with(&format!("security.protocol=sasl_ssl,{login}"));
            let config = options.client_config(ClientPurpose::Producer);
            assert_eq!(config.get("ssl.ca.location"), Some("probe"));
            assert_eq!(options.creation_problem(&config, Role::Producer), None, "{mechanism}");
        }
    }

    #[test]
    #[cfg(not(feature = "kafka-tls"))]
    fn tls_needs_a_build_with_openssl() {
        let mut options = with("");
        options.security.kafka_security_protocol = Some(Protocol::Ssl);
        for options in [options, with("security.protocol=ssl"), with("ssl.ca.location=/ca.pem")] {
            let problems = options.problems();
            assert!(problems.len() == 1 && problems[0].contains(security::WITH_OPENSSL), "{problems:?}");
        }
    }

    #[test]
    #[cfg(feature = "kafka-tls")]
    fn encrypted_key_needs_its_passphrase() {
        // The passphrase is hunter2.
        const PAIR: &str = include_str!("testdata/encrypted-pair.pem");
        let folder = tempfile::tempdir().expect("a folder can be made");
        let (pair, passphrase) = (folder.path().join("pair.pem"), folder.path().join("passphrase"));
        std::fs::write(&pair, PAIR).expect("it is written");
        let mut options = with("");
        options.security = SecurityOptions {
            kafka_security_protocol: Some(Protocol::Ssl),
            kafka_ssl_cert_file: Some(pair.clone()),
            kafka_ssl_key_file: Some(pair),
            kafka_ssl_key_password_file: Some(passphrase.clone()),
            ..SecurityOptions::default()
        };
        let problem = |passphrase_text: &str| {
            std::fs::write(&passphrase, passphrase_text).expect("it is written");
            options.creation_problem(&options.client_config(ClientPurpose::Producer), Role::Producer)
        };
        assert_eq!(problem("hunter2\n"), None);
        let wrong = problem("hunter3").expect("it is wrong");
        assert!(wrong.starts_with("--kafka-ssl-key-password-file: ") && !wrong.contains("hunter"), "{wrong}");
    }

    #[test]
    #[cfg(feature = "kafka-tls")]
    fn broken_certificate_is_reported_with_its_flag() {
        let file = std::env::temp_dir().join(format!("msg-broken-ca-{}", std::process::id()));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n").expect("it is written");
        let mut options = with("");
        options.security.kafka_security_protocol = Some(Protocol::Ssl);
        options.security.kafka_ssl_ca_file = Some(file.clone());
        assert_eq!(options.problems(), Vec::<String>::new());
        let problem = options.creation_problem(&options.client_config(ClientPurpose::Consumer), Role::Consumer);
        assert!(problem.as_ref().is_some_and(|text| text.starts_with("--kafka-ssl-ca-file: ")), "{problem:?}");
        std::fs::remove_file(file).expect("it is removed");
    }
}
