//! Mistakes that people make in settings. Each is rejected at startup with exit code 64 and an error that names the
//! setting, the part of it and the reason, and contains no secret.

use std::collections::HashSet;
use std::time::Duration;

use msg_stack::service::find_binary;
use tokio::net::TcpListener;
use tokio::process::Command;

/// Part of every secret value. It must be in no output.
const SECRET: &str = "hunter2";

/// A program, its settings, the setting that the error has to name, and the reason.
struct Case {
    gateway: bool,
    settings: Vec<(&'static str, String)>,
    named: &'static str,
    reason: &'static str,
}

fn case(gateway: bool, name: &'static str, value: &str, named: &'static str, reason: &'static str) -> Case {
    Case { gateway, settings: vec![(name, value.to_owned())], named, reason }
}

async fn run_program(gateway: bool, arguments: &[&str], settings: &[(&str, String)]) -> (Option<i32>, String) {
    let mut command = Command::new(find_binary(if gateway { "msg-gateway" } else { "msg-transfer" }).unwrap());
    command.args(arguments).env_clear().env("ADMIN_LISTEN", "127.0.0.1:0").env("LISTEN", "127.0.0.1:0");
    command.env("KAFKA_BROKERS", "127.0.0.1:1");
    // The gateway needs no database, and without one checks none of its settings.
    if !gateway || settings.iter().any(|(name, _)| name.starts_with("DATABASE_") && name.ends_with("_TIMEOUT")) {
        command.env("DATABASE_URL", format!("postgres://app:{SECRET}@127.0.0.1:1/x"));
    }
    command.envs(settings.iter().map(|(name, value)| (*name, value.as_str()))).kill_on_drop(true);
    match tokio::time::timeout(Duration::from_secs(20), command.output()).await {
        Ok(output) => {
            let output = output.unwrap();
            let text = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8_lossy(&text).into_owned())
        }
        Err(_) => (None, "the program keeps running".to_owned()),
    }
}

