//! Logging never stops a service: no matter what happens to standard error, it serves, and dropped lines are counted. Each
//! line is JSON with unique keys.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::process::Stdio;

use msg_stack::Signal;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use tokio::io::AsyncReadExt;

use super::{readiness, spawn};
use crate::gateway::calls::{client, send};
use crate::support::kafka::{msg, record_of};
use crate::support::world::{Gateway, World};
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// Checks that the gateway serves calls and its admin port, has dropped log lines, and exits at SIGTERM. With a
/// deadline, because a gateway that waited for its log would never respond.
async fn serves_and_counts(gateway: &Gateway, child: &mut tokio::process::Child) {
    tokio::time::timeout(2 * WAIT_TIMEOUT, serves_counts_and_ends(gateway, child))
        .await
        .expect("the gateway serves and exits");
}

async fn serves_counts_and_ends(gateway: &Gateway, child: &mut tokio::process::Child) {
    let client = client(gateway).await;
    let admin = gateway.service.spec().admin.unwrap();
    for i in 0..100 {
        send(&client, &msg("alice", "bob", &i.to_string(), "hello")).await.unwrap();
    }
    assert_eq!(msg_common::admin::probe(admin, "/healthz").await.unwrap().0, 200);
    eventually("dropped lines are counted", async || {
        // At this level each call logs several lines.
        send(&client, &msg("alice", "bob", "again", "hello")).await?;
        let (_, metrics) = msg_common::admin::probe(admin, "/metrics").await?;
        let dropped = metrics.lines().find_map(|line| line.strip_prefix("msg_log_lines_dropped_total "));
        ensure(dropped.is_some_and(|dropped| dropped != "0"), format!("{dropped:?}"))
    })
    .await;
    assert!(Signal::Term.send(child.id().unwrap()));
    let status = tokio::time::timeout(WAIT_TIMEOUT, child.wait()).await.expect("the gateway exits").unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
}

#[tokio::test]
async fn gateway_serves_after_its_log_is_closed() {
    let world = World::new("log_closed").await;
    let gateway = world.gateway("gateway", |spec| spec.env("LOG_FORMAT", "json").env("LOG_LEVEL", "trace"));
    let mut child = spawn(&gateway.service, &[], Stdio::piped());
    let mut first = [0; 100];
    child.stderr.take().unwrap().read_exact(&mut first).await.unwrap();
    readiness(&gateway.service, 200, "ready").await;
    serves_and_counts(&gateway, &mut child).await;
}

#[tokio::test]
async fn gateway_serves_with_a_full_disk_under_its_log() {
    let world = World::new("log_full").await;
    let gateway = world.gateway("gateway", |spec| spec.env("LOG_FORMAT", "json"));
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = spawn(&gateway.service, &[], full);
    readiness(&gateway.service, 200, "ready").await;
    serves_and_counts(&gateway, &mut child).await;
}

#[tokio::test]
async fn gateway_serves_while_its_log_is_unread() {
    let world = World::new("log_unread").await;
    let gateway = world.gateway("gateway", |spec| spec.env("LOG_FORMAT", "text").env("LOG_LEVEL", "trace"));
    let mut child = spawn(&gateway.service, &[], Stdio::piped());
    // Open, and never read.
    let _pipe = child.stderr.take().unwrap();
    readiness(&gateway.service, 200, "ready").await;
    serves_and_counts(&gateway, &mut child).await;
}

