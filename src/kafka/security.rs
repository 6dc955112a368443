//! How clients log in to Kafka and protect their connections: the settings, the combinations that are impossible, and
//! librdkafka's settings for them.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::oauth::OauthOptions;
use super::properties::Properties;
use crate::config::{SettingError, read_password, read_text};
use crate::error::chain;

/// The protocol, the login and the certificates of Kafka clients.
#[derive(Args, Clone, Debug, Default)]
pub struct SecurityOptions {
    /// How clients connect to the brokers: plaintext, ssl (TLS), sasl_plaintext (a login without TLS) or sasl_ssl (a
    /// login over TLS). With TLS, a broker's certificate must be for the host that the broker advertises
    /// [default: plaintext]
    #[arg(
        long,
        env = "KAFKA_SECURITY_PROTOCOL",
        ignore_case = true,
        hide_possible_values = true,
        value_name = "PROTOCOL"
    )]
    pub kafka_security_protocol: Option<Protocol>,
    /// How clients log in. Needs --kafka-security-protocol sasl_plaintext or sasl_ssl
    #[arg(
        long,
        env = "KAFKA_SASL_MECHANISM",
        ignore_case = true,
        hide_possible_values = true,
        value_name = "MECHANISM"
    )]
    pub kafka_sasl_mechanism: Option<Mechanism>,
    /// User that clients log in as
    #[arg(long, env = "KAFKA_SASL_USERNAME", value_name = "NAME")]
    pub kafka_sasl_username: Option<String>,
    /// File with the user's password. Only the line end after it does not count. When the file changes, the Kafka
    /// clients are replaced
    #[arg(long, env = "KAFKA_SASL_PASSWORD_FILE", value_name = "FILE")]
    pub kafka_sasl_password_file: Option<PathBuf>,
    /// File with the certificates of the CAs that sign the brokers' certificates, in PEM [default: the system's CAs]
    #[arg(long, env = "KAFKA_SSL_CA_FILE", value_name = "FILE")]
    pub kafka_ssl_ca_file: Option<PathBuf>,
    /// File with the certificate that clients present to the brokers, and its chain, in PEM
    #[arg(long, env = "KAFKA_SSL_CERT_FILE", value_name = "FILE")]
    pub kafka_ssl_cert_file: Option<PathBuf>,
    /// File with the private key of --kafka-ssl-cert-file, in PEM
    #[arg(long, env = "KAFKA_SSL_KEY_FILE", value_name = "FILE")]
    pub kafka_ssl_key_file: Option<PathBuf>,
    /// The source of the tokens for OAUTHBEARER.
    #[command(flatten)]
    pub oauth: OauthOptions,
    /// File with the passphrase of --kafka-ssl-key-file, if the key is encrypted
    #[arg(long, env = "KAFKA_SSL_KEY_PASSWORD_FILE", value_name = "FILE")]
    pub kafka_ssl_key_password_file: Option<PathBuf>,
}

/// `security.protocol`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[expect(missing_docs, reason = "Kafka's own words")]
pub enum Protocol {
    Plaintext,
    Ssl,
    SaslPlaintext,
    SaslSsl,
}

/// `sasl.mechanism`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "Kafka's own words")]
pub enum Mechanism {
    #[value(name = "PLAIN")]
    Plain,
    #[value(name = "SCRAM-SHA-256")]
    ScramSha256,
    #[value(name = "SCRAM-SHA-512")]
    ScramSha512,
    #[value(name = "OAUTHBEARER")]
    OauthBearer,
}

/// Whether librdkafka was built with OpenSSL. Without it, it can neither use TLS nor log in, except with PLAIN.
pub(super) const BUILT_IN: bool = cfg!(feature = "kafka-tls");

/// What to do about a build without OpenSSL.
pub(super) const WITH_OPENSSL: &str =
    "build with the Cargo feature kafka-tls, which is on by default (`make demo` turns it off)";

const PROTOCOL: &str = "--kafka-security-protocol";
const MECHANISM: &str = "--kafka-sasl-mechanism";
const USERNAME: &str = "--kafka-sasl-username";
const PASSWORD_FILE: &str = "--kafka-sasl-password-file";
const CA_FILE: &str = "--kafka-ssl-ca-file";
const CERT_FILE: &str = "--kafka-ssl-cert-file";
const KEY_FILE: &str = "--kafka-ssl-key-file";
const KEY_PASSWORD_FILE: &str = "--kafka-ssl-key-password-file";

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Plaintext => "plaintext",
            Protocol::Ssl => "ssl",
            Protocol::SaslPlaintext => "sasl_plaintext",
            Protocol::SaslSsl => "sasl_ssl",
        }
    }
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
            Mechanism::OauthBearer => "OAUTHBEARER",
        }
    }
}