/// Cases for both programs: variable, value, text that names the setting, reason.
const BOTH: &[(&str, &str, &str, &str)] = &[
    ("KAFKA_BROKERS", "http://kafka:9092", "--kafka-brokers", "http:// is not a protocol"),
    ("KAFKA_BROKERS", "tcp://kafka:9092", "--kafka-brokers", "tcp:// is not a protocol"),
    ("KAFKA_BROKERS", "kafka:0", "--kafka-brokers", "1 to 65535"),
    ("KAFKA_BROKERS", "kafka:70000", "--kafka-brokers", "1 to 65535"),
    ("KAFKA_BROKERS", "kafka:", "--kafka-brokers", "1 to 65535"),
    ("KAFKA_BROKERS", ":9092", "--kafka-brokers", "no host"),
    ("KAFKA_BROKERS", "a:9092,,b:9092", "--kafka-brokers: entry 2", "no host"),
    ("KAFKA_BROKERS", "a:9092,", "--kafka-brokers: entry 2", "no host"),
    ("KAFKA_BROKERS", "a:9092;b:9092", "--kafka-brokers", "host"),
    ("KAFKA_BROKERS", "a:9092, b:9092", "--kafka-brokers: entry 2", "host"),
    ("KAFKA_BROKERS", "kafka:9092 ", "--kafka-brokers", "1 to 65535"),
    ("KAFKA_BROKERS", "kafka:9092\r", "--kafka-brokers", "1 to 65535"),
    ("KAFKA_BROKERS", "\"kafka:9092\"", "--kafka-brokers", "host"),
    ("KAFKA_BROKERS", "'kafka:9092'", "--kafka-brokers", "host"),
    ("KAFKA_BROKERS", "::1:9092", "--kafka-brokers", "brackets"),
    ("KAFKA_BROKERS", "sasl.password=hunter2", "--kafka-brokers", "host"),
    ("KAFKA_TOPIC", "a b", "--kafka-topic", "1 to 249"),
    ("KAFKA_TOPIC", "msgs\r", "--kafka-topic", "1 to 249"),
    ("KAFKA_TOPIC", "..", "--kafka-topic", "1 to 249"),
    ("KAFKA_TOPIC", "nachrichtenübersicht", "--kafka-topic", "1 to 249"),
    ("HINTS_TOPIC", "msgs", "--hints-topic", "another topic"),
    ("HINTS_TOPIC", "a/b", "--hints-topic", "1 to 249"),
    ("KAFKA_PROPERTIES", "sasl.password=hunter2,hunter2", "--kafka-properties: entry 2", "--kafka-properties-file"),
    ("KAFKA_PROPERTIES", "sasl.password=se,hunter2=cret", "--kafka-properties: entry 2", "--kafka-properties-file"),
    ("KAFKA_PROPERTIES", "sasl.pasword=hunter2", "sasl.pasword", "has no such setting"),
    ("KAFKA_PROPERTIES", "hunter2", "--kafka-properties: entry 1", "not key=value"),
    ("KAFKA_PROPERTIES", "\"sasl.username=x\"", "--kafka-properties: entry 1", "not key=value"),
    ("KAFKA_PROPERTIES", "sasl.password='hunter2'", "sasl.password", "quotes"),
    ("KAFKA_PROPERTIES", "acks=1", "acks", "set by the service"),
    ("KAFKA_PROPERTIES", "bootstrap.servers=a:1", "bootstrap.servers", "set by the service"),
    ("KAFKA_PROPERTIES", "enable.auto.commit=true", "enable.auto.commit", "set by the service"),
    ("KAFKA_PROPERTIES", "auto.commit.enable=true", "auto.commit.enable", "set by the service"),
    ("KAFKA_PROPERTIES", "test.mock.num.brokers=1", "test.mock.num.brokers", "set by the service"),
    ("KAFKA_PROPERTIES", "compression.type=best", "compression.type", "best"),
    ("KAFKA_PROPERTIES", "linger.ms=soon", "linger.ms", "linger.ms"),
    ("KAFKA_PROPERTIES", "linger.ms=-1", "linger.ms", "range"),
    ("KAFKA_PROPERTIES", "linger.ms=1,linger.ms=2", "linger.ms", "twice"),
    ("KAFKA_PROPERTIES", "client.id=", "client.id", "no value"),
    ("KAFKA_PROPERTIES", "security.protocol=tls", "security.protocol", "tls"),
    ("KAFKA_PROPERTIES", "security.protocol=sasl_plaintext", "--kafka-properties", "GSSAPI"),
    (
        "KAFKA_PROPERTIES",
        "security.protocol=sasl_plaintext,sasl.mechanism=NONE,sasl.username=x,sasl.password=hunter2",
        "--kafka-properties",
        "NONE",
    ),
    ("KAFKA_PROPERTIES", "sasl.jaas.config=x required password=\"hunter2\";", "sasl.jaas.config", "librdkafka"),
    ("KAFKA_PROPERTIES_FILE", "/nowhere/at/all", "--kafka-properties-file", "No such file"),
    ("KAFKA_PROPERTIES_FILE", "/tmp", "--kafka-properties-file", "directory"),
    ("DATABASE_URL", "127.0.0.1/msg", "--database-url", "not a URL"),
    ("DATABASE_URL", "app:hunter2@127.0.0.1/msg", "--database-url", "not a URL"),
    ("DATABASE_URL", "http://app:hunter2@127.0.0.1/msg", "--database-url", "not a URL"),
    ("DATABASE_URL", "mysql://app:hunter2@127.0.0.1/msg", "--database-url", "not a URL"),
    ("DATABASE_URL", "\"postgres://app:hunter2@127.0.0.1/msg\"", "--database-url", "not a URL"),
    ("DATABASE_URL", "postgres://app:hunter2@127.0.0.1:70000/msg", "--database-url", "port"),
    ("DATABASE_URL", "postgres://app:hunter2@127.0.0.1:0/msg", "--database-url", "port"),
    ("DATABASE_URL", "postgres://app:hunter2@127.0.0.1:many/msg", "--database-url", "port"),
    ("DATABASE_URL", "postgres://app:hunter2@127.0.0.1/msg?sslmode=require", "--database-url", "TLS"),
    ("DATABASE_URL", "postgres://app:hunter2@127.0.0.1/msg?sslmode=maybe", "--database-url", "sslmode"),
    ("DATABASE_URL", "postgres://app:hunter2@h/msg?sslmode=prefer", "--database-url", "write sslmode=verify-full"),
    ("DATABASE_URL", "host=h password=hunter2 sslmode=require", "--database-url", "would accept every certificate"),
    ("DATABASE_URL", "postgres://a:hunter2@h/x?sslrootcert=/nowhere/ca", "--database-url: sslrootcert", "/nowhere/ca"),
    ("DATABASE_URL", "postgres://app:x@127.0.0.1/msg?hunter2=1", "--database-url", "option"),
    ("DATABASE_URL", "postgres:///msg", "--database-url", "no host"),
    ("DATABASE_URL", "host=127.0.0.1 password=x hunter2=1", "--database-url", "option"),
    ("DATABASE_URL_FILE", "/nowhere/at/all", "--database-url-file", ""),
    ("DATABASE_CONNECT_TIMEOUT", "5", "--database-connect-timeout", "unit"),
    ("DATABASE_CONNECT_TIMEOUT", "0s", "--database-connect-timeout", "100ms to 1h"),
    ("DATABASE_CONNECT_TIMEOUT", "-1s", "--database-connect-timeout", "number"),
    ("DATABASE_STATEMENT_TIMEOUT", "0", "--database-statement-timeout", "100ms to"),
    ("DATABASE_STATEMENT_TIMEOUT", "30days", "--database-statement-timeout", "100ms to"),
    ("ADMIN_LISTEN", "9464", "--admin-listen", "address"),
    ("ADMIN_LISTEN", ":9464", "--admin-listen", "address"),
    ("ADMIN_LISTEN", "localhost:9464", "--admin-listen", "address"),
    ("ADMIN_LISTEN", "http://127.0.0.1:9464", "--admin-listen", "address"),
    ("ADMIN_LISTEN", "127.0.0.1:70000", "--admin-listen", "address"),
    ("ADMIN_LISTEN", "203.0.113.1:9464", "--admin-listen", "no interface"),
    ("ADMIN_LISTEN", "postgres://app:hunter2@127.0.0.1/msg", "--admin-listen", "address"),
    ("LOG_FORMAT", "JSON", "--log-format", "json"),
    ("LOG_FORMAT", "\"json\"", "--log-format", "possible values"),
    ("LOG_LEVEL", "warning", "--log-level", "no level"),
    ("LOG_LEVEL", "verbose", "--log-level", "no level"),
    ("LOG_LEVEL", "info,msg_transfer=chatty", "--log-level", "msg_transfer=debug"),
    ("DRAIN_TIMEOUT", "30 seconds please", "--drain-timeout", "unit"),
    ("DRAIN_TIMEOUT", "30", "--drain-timeout", "unit"),
    ("DRAIN_TIMEOUT", "9999999999999years", "--drain-timeout", ""),
    ("DRAIN_TIMEOUT", "500years", "--drain-timeout", "100 years"),
    ("DRAIN_TIMEOUT", "2h", "--drain-timeout", "1h"),
    ("MAX_INFLIGHT_BYTES", "1g", "--max-inflight-bytes", "GiB"),
    ("MAX_INFLIGHT_BYTES", "64MB", "--max-inflight-bytes", "MiB"),
    ("MAX_INFLIGHT_BYTES", "64M", "--max-inflight-bytes", "MiB"),
    ("MAX_INFLIGHT_BYTES", "0", "--max-inflight-bytes", "at least"),
    ("MAX_INFLIGHT_BYTES", "-1", "--max-inflight-bytes", "number"),
    ("MAX_INFLIGHT_BYTES", "1.5GiB", "--max-inflight-bytes", "whole number"),
    ("MAX_INFLIGHT_BYTES", "99999999999999999999", "--max-inflight-bytes", "number"),
    ("MAX_INFLIGHT_BYTES", "17179869184GiB", "--max-inflight-bytes", "too large"),
    ("MAX_INFLIGHT_BYTES", "5000GiB", "--max-inflight-bytes", "at most"),
];

