//! `check`: it names each problem and what to do, and disturbs nothing.

use serde_json::Value;

use super::{CommandResult, migrated, run, run_with};
use crate::support::stack::stack;
use crate::support::world::World;

/// Status and detail of every finding of this check.
fn findings(ran: &CommandResult, check: &str) -> Vec<(String, String)> {
    let report = ran.json();
    let findings = report["checks"].as_array().unwrap().iter().filter(|finding| finding["check"] == check);
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    findings.map(|finding| (text(finding, "status"), text(finding, "detail"))).collect()
}

fn assert_found(ran: &CommandResult, check: &str, status: &str, text: &str) {
    let findings = findings(ran, check);
    let matches = findings.iter().any(|(found, detail)| found == status && detail.contains(text));
    assert!(matches, "{check} is not {status} with `{text}`: {findings:?}\n{}", ran.stdout);
}

#[tokio::test]
async fn check_passes_with_safe_settings_and_causes_no_rebalance() {
    let world = World::new("check_good").await;
    let transfer = world.running_transfer().await;
    let rebalances = async || {
        let metrics = transfer.metrics().await.unwrap();
        let lines: Vec<String> =
            metrics.lines().filter(|line| line.contains("rebalances_total")).map(Into::into).collect();
        lines
    };
    let before = rebalances().await;
    let ran = run(&world, "check --output json").await.assert_code(0);
    assert_eq!(ran.json()["ok"], true);
    // The world's settings accept a single broker.
    assert_found(&ran, "topic", "warning", "replication factor is 1, required 3");
    assert_found(&ran, "group", "ok", "is Stable, members: 1");
    for check in
        ["brokers", "hints", "topic id", "lag", "database", "server version", "writable", "fsync", "full_page_writes"]
    {
        assert_found(&ran, check, "ok", "");
    }
    for check in ["synchronous_commit", "citus", "rights", "connections", "schema"] {
        assert_found(&ran, check, "ok", "");
    }
    assert_found(&ran, "synchronous_standby_names", "warning", "if Kafka still has them");
    assert_eq!(rebalances().await, before, "`check` caused a rebalance");
    let table = run(&world, "check").await.assert_code(0);
    assert!(table.stdout.starts_with("result "), "{}", table.stdout);
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn check_fails_for_an_unsafe_topic_unless_allowed() {
    let world = migrated("check_unsafe").await;
    let rejected = run_with(&world, "check --output json", &[("ALLOW_UNSAFE_TOPIC", "false")]).await.assert_code(1);
    assert_eq!(rejected.json()["ok"], false);
    assert_found(&rejected, "topic", "failed", "--allow-unsafe-topic");
    assert_found(&rejected, "topic", "failed", "min.insync.replicas is 1");
    assert_found(&rejected, "topic", "failed", "message.timestamp.type is CreateTime");
    assert_found(&rejected, "group", "warning", "no transfer runs");
    // The requirements fit one broker, and the topic has the broker's time: nothing has to be allowed.
    let safe = "check_unsafe_not";
    let broker_time = [("message.timestamp.type", "LogAppendTime")];
    stack().await.kafka().create_topic(safe, 4, &broker_time).await.unwrap();
    let lower = "check --output json --required-replicas 1 --required-min-insync 1";
    let settings = [("ALLOW_UNSAFE_TOPIC", "false"), ("KAFKA_TOPIC", safe)];
    let ran = run_with(&world, lower, &settings).await.assert_code(0);
    assert_found(&ran, "topic", "ok", "4 partitions with 1 replicas");
    let missing = run_with(&world, "check --output json", &[("KAFKA_TOPIC", "check_nowhere")]).await.assert_code(1);
    assert_found(&missing, "topic", "failed", "create it");
}

#[tokio::test]
async fn check_warns_of_a_missing_hints_topic() {
    let world = World::without_hints("check_hints").await;
    run(&world, "migrate").await.assert_code(0);
    let ran = run(&world, "check --output json").await.assert_code(0);
    assert_found(&ran, "hints", "warning", "topic check_hints-hints does not exist");
    let without_hints = run_with(&world, "check --output json", &[("HINTS_TOPIC", "none")]).await.assert_code(0);
    assert_found(&without_hints, "hints", "ok", "switched off");
}

#[tokio::test]
async fn check_fails_for_a_read_only_server() {
    let world = migrated("check_read_only").await;
    let read_only = "ALTER DATABASE check_read_only SET default_transaction_read_only = on";
    world.database().await.batch_execute(read_only).await.unwrap();
    let ran = run(&world, "check --output json").await.assert_code(1);
    assert_found(&ran, "writable", "failed", "read-only");
}

#[tokio::test]
async fn check_names_missing_tables_and_rights() {
    let world = World::new("check_rights").await;
    let empty = run(&world, "check --output json").await.assert_code(0);
    assert_found(&empty, "schema", "warning", "at version 0");
    assert_found(&empty, "lag", "warning", "progress");
    let without_migrate = run_with(&world, "check --output json", &[("NO_MIGRATE", "true")]).await.assert_code(1);
    assert_found(&without_migrate, "schema", "failed", "msg-transfer migrate");
    run(&world, "migrate").await.assert_code(0);
    let role =
        "CREATE ROLE check_reader LOGIN PASSWORD 'x'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO check_reader;
                GRANT INSERT ON messages, dead_letters, progress TO check_reader;
                ALTER ROLE check_reader CONNECTION LIMIT 3";
    world.database().await.batch_execute(role).await.unwrap();
    let (_, rest) = world.database_url().split_once('@').unwrap();
    let url = format!("postgres://check_reader:x@{rest}");
    let ran = run_with(&world, "check --output json", &[("DATABASE_URL", &url)]).await.assert_code(1);
    assert_found(&ran, "rights", "failed", "GRANT UPDATE ON progress");
    assert_found(&ran, "rights", "warning", "for `purge`");
    assert_found(&ran, "connections", "warning", "3 connections are free");
    assert!(!findings(&ran, "rights").iter().any(|(_, detail)| detail.contains("INSERT")), "{}", ran.stdout);
}

#[tokio::test]
async fn check_names_unavailable_servers_and_invalid_settings() {
    let world = World::new("check_unavailable").await;
    let nowhere = [("KAFKA_BROKERS", "127.0.0.1:1"), ("DATABASE_URL", "postgres://postgres@127.0.0.1:1/x")];
    let ran = run_with(&world, "check --output json", &nowhere).await.assert_code(1);
    assert_found(&ran, "brokers", "failed", "--kafka-brokers");
    assert_found(&ran, "database", "failed", "--database-url");
    run_with(&world, "check", &[("LANES", "0")]).await.assert_code(64);
    // A command does not check settings that it does not need.
    run(&world, "migrate").await.assert_code(0);
    run_with(&world, "lag", &[("LANES", "0")]).await.assert_code(0);
}