impl SecurityOptions {
    /// Adds librdkafka's settings and the problems of these options to the operator's properties.
    pub(super) fn add_to(&self, properties: &mut Properties) {
        let problems = self.combination_problems(properties);
        properties.problems.extend(problems);
        let password = |flag, file: &Option<PathBuf>| file.as_ref().map(|file| password(flag, file));
        let (sasl_password, key_password) = (
            password(PASSWORD_FILE, &self.kafka_sasl_password_file),
            password(KEY_PASSWORD_FILE, &self.kafka_ssl_key_password_file),
        );
        // The content, not the path: a client that is created while a file is replaced must not have a part of it.
        let pem = |flag, file: &Option<PathBuf>| file.as_ref().map(|file| pem(flag, file));
        let given = [
            (
                PROTOCOL,
                "security.protocol",
                self.kafka_security_protocol.map(|protocol| Ok(protocol.name().to_owned())),
            ),
            (MECHANISM, "sasl.mechanism", self.kafka_sasl_mechanism.map(|mechanism| Ok(mechanism.name().to_owned()))),
            (USERNAME, "sasl.username", self.kafka_sasl_username.clone().map(Ok)),
            (PASSWORD_FILE, "sasl.password", sasl_password),
            (KEY_PASSWORD_FILE, "ssl.key.password", key_password),
            (CA_FILE, "ssl.ca.pem", pem(CA_FILE, &self.kafka_ssl_ca_file)),
            (CERT_FILE, "ssl.certificate.pem", pem(CERT_FILE, &self.kafka_ssl_cert_file)),
            (KEY_FILE, "ssl.key.pem", pem(KEY_FILE, &self.kafka_ssl_key_file)),
        ];
        for (flag, key, value) in given {
            let location = key.strip_suffix(".pem").map(|name| format!("{name}.location"));
            let twice =
                [Some(key), location.as_deref()].into_iter().flatten().find(|key| properties.get(key).is_some());
            match (value, twice) {
                (None, _) => {}
                (Some(_), Some(key)) => {
                    properties
                        .problems
                        .push(format!("{flag}: --kafka-properties or its file set {key} too: remove one"));
                }
                (Some(Ok(value)), None) => properties.entries.push((key.to_owned(), value)),
                (Some(Err(problem)), None) => properties.problems.push(problem),
            }
        }
    }

    /// Returns the problems of options that need or exclude each other.
    fn combination_problems(&self, properties: &Properties) -> Vec<String> {
        let protocol = self.kafka_security_protocol.map(Protocol::name).or_else(|| properties.get("security.protocol"));
        let protocol = protocol.unwrap_or("plaintext").to_ascii_lowercase();
        let (logs_in, has_tls) = (protocol.starts_with("sasl"), protocol.ends_with("ssl"));
        let mut problems = Vec::new();
        for (flag, given, used, fix) in [
            (MECHANISM, self.kafka_sasl_mechanism.is_some(), logs_in, "sasl_ssl or sasl_plaintext"),
            (USERNAME, self.kafka_sasl_username.is_some(), logs_in, "sasl_ssl or sasl_plaintext"),
            (PASSWORD_FILE, self.kafka_sasl_password_file.is_some(), logs_in, "sasl_ssl or sasl_plaintext"),
            (CA_FILE, self.kafka_ssl_ca_file.is_some(), has_tls, "ssl or sasl_ssl"),
            (CERT_FILE, self.kafka_ssl_cert_file.is_some(), has_tls, "ssl or sasl_ssl"),
            (KEY_FILE, self.kafka_ssl_key_file.is_some(), has_tls, "ssl or sasl_ssl"),
            (KEY_PASSWORD_FILE, self.kafka_ssl_key_password_file.is_some(), has_tls, "ssl or sasl_ssl"),
        ] {
            if given && !used {
                problems.push(format!("{flag} has no effect with {PROTOCOL} {protocol}: set {PROTOCOL} to {fix}"));
            }
        }
        let missing = |option: bool, key| !option && properties.get(key).is_none();
        if logs_in
            && self.kafka_security_protocol.is_some()
            && missing(self.kafka_sasl_mechanism.is_some(), "sasl.mechanism")
        {
            problems.push(format!(
                "{PROTOCOL} {protocol} needs {MECHANISM}: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
            ));
        }
        if let Some(mechanism) = self.kafka_sasl_mechanism.filter(|_| logs_in) {
            let name = mechanism.name();
            for (flag, key, given) in [
                (USERNAME, "sasl.username", self.kafka_sasl_username.is_some()),
                (PASSWORD_FILE, "sasl.password", self.kafka_sasl_password_file.is_some()),
            ] {
                if mechanism == Mechanism::OauthBearer {
                    problems.extend(given.then(|| format!("{flag} has no effect with {MECHANISM} {name}: remove it")));
                } else if missing(given, key) {
                    problems.push(format!("{MECHANISM} {name} needs {flag}"));
                }
            }
        }
        let mechanism = self.kafka_sasl_mechanism.map(Mechanism::name).or_else(|| properties.get("sasl.mechanism"));
        let is_setting = self.kafka_sasl_mechanism.is_some();
        problems.extend(self.oauth.combination_problems(mechanism.unwrap_or_default(), is_setting));
        for (flag, given, other, missing) in [
            (
                KEY_PASSWORD_FILE,
                &self.kafka_ssl_key_password_file,
                KEY_FILE,
                missing(self.kafka_ssl_key_file.is_some(), "ssl.key.location"),
            ),
            (
                CERT_FILE,
                &self.kafka_ssl_cert_file,
                KEY_FILE,
                missing(self.kafka_ssl_key_file.is_some(), "ssl.key.location"),
            ),
            (
                KEY_FILE,
                &self.kafka_ssl_key_file,
                CERT_FILE,
                missing(self.kafka_ssl_cert_file.is_some(), "ssl.certificate.location"),
            ),
        ] {
            if given.is_some() && missing {
                problems
                    .push(format!("{flag} needs {other}: a certificate, its key and its passphrase belong together"));
            }
        }
        problems
    }