const GATEWAY: &[(&str, &str, &str, &str)] = &[
    ("LISTEN", "0.0.0.0:50051", "--listen", "--allow-plaintext"),
    ("LISTEN", "[::1:50051", "--listen", "address"),
    ("ALLOW_PLAINTEXT", "yes", "--allow-plaintext", "true, false"),
    ("ALLOW_PLAINTEXT", "1", "--allow-plaintext", "true, false"),
    ("TOPIC_PARTITIONS", "0", "--topic-partitions", "at least 1"),
    ("TOPIC_PARTITIONS", "-4", "--topic-partitions", "at least 1"),
    ("TOPIC_PARTITIONS", "16 ", "--topic-partitions", "digit"),
    ("TOPIC_PARTITIONS", "1e3", "--topic-partitions", "digit"),
    ("LINGER", "2s", "--linger", "1s"),
    ("REQUEST_TIMEOUT", "10ms", "--request-timeout", "100ms to 300s"),
    ("DELIVERY_TIMEOUT", "5s", "--delivery-timeout", "--request-timeout"),
    ("MAX_SEND_WAIT", "30s", "--max-send-wait", "--delivery-timeout"),
    ("DEADLINE_MARGIN", "30s", "--deadline-margin", "--max-send-wait"),
    ("MAX_CONTENT_BYTES", "1000MiB", "--max-content-bytes", "900MiB"),
    ("MAX_ID_BYTES", "0", "--max-id-bytes", "1 to 1024"),
    ("MAX_REQUEST_BYTES", "1KiB", "--max-request-bytes", "message"),
    ("MAX_BUFFERED_REQUEST_BYTES", "1KiB", "--max-buffered-request-bytes", "request"),
    ("MAX_CONNECTIONS", "0", "--max-connections", "at least 1"),
    ("MAX_CONNECTIONS", "18446744073709551615", "--max-connections", "at most"),
    ("MAX_CONCURRENT_STREAMS", "0", "--max-concurrent-streams", "at least 1"),
    ("MAX_STORED_WAITERS", "18446744073709551615", "--max-stored-waiters", "at most"),
    ("MAX_SEND_STREAMS", "18446744073709551615", "--max-send-streams", "at most"),
    ("MAX_UNREAD_RESULTS", "1", "--max-unread-results", "at least 1000"),
    ("READ_CONNECTIONS", "0", "--read-connections", "at least 1"),
    ("WATCH_CONNECTIONS", "0", "--watch-connections", "at least 1"),
    ("KEEPALIVE_INTERVAL", "0s", "--keepalive-interval", "100ms to"),
    ("MAX_CONNECTION_AGE", "0s", "--max-connection-age", "100ms to"),
    ("HEARTBEAT_INTERVAL", "0s", "--heartbeat-interval", "100ms to"),
    ("REQUEST_RECEIVE_TIMEOUT", "0s", "--request-receive-timeout", "100ms to"),
    ("REQUIRED_RETENTION", "3", "--required-retention", "unit"),
    ("DATABASE_REPLICA_URL", "postgres://app:hunter2@127.0.0.1/x", "--replica-url", "--database-url"),
];

