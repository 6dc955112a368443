//! Owns the listeners with TLS: those where users log in with a password or a token, and one where a certificate names the user.

use std::fs;
use std::path::{Path, PathBuf};

use super::settings::requires_login;
use super::{Broker, Kafka};
use crate::error::StackError;
use crate::ports::Port;

/// The listener where users log in over TLS.
pub(super) const LOGIN: &str = "LOGIN";
/// The listener where a client's certificate names the user.
pub(super) const CERTIFICATE: &str = "CERTIFICATE";

/// The mechanisms whose passwords the cluster keeps in its metadata.
const SCRAM: [&str; 2] = ["SCRAM-SHA-256", "SCRAM-SHA-512"];

/// The certificates of the listeners with TLS, in PEM.
#[derive(Debug, Clone)]
pub struct BrokerTls {
    /// The certificate of every broker.
    pub certificate: String,
    /// The private key of the certificate.
    pub key: String,
    /// The CA of the clients' certificates. A certificate's common name is the user.
    pub client_ca: String,
}

/// The issuer of the tokens that users log in with.
#[derive(Debug, Clone)]
pub struct TokenIssuer {
    /// The public keys of the issuer, as a JWK set.
    pub keys: String,
    /// The claim `iss` of the tokens.
    pub name: String,
    /// The claim `aud` of the tokens.
    pub audience: String,
}

/// The ports of the listeners with TLS.
#[derive(Debug)]
pub(super) struct SecurePorts {
    pub(super) login: Port,
    pub(super) certificate: Port,
}

impl SecurePorts {
    pub(super) fn free() -> std::io::Result<SecurePorts> {
        Ok(SecurePorts { login: Port::free()?, certificate: Port::free()? })
    }

    /// Returns the listeners, each with a comma before it.
    pub(super) fn listeners(&self) -> String {
        format!(",{LOGIN}://{},{CERTIFICATE}://{}", self.login, self.certificate)
    }
}

/// Writes the certificates to `node`, and returns the settings of the broker's listeners with TLS. `plain` is the login
/// module with the passwords of PLAIN.
pub(super) fn settings(
    tls: &BrokerTls,
    broker: &Broker,
    node: &Path,
    plain: &str,
) -> Result<Vec<(String, String)>, StackError> {
    let (store, trusted) = (node.join("broker.pem"), node.join("clients.pem"));
    fs::write(&store, format!("{}{}", tls.key, tls.certificate)).map_err(StackError::io("write", &store))?;
    fs::write(&trusted, &tls.client_ca).map_err(StackError::io("write", &trusted))?;
    let of = |listener: &str, key: &str| format!("listener.name.{}.{key}", listener.to_ascii_lowercase());
    let networks = broker.legs.iter().filter(|leg| requires_login(broker, leg));
    let logins: Vec<&str> = networks.map(|leg| leg.network.as_str()).chain([LOGIN]).collect();
    let mut settings = Vec::new();
    for listener in logins.iter().copied().chain([CERTIFICATE]) {
        settings.extend([
            (of(listener, "ssl.keystore.type"), "PEM".to_owned()),
            (of(listener, "ssl.keystore.location"), store.display().to_string()),
            (of(listener, "ssl.truststore.type"), "PEM".to_owned()),
            (of(listener, "ssl.truststore.location"), trusted.display().to_string()),
        ]);
    }
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    for listener in logins {
        settings.extend([
            (of(listener, "sasl.enabled.mechanisms"), format!("PLAIN,{}", SCRAM.join(","))),
            (of(listener, "scram-sha-256.sasl.jaas.config"), scram.to_owned()),
            (of(listener, "scram-sha-512.sasl.jaas.config"), scram.to_owned()),
        ]);
    }
    settings.extend([
        (of(CERTIFICATE, "ssl.client.auth"), "required".to_owned()),
        (of(LOGIN, "plain.sasl.jaas.config"), plain.to_owned()),
        ("ssl.principal.mapping.rules".to_owned(), "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT".to_owned()),
    ]);
    Ok(settings)
}

/// Writes the issuer's keys to `node`, and returns the settings of logins with tokens. The claim `sub` names the user.
pub(super) fn token_settings(issuer: &TokenIssuer, node: &Path) -> Result<Vec<(String, String)>, StackError> {
    let keys = keys_file(node);
    fs::write(&keys, &issuer.keys).map_err(StackError::io("write", &keys))?;
    let module = "org.apache.kafka.common.security.oauthbearer";
    let of = |key: &str| format!("listener.name.{}.{key}", LOGIN.to_ascii_lowercase());
    let settings = [
        (of("sasl.enabled.mechanisms"), format!("PLAIN,{},OAUTHBEARER", SCRAM.join(","))),
        (of("oauthbearer.sasl.jaas.config"), format!("{module}.OAuthBearerLoginModule required;")),
        (of("oauthbearer.sasl.server.callback.handler.class"), format!("{module}.OAuthBearerValidatorCallbackHandler")),
        ("sasl.oauthbearer.jwks.endpoint.url".to_owned(), keys_url(node)),
        ("sasl.oauthbearer.expected.issuer".to_owned(), issuer.name.clone()),
        ("sasl.oauthbearer.expected.audience".to_owned(), issuer.audience.clone()),
        // By default, a token is accepted for 30 s after it has expired.
        ("sasl.oauthbearer.clock.skew.seconds".to_owned(), "0".to_owned()),
    ];
    Ok(settings.to_vec())
}