    /// Returns the files, each with its flag.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let files = [
            (PASSWORD_FILE, &self.kafka_sasl_password_file),
            (CA_FILE, &self.kafka_ssl_ca_file),
            (CERT_FILE, &self.kafka_ssl_cert_file),
            (KEY_FILE, &self.kafka_ssl_key_file),
            (KEY_PASSWORD_FILE, &self.kafka_ssl_key_password_file),
        ];
        files.into_iter().filter_map(|(flag, file)| Some((flag, file.as_ref()?)))
    }

    /// Returns the flag of the setting that librdkafka's text of a rejection names.
    pub(super) fn flag_of(&self, reason: &str) -> &'static str {
        let flags = [
            // OpenSSL's text does not say that the passphrase is wrong.
            ("ssl.key.", KEY_PASSWORD_FILE, &self.kafka_ssl_key_password_file),
            ("ssl.ca.", CA_FILE, &self.kafka_ssl_ca_file),
            ("ssl.certificate.", CERT_FILE, &self.kafka_ssl_cert_file),
            ("ssl.key.", KEY_FILE, &self.kafka_ssl_key_file),
            ("rivate key", KEY_FILE, &self.kafka_ssl_key_file),
        ];
        let named = flags.into_iter().find(|(key, _, file)| file.is_some() && reason.contains(key));
        named.map_or("--kafka-properties", |(_, flag, _)| flag)
    }
}

/// Returns the problem of these properties in a build without OpenSSL, if they need it. librdkafka would report it only
/// when it creates a client, and not by what to do.
pub(super) fn build_problem(properties: &Properties) -> Option<String> {
    let value = |key| properties.get(key).map(str::to_ascii_uppercase);
    let protocol = value("security.protocol").filter(|protocol| protocol.ends_with("SSL"));
    let login = || value("sasl.mechanism").filter(|mechanism| mechanism != "PLAIN");
    let (flag, value) = protocol.map(|protocol| (PROTOCOL, protocol)).or_else(|| Some((MECHANISM, login()?)))?;
    Some(format!("{flag} {value} needs OpenSSL, which this build is without: {WITH_OPENSSL}"))
}

fn password(flag: &'static str, file: &Path) -> Result<String, String> {
    read_password(file).map_err(|error| chain(&SettingError::of_file(flag)(error)))
}

/// Returns the content of a file in PEM.
fn pem(flag: &'static str, file: &Path) -> Result<String, String> {
    let text = read_text(file).map_err(|error| chain(&SettingError::of_file(flag)(error)))?;
    if text.contains("-----BEGIN ") {
        return Ok(text);
    }
    let shown = file.display();
    Err(format!("{flag}: {shown}: it is not PEM, which has a line -----BEGIN …-----: convert the file"))
}

#[cfg(test)]
mod tests;