const TRANSFER: &[(&str, &str, &str, &str)] = &[
    ("GROUP_ID", " msg", "--group-id", "space"),
    ("GROUP_ID", "msg\n", "--group-id", "space"),
    ("GROUP_ID", "\"msg\"", "--group-id", "quote"),
    ("GROUP_INSTANCE_ID", "a ", "--group-instance-id", "space"),
    ("SESSION_TIMEOUT", "1s", "--session-timeout", "6s to"),
    ("SESSION_TIMEOUT", "1day", "--session-timeout", "1h"),
    ("SESSION_TIMEOUT", "10s", "--session-timeout", "--drain-timeout"),
    ("COMMIT_INTERVAL", "0s", "--commit-interval", "1ms to"),
    ("COMMIT_RECORDS", "0", "--commit-records", "at least 1"),
    ("LANES", "0", "--lanes", "at least 1"),
    ("LANES", "four", "--lanes", "digit"),
    ("LANES", "100000", "--lanes", "at most"),
    ("BATCH_RECORDS", "0", "--batch-records", "at least 1"),
    ("BATCH_BYTES", "0", "--batch-bytes", "at least 1"),
    ("BATCH_BYTES", "2GiB", "--batch-bytes", "at most"),
    ("BATCH_INTERVAL", "5s", "--batch-interval", "1s"),
    ("SEQ_CACHE_INBOXES", "0", "--seq-cache-inboxes", "zero"),
    ("SEQ_CACHE_INBOXES", "18446744073709551615", "--seq-cache-inboxes", "at most"),
    ("MAX_INFLIGHT_RECORDS", "18446744073709551615", "--max-inflight-records", "at most"),
    ("MAX_PARTITION_INFLIGHT_RECORDS", "1", "--max-partition-inflight-records", "an eighth"),
    ("DEAD_LETTER_PERCENT", "150", "--dead-letter-percent", "at most 100"),
    ("DEAD_LETTER_WINDOW", "0", "--dead-letter-window", "at least 1"),
    ("SEQ_GUARD", "yes", "--seq-guard", "auto"),
    ("NO_MIGRATE", "yes", "--no-migrate", "true, false"),
    ("START_AT_OLDEST", "on", "--start-at-oldest", "true, false"),
];