/// Returns Java's properties that allow the broker to read the issuer's keys.
pub(super) fn token_properties(node: &Path) -> [String; 2] {
    let allowed = "-Dorg.apache.kafka.sasl.oauthbearer.allowed";
    [format!("{allowed}.urls={}", keys_url(node)), format!("{allowed}.files={}", keys_file(node).display())]
}

fn keys_file(node: &Path) -> PathBuf {
    node.join("issuer.json")
}

fn keys_url(node: &Path) -> String {
    // In Java's own form: it compares the URLs as texts.
    format!("file:{}", keys_file(node).display())
}

/// Returns the arguments with which the format of a data folder adds the users' passwords.
pub(super) fn format_arguments(users: &[(String, String)]) -> Vec<String> {
    let one = |(user, password): &(String, String)| {
        SCRAM.map(|mechanism| format!("{mechanism}=[name={user},password={password}]"))
    };
    users.iter().flat_map(one).flat_map(|credential| ["--add-scram".to_owned(), credential]).collect()
}

impl Kafka {
    /// The value of `bootstrap.servers` for a client that logs in over TLS.
    pub fn bootstrap_with_login(&self) -> String {
        self.secure(|ports| &ports.login)
    }

    /// The value of `bootstrap.servers` for a client with a certificate.
    pub fn bootstrap_with_certificate(&self) -> String {
        self.secure(|ports| &ports.certificate)
    }

    /// Sets the password of a user for SCRAM. Connections that are open stay.
    pub async fn set_scram_password(&self, user: &str, password: &str) -> Result<(), StackError> {
        // Kafka rejects a request that changes both.
        for mechanism in SCRAM {
            let change = format!("{mechanism}=[password={password}]");
            let arguments = ["--bootstrap-server", self.bootstrap(), "--alter", "--entity-type", "users"];
            let user = ["--entity-name", user, "--add-config", &change];
            self.tool("kafka.admin.ConfigCommand", &[&arguments[..], &user[..]].concat()).await?;
        }
        Ok(())
    }

    fn secure(&self, port: impl Fn(&SecurePorts) -> &Port) -> String {
        let brokers = self.cluster.iter().flat_map(|cluster| &cluster.brokers);
        let ports = brokers.filter_map(|Broker { secure, .. }| secure.as_ref().map(|ports| port(ports).to_string()));
        ports.collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use msg_fetch::KafkaHome;

    use super::*;
    use crate::kafka::{BETWEEN_BROKERS, ClusterOptions};

    /// Returns the settings of the only broker of a cluster with a network of users and one of brokers.
    fn broker_settings(tls: Option<BrokerTls>) -> HashMap<String, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = ClusterOptions {
            networks: vec!["NEAR".to_owned(), BETWEEN_BROKERS.to_owned()],
            users: vec!["app".to_owned()],
            tls,
            ..ClusterOptions::default()
        };
        let home = KafkaHome { java: "java".into(), jars: "jars".into() };
        Kafka::reserve(home, folder.path(), folder.path(), 1, &options).expect("own folder");
        let text = fs::read_to_string(folder.path().join("node-1/server.properties")).expect("written just before");
        text.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect()
    }

    #[test]
    fn networks_of_users_have_tls_if_there_are_certificates() {
        let tls = BrokerTls { certificate: "C".to_owned(), key: "K".to_owned(), client_ca: "A".to_owned() };
        for (tls, protocol) in [(None, "SASL_PLAINTEXT"), (Some(tls), "SASL_SSL")] {
            let has_tls = tls.is_some();
            let found = broker_settings(tls);
            let map: HashMap<_, _> =
                found["listener.security.protocol.map"].split(',').filter_map(|entry| entry.split_once(':')).collect();
            assert_eq!((map["NEAR"], map[BETWEEN_BROKERS]), (protocol, "PLAINTEXT"));
            for key in ["ssl.keystore.location", "scram-sha-512.sasl.jaas.config"] {
                assert_eq!(found.contains_key(&format!("listener.name.near.{key}")), has_tls, "{key}");
            }
            assert!(found.contains_key("listener.name.near.plain.sasl.jaas.config"));
        }
    }
}