#[tokio::test]
async fn transfer_stores_after_its_log_is_closed() {
    let world = World::new("log_transfer").await;
    let transfer = world.transfer("transfer", |spec| spec.env("LOG_FORMAT", "json").env("LOG_LEVEL", "debug"));
    let mut child = spawn(&transfer, &[], Stdio::piped());
    drop(child.stderr.take());
    readiness(&transfer, 200, "ready").await;
    let writer = world.writer();
    for i in 0..1000 {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 10), &i.to_string(), "some body")));
    }
    writer.flush();
    world.wait_for_rows(1000).await;
    assert!(Signal::Term.send(child.id().unwrap()));
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn command_survives_a_closed_output() {
    let world = crate::transfer::commands::migrated("log_command").await;
    for arguments in
        [&["lag"][..], &["check", "--output", "json"], &["--help"], &["lag", "--watch", "100ms"], &["--no-such"]]
    {
        let command = world.transfer("command", |spec| spec.env("LOG_LEVEL", "debug"));
        let spec = command.spec();
        let mut child = tokio::process::Command::new(msg_stack::service::find_binary("msg-transfer").unwrap())
            .args(arguments)
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let wait = child.wait();
        if arguments.contains(&"--watch") {
            // The command continues until a signal.
            assert!(tokio::time::timeout(std::time::Duration::from_secs(3), wait).await.is_err());
            continue;
        }
        let code = tokio::time::timeout(WAIT_TIMEOUT, wait).await.expect("the command ends").unwrap().code();
        // 1 if a busy Kafka did not respond in time. A panic would be a signal or 134.
        let as_expected = match arguments {
            ["--help"] => code == Some(0),
            ["--no-such"] => code == Some(64),
            _ => matches!(code, Some(0 | 1)),
        };
        assert!(as_expected, "{arguments:?}: {code:?}");
    }
}

/// Over a run with sends, rows, an unavailable broker, and all levels.
#[tokio::test]
async fn every_log_line_is_json_with_unique_keys() {
    let world = World::new("log_lines").await;
    let folder = tempfile::tempdir().unwrap();
    let (gateway_log, transfer_log) = (folder.path().join("gateway"), folder.path().join("transfer"));
    let settings = [("LOG_FORMAT", "json"), ("LOG_LEVEL", "trace")];
    let brokers = format!("127.0.0.1:1,{}", world.brokers());
    let change =
        |spec: msg_stack::ServiceSpec| spec.env("KAFKA_BROKERS", &brokers).env("KAFKA_PROPERTIES", "debug=broker");
    let (gateway, transfer) = (world.gateway("gateway", change), world.transfer("transfer", change));
    let mut children = [
        spawn(&gateway.service, &settings, File::create(&gateway_log).unwrap()),
        spawn(&transfer, &settings, File::create(&transfer_log).unwrap()),
    ];
    readiness(&gateway.service, 200, "ready").await;
    readiness(&transfer, 200, "ready").await;
    let client = client(&gateway).await;
    for i in 0..10 {
        send(&client, &msg("alice", "bob", &i.to_string(), "hello")).await.unwrap();
    }
    world.wait_for_rows(10).await;
    for child in &mut children {
        assert!(Signal::Term.send(child.id().unwrap()));
        assert_eq!(child.wait().await.unwrap().code(), Some(0));
    }
    let here = env!("CARGO_MANIFEST_DIR").trim_end_matches("/tests");
    for log in [gateway_log, transfer_log] {
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(text.lines().count() > 100, "{text}");
        assert!(text.ends_with('\n'), "the last line is incomplete");
        for line in text.lines() {
            let parsed: Result<UniqueKeys, _> = serde_json::from_str(line);
            assert!(parsed.is_ok(), "{}: {line}", parsed.unwrap_err());
            for path in ["/registry/", ".cargo", "/rustc/", here] {
                assert!(!line.contains(path), "a path of the build machine: {line}");
            }
        }
    }
}

/// Any JSON in which no object repeats a key.
#[derive(Debug)]
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = UniqueKeys;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("JSON")
            }

            fn visit_bool<E>(self, _: bool) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_i64<E>(self, _: i64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_u64<E>(self, _: u64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_f64<E>(self, _: f64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_str<E>(self, _: &str) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_unit<E>(self) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<UniqueKeys, A::Error> {
                while items.next_element::<UniqueKeys>()?.is_some() {}
                Ok(UniqueKeys)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<UniqueKeys, A::Error> {
                let mut keys = BTreeSet::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if keys.contains(&key) {
                        return Err(A::Error::custom(format!("the key {key} is repeated")));
                    }
                    keys.insert(key);
                    entries.next_value::<UniqueKeys>()?;
                }
                Ok(UniqueKeys)
            }
        }

        deserializer.deserialize_any(Any)
    }
}