#[tokio::test]
async fn invalid_settings_are_rejected_with_name_and_reason() {
    let mut cases = Vec::new();
    for (name, value, named, reason) in BOTH {
        for gateway in [true, false] {
            cases.push(case(gateway, name, value, named, reason));
        }
    }
    cases.extend(GATEWAY.iter().map(|(name, value, named, reason)| case(true, name, value, named, reason)));
    cases.extend(TRANSFER.iter().map(|(name, value, named, reason)| case(false, name, value, named, reason)));
    assert!(cases.len() > 200);
    let mut failed = Vec::new();
    for case in cases {
        // One program's default for this variable is the other's value.
        let settings = match case.settings[0].0 {
            "DATABASE_URL_FILE" if !case.gateway => {
                [case.settings.clone(), vec![("DATABASE_URL", String::new())]].concat()
            }
            _ => case.settings.clone(),
        };
        let (code, text) = run_program(case.gateway, &[], &settings).await;
        let named = text.contains(case.named) && text.contains(case.settings[0].0) && text.contains(case.reason);
        if code != Some(64) || !named || text.contains(SECRET) {
            failed.push(format!(
                "{:?} of {}: {code:?}: {text}",
                case.settings,
                if case.gateway { "gateway" } else { "transfer" }
            ));
        }
    }
    assert!(failed.is_empty(), "{} cases:\n{}", failed.len(), failed.join("\n"));
}

#[tokio::test]
async fn invalid_settings_are_all_reported_together() {
    let mut names = HashSet::new();
    let settings: Vec<(&str, String)> = TRANSFER
        .iter()
        .chain(BOTH)
        .filter(|(name, ..)| names.insert(*name))
        // A file gives the value of another setting, and the hints topic is compared with a valid topic.
        .filter(|(name, ..)| !name.ends_with("_FILE") && !["ADMIN_LISTEN", "HINTS_TOPIC"].contains(name))
        .map(|(name, value, ..)| (*name, (*value).to_owned()))
        .collect();
    // Values that cannot be parsed are reported before the others are checked, so all are reported in two runs.
    let (code, first) = run_program(false, &[], &settings).await;
    assert_eq!(code, Some(64), "{first}");
    let rest: Vec<_> =
        settings.iter().filter(|(name, _)| !first.contains(&format!("(set by {name}"))).cloned().collect();
    let (code, second) = run_program(false, &[], &rest).await;
    assert_eq!(code, Some(64), "{second}");
    for (name, _) in rest.iter().filter(|(name, _)| *name != "SESSION_TIMEOUT") {
        assert!(second.contains(&format!("(set by {name}")), "{name}: {second}");
    }
}

