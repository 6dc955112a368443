//! Tests the settings of TLS and logins.

use super::*;
use crate::kafka::properties::Source;

/// The properties and problems of these options, with files that exist.
fn added(options: &SecurityOptions, text: &str) -> Properties {
    let mut properties = Properties::default();
    properties.read(text, Source::Setting);
    options.add_to(&mut properties);
    properties
}

fn login(protocol: Protocol, folder: &Path) -> SecurityOptions {
    let password = folder.join("password");
    std::fs::write(&password, " hunter2,=\n").expect("it is written");
    SecurityOptions {
        kafka_security_protocol: Some(protocol),
        kafka_sasl_mechanism: Some(Mechanism::ScramSha512),
        kafka_sasl_username: Some("app".into()),
        kafka_sasl_password_file: Some(password),
        ..SecurityOptions::default()
    }
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("msg-kafka-security-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("it is created");
    folder
}

#[test]
fn options_become_librdkafkas_settings() {
    let folder = folder("options");
    let found = added(&login(Protocol::SaslSsl, &folder), "linger.ms=5");
    assert_eq!(found.problems, Vec::<String>::new());
    for (key, value) in [
        ("security.protocol", "sasl_ssl"),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "app"),
        ("sasl.password", " hunter2,="),
        ("linger.ms", "5"),
    ] {
        assert_eq!(found.get(key), Some(value), "{key}");
    }
    std::fs::remove_dir_all(folder).expect("it is removed");
}

#[test]
fn build_without_openssl_rejects_tls_and_scram() {
    for (text, expected) in [
        ("security.protocol=SASL_SSL,sasl.mechanism=PLAIN", Some("--kafka-security-protocol SASL_SSL")),
        ("security.protocol=ssl", Some("--kafka-security-protocol SSL")),
        ("security.protocol=sasl_plaintext,sasl.mechanism=SCRAM-SHA-256", Some("--kafka-sasl-mechanism SCRAM-SHA-256")),
        ("security.protocol=sasl_plaintext,sasl.mechanism=OAUTHBEARER", Some("--kafka-sasl-mechanism OAUTHBEARER")),
        ("security.protocol=sasl_plaintext,sasl.mechanism=PLAIN", None),
        ("security.protocol=plaintext", None),
        ("", None),
    ] {
        let mut properties = Properties::default();
        for entry in text.split(',') {
            let entry = entry.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            properties.entries.extend(entry);
        }
        let found = build_problem(&properties);
        assert_eq!(found.is_some(), expected.is_some(), "{text}: {found:?}");
        if let (Some(found), Some(expected)) = (found, expected) {
            assert!(found.starts_with(expected) && found.contains("kafka-tls"), "{text}: {found}");
        }
    }
}

#[test]
#[cfg(feature = "kafka-tls")]
fn impossible_combinations_are_rejected_with_what_to_do() {
    let folder = folder("combinations");
    let pem = folder.join("pem");
    std::fs::write(&pem, "-----BEGIN CERTIFICATE-----").expect("it is written");
    let other = folder.join("other");
    std::fs::write(&other, "binary").expect("it is written");
    let whole = || login(Protocol::SaslSsl, &folder);
    for (options, text, expected) in [
        (
            SecurityOptions { kafka_security_protocol: None, ..whole() },
            "",
            &["--kafka-sasl-mechanism has no effect", "--kafka-sasl-username has", "--kafka-sasl-password-file has"][..],
        ),
        (SecurityOptions { kafka_security_protocol: None, ..whole() }, "security.protocol=SASL_SSL", &[]),
        (
            SecurityOptions { kafka_sasl_mechanism: None, ..whole() },
            "",
            &["sasl_ssl needs --kafka-sasl-mechanism: PLAIN"],
        ),
        (
            SecurityOptions { kafka_sasl_password_file: None, ..whole() },
            "",
            &["SCRAM-SHA-512 needs --kafka-sasl-password-file"],
        ),
        (SecurityOptions { kafka_sasl_password_file: None, ..whole() }, "sasl.password=x", &[]),
        (
            SecurityOptions { kafka_sasl_mechanism: Some(Mechanism::OauthBearer), ..whole() },
            "",
            &[
                "--kafka-sasl-username has no effect with --kafka-sasl-mechanism OAUTHBEARER",
                "--kafka-sasl-password-file has",
                "OAUTHBEARER needs --kafka-oauth-token-file",
            ],
        ),
        (SecurityOptions { kafka_sasl_username: None, ..whole() }, "", &["SCRAM-SHA-512 needs --kafka-sasl-username"]),
        (whole(), "sasl.username=b", &["--kafka-sasl-username: --kafka-properties or its file set sasl.username too"]),
        (
            SecurityOptions { kafka_ssl_ca_file: Some(pem.clone()), ..login(Protocol::SaslPlaintext, &folder) },
            "",
            &["--kafka-ssl-ca-file has no effect with --kafka-security-protocol sasl_plaintext: set"],
        ),
        (
            SecurityOptions { kafka_ssl_cert_file: Some(pem.clone()), ..whole() },
            "",
            &["--kafka-ssl-cert-file needs --kafka-ssl-key-file"],
        ),
        (
            SecurityOptions { kafka_ssl_key_file: Some(pem), ..whole() },
            "",
            &["--kafka-ssl-key-file needs --kafka-ssl-cert-file"],
        ),
        (
            SecurityOptions { kafka_ssl_key_password_file: Some(folder.join("password")), ..whole() },
            "",
            &["--kafka-ssl-key-password-file needs --kafka-ssl-key-file"],
        ),
        (SecurityOptions { kafka_ssl_ca_file: Some(other), ..whole() }, "", &["--kafka-ssl-ca-file: "]),
        (
            SecurityOptions { kafka_sasl_password_file: Some(folder.join("none")), ..whole() },
            "",
            &["--kafka-sasl-password-file: cannot read"],
        ),
    ] {
        let found = added(&options, text).problems;
        assert_eq!(found.len(), expected.len(), "{options:?}: {found:?}");
        for text in expected {
            assert!(found.iter().any(|problem| problem.contains(text)), "{text}: {found:?}");
        }
        assert!(!found.iter().any(|problem| problem.contains("hunter2")), "{found:?}");
    }
    std::fs::remove_dir_all(folder).expect("it is removed");
}
