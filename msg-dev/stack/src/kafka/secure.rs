//! Owns the listeners with TLS: one where users log in with a password, and one where a certificate names the user.

use std::fs;
use std::path::Path;

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

/// Writes the certificates to `node`, and returns the settings of the listeners. `plain` is the login module with the
/// passwords of PLAIN.
pub(super) fn settings(tls: &BrokerTls, node: &Path, plain: &str) -> Result<Vec<(String, String)>, StackError> {
    let (store, trusted) = (node.join("broker.pem"), node.join("clients.pem"));
    fs::write(&store, format!("{}{}", tls.key, tls.certificate)).map_err(StackError::io("write", &store))?;
    fs::write(&trusted, &tls.client_ca).map_err(StackError::io("write", &trusted))?;
    let of = |listener: &str, key: &str| format!("listener.name.{}.{key}", listener.to_ascii_lowercase());
    let mut settings = Vec::new();
    for listener in [LOGIN, CERTIFICATE] {
        settings.extend([
            (of(listener, "ssl.keystore.type"), "PEM".to_owned()),
            (of(listener, "ssl.keystore.location"), store.display().to_string()),
            (of(listener, "ssl.truststore.type"), "PEM".to_owned()),
            (of(listener, "ssl.truststore.location"), trusted.display().to_string()),
        ]);
    }
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    settings.extend([
        (of(CERTIFICATE, "ssl.client.auth"), "required".to_owned()),
        (of(LOGIN, "sasl.enabled.mechanisms"), format!("PLAIN,{}", SCRAM.join(","))),
        (of(LOGIN, "plain.sasl.jaas.config"), plain.to_owned()),
        (of(LOGIN, "scram-sha-256.sasl.jaas.config"), scram.to_owned()),
        (of(LOGIN, "scram-sha-512.sasl.jaas.config"), scram.to_owned()),
        ("ssl.principal.mapping.rules".to_owned(), "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT".to_owned()),
    ]);
    Ok(settings)
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