#[tokio::test]
async fn empty_variable_counts_as_unset() {
    let all = BOTH.iter().chain(GATEWAY).chain(TRANSFER);
    let mut settings: Vec<(&str, String)> = all.map(|(name, ..)| (*name, String::new())).collect();
    settings.retain(|(name, _)| *name != "DATABASE_URL");
    for (gateway, argument) in [(true, "healthcheck"), (false, "healthcheck"), (false, "migrate")] {
        let (code, text) = run_program(gateway, &[argument], &settings).await;
        assert_eq!(code, Some(1), "the settings are accepted, and the command fails later: {text}");
    }
    let (code, text) = run_program(false, &[], &[("DATABASE_URL", String::new())]).await;
    assert!(code == Some(64) && text.contains("--database-url or --database-url-file is required"), "{text}");
}

#[tokio::test]
async fn address_in_use_is_rejected_and_named() {
    let in_use = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = in_use.local_addr().unwrap().to_string();
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let both = [("LISTEN", address.clone()), ("ADMIN_LISTEN", other.local_addr().unwrap().to_string())];
    let (code, text) = run_program(true, &[], &both).await;
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains(&format!("--listen {address}")) && text.contains("--admin-listen 127"), "{text}");
    let (code, text) = run_program(false, &[], &both[1..]).await;
    assert!(code == Some(64) && text.contains("--admin-listen") && text.contains("another process listens"), "{text}");
    let same = [("LISTEN", "127.0.0.1:7".to_owned()), ("ADMIN_LISTEN", "127.0.0.1:7".to_owned())];
    let (code, text) = run_program(true, &[], &same).await;
    assert!(code == Some(64) && text.contains("same address"), "{text}");
}

#[tokio::test]
async fn setting_files_may_have_bom_crlf_and_comments() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let url = file("url", "\u{feff}postgres://app:hunter2@127.0.0.1:1/x \r\n\r\n");
    let properties = file(
        "properties",
        "# ours\r\nsasl.username=me\r\nsasl.password=se,hunter2=\"x\r\nsecurity.protocol=sasl_plaintext\r\nsasl.mechanism=PLAIN\r\n",
    );
    let good = [("DATABASE_URL", String::new()), ("DATABASE_URL_FILE", url), ("KAFKA_PROPERTIES_FILE", properties)];
    let (code, text) = run_program(false, &["migrate"], &good).await;
    assert!(code == Some(1) && !text.contains(SECRET), "the files are accepted, and the connection fails: {text}");
    for (name, text, part, reason) in [
        ("KAFKA_PROPERTIES_FILE", "sasl.username=me\nhunter2\n", "line 2", "not key=value"),
        ("KAFKA_PROPERTIES_FILE", "sasl.password=hunter2\nacks=1\n", "line 2, acks", "set by the service"),
        ("KAFKA_PROPERTIES_FILE", "linger.ms=1\n\nlinger.ms=2", "line 3, linger.ms", "twice"),
        ("DATABASE_URL_FILE", " \r\n", "", "empty"),
        ("DATABASE_URL_FILE", "app:hunter2@127.0.0.1", "", "not a URL"),
    ] {
        let settings =
            [("DATABASE_URL", String::new()), ("DATABASE_URL_FILE", good[1].1.clone()), (name, file("bad", text))];
        let (code, output) = run_program(false, &[], &settings).await;
        assert_eq!(code, Some(64), "{text}: {output}");
        assert!(
            output.contains(part) && output.contains(reason) && output.contains(name) && !output.contains(SECRET),
            "{text}: {output}"
        );
    }
}
