//! Tests the settings that the clients of Kafka are created with.

use super::*;

fn with(properties: &str) -> KafkaOptions {
    KafkaOptions {
        kafka_brokers: "127.0.0.1:9092".into(),
        kafka_topic: "msgs".into(),
        hints_topic: None,
        kafka_properties: properties.into(),
        kafka_properties_file: None,
        security: SecurityOptions::default(),
        accepted: AcceptedProperties::default(),
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
fn properties_of_a_changed_file_are_not_in_force_by_themselves() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("properties");
    std::fs::write(&file, "client.id=one,two").expect("it is written");
    let options = KafkaOptions { kafka_properties_file: Some(file.clone()), ..with("") };
    assert_eq!(options.problems(), Vec::<String>::new());
    let id = || options.client_id(ClientPurpose::Consumer);
    assert_eq!(id(), "one,two-consumer");
    std::fs::write(&file, "client.id=three").expect("it is written");
    assert_eq!(id(), "one,two-consumer", "no client was created with the changed file");
    options.accept(options.properties().entries);
    assert_eq!(id(), "three-consumer");
    std::fs::remove_file(&file).expect("it is removed");
    assert_eq!((id().as_str(), options.problems().len()), ("three-consumer", 1));
}

#[test]
fn debug_of_the_options_shows_no_password() {
    let options = with("sasl.password=hunter2");
    let config = options.client_config(ClientPurpose::Producer);
    assert!(!format!("{options:?} {config:?}").contains("hunter"), "{options:?} {config:?}");
    let config = with("ssl.key.pem=hunter2").client_config(ClientPurpose::Producer);
    assert!(!format!("{config:?}").contains("hunter"), "{config:?}");
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
        let options = KafkaOptions { accepted: AcceptedProperties::default(), ..options.clone() };
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
