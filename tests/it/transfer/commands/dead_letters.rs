//! `dead-letters list`, `show`, `export` and `discard`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::{migrated, run};
use crate::support::kafka::{RawRecord, msg, record_of};
use crate::support::world::World;

/// A world with three dead letters that a transfer has stored: undecodable, with a wrong key, and a conflict.
async fn with_dead_letters(name: &str) -> (World, [RawRecord; 3]) {
    let world = World::new(name).await;
    let broken = RawRecord { key: None, value: Some(b"\xff\xff".to_vec()), version: Some("1") };
    let with_wrong_key = RawRecord { key: Some(b"carol".to_vec()), ..record_of(&msg("alice", "bob", "1", "a secret")) };
    let other = record_of(&msg("alice", "dave", "1", "another"));
    let writer = world.writer();
    writer.put_to(0, &broken);
    writer.put_to(1, &with_wrong_key);
    writer.put_to(2, &record_of(&msg("alice", "dave", "1", "first")));
    writer.put_to(2, &other);
    writer.flush();
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    (world, [broken, with_wrong_key, other])
}

async fn listed(world: &World, flags: &str) -> Vec<(i64, i64)> {
    let report = run(world, &format!("dead-letters list --output json {flags}")).await.assert_code(0).json();
    let dead_letters = report["dead_letters"].as_array().unwrap();
    dead_letters.iter().map(|one| (one["partition"].as_i64().unwrap(), one["offset"].as_i64().unwrap())).collect()
}

#[tokio::test]
async fn dead_letters_list_selects_by_its_options() {
    let (world, _) = with_dead_letters("letters_list").await;
    assert_eq!(listed(&world, "").await, [(0, 0), (1, 0), (2, 1)]);
    for (flags, expected) in [
        ("--topic-partition 2", vec![(2, 1)]),
        ("--topic-partition 0 --topic-partition 1", vec![(0, 0), (1, 0)]),
        ("--topic-partition 1 --offset 0", vec![(1, 0)]),
        ("--topic-partition 1 --offset 1", vec![]),
        ("--reason UNDECODABLE", vec![(0, 0)]),
        ("--reason idempotency-conflict", vec![(2, 1)]),
        ("--recv-id bob", vec![(1, 0)]),
        ("--since 1h", vec![(0, 0), (1, 0), (2, 1)]),
        ("--until 1h", vec![]),
        ("--since 2020-01-01T00:00:00Z --until 2021-01-01T00:00:00Z", vec![]),
        ("--limit 2", vec![(0, 0), (1, 0)]),
    ] {
        assert_eq!(listed(&world, flags).await, expected, "{flags}");
    }
    world
        .database()
        .await
        .execute("UPDATE dead_letters SET replayed_at = now() WHERE kafka_partition = 1", &[])
        .await
        .unwrap();
    assert_eq!(listed(&world, "--not-replayed").await, [(0, 0), (2, 1)]);
    let table = run(&world, "dead-letters list").await.assert_code(0).stdout;
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(!table.contains("secret"));
    run(&world, "dead-letters list --reason NONSENSE").await.assert_code(64);
    run(&world, "dead-letters list --offset 1").await.assert_code(64);
}

#[tokio::test]
async fn dead_letters_show_prints_content_only_with_its_flag() {
    let (world, _) = with_dead_letters("letters_show").await;
    let plain = run(&world, "dead-letters show 1 0").await.assert_code(0).stdout;
    for part in [
        "INVALID",
        "carol",
        "msg-version: 1",
        "traceparent: 00-0-0-00",
        "alice",
        "8 bytes",
        "the key is not the recv_id",
    ] {
        assert!(plain.contains(part), "{part}: {plain}");
    }
    assert!(!plain.contains("a secret"), "{plain}");
    let json = run(&world, "dead-letters show 1 0 --output json").await.assert_code(0);
    assert_eq!((&json.json()["message"]["content"], &json.json()["value_base64"]), (&Value::Null, &Value::Null));
    let whole = run(&world, "dead-letters show 1 0 --content --output json").await.assert_code(0).json();
    assert_eq!((&whole["message"]["content"], &whole["message"]["send_id"]), (&"a secret".into(), &"alice".into()));
    let broken = run(&world, "dead-letters show 0 0 --content").await.assert_code(0).stdout;
    assert!(broken.contains("base64://8="), "{broken}");
    let missing = run(&world, "dead-letters show 3 7").await.assert_code(1);
    assert!(missing.stderr.contains("no dead letter"), "{}", missing.stderr);
    // A dead letter of an older topic with the same name.
    let copy = "INSERT INTO dead_letters (topic, topic_id, kafka_partition, kafka_offset, headers, reason, detail)
                VALUES ('letters_show', '00000000-0000-0000-0000-000000000001', 1, 0, '', 'UNDECODABLE', 'x')";
    world.database().await.execute(copy, &[]).await.unwrap();
    let two = run(&world, "dead-letters show 1 0").await.assert_code(1);
    assert!(two.stderr.contains("--topic-id"), "{}", two.stderr);
    let one = "dead-letters show 1 0 --topic-id 00000000-0000-0000-0000-000000000001 --output json";
    assert_eq!(run(&world, one).await.assert_code(0).json()["reason"], "UNDECODABLE");
}

#[tokio::test]
async fn dead_letters_export_writes_whole_records() {
    let (world, records) = with_dead_letters("letters_export").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("letters");
    let arguments = format!("dead-letters export --file {}", file.display());
    run(&world, &arguments).await.assert_code(0);
    let exported = std::fs::read_to_string(&file).unwrap();
    assert_eq!(run(&world, "dead-letters export").await.assert_code(0).stdout, exported);
    let lines: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), records.len());
    let bytes = |value: &Value| value.as_str().map(|text| BASE64_STANDARD.decode(text).unwrap());
    for (line, record) in lines.iter().zip(records) {
        assert_eq!(bytes(&line["key_base64"]), record.key);
        assert_eq!(bytes(&line["value_base64"]), record.value);
        let headers = line["headers"].as_array().unwrap();
        let version = headers.iter().find(|header| bytes(&header["key_base64"]).unwrap() == b"msg-version").unwrap();
        assert_eq!(bytes(&version["value_base64"]).unwrap(), b"1");
    }
    // `export` never overwrites a file.
    run(&world, &arguments).await.assert_code(1);
    let empty = migrated("letters_none").await;
    assert_eq!(run(&empty, "dead-letters export").await.assert_code(0).stdout, "");
}

/// Only dead letters of one reason and age are deleted, whether or not they were replayed.
#[tokio::test]
async fn dead_letters_discard_deletes_by_reason_and_age() {
    let (world, _) = with_dead_letters("letters_discard").await;
    run(&world, "dead-letters discard --older-than 1h").await.assert_code(64);
    run(&world, "dead-letters discard --reason INVALID").await.assert_code(64);
    let discard = "dead-letters discard --output json --reason IDEMPOTENCY_CONFLICT";
    let report = run(&world, &format!("{discard} --older-than 1h")).await.assert_code(0).json();
    assert_eq!(report["discarded"], 0, "the dead letter is too young");
    let database = world.database().await;
    database.execute("UPDATE dead_letters SET first_seen = now() - interval '2 hours'", &[]).await.unwrap();
    let report = run(&world, &format!("{discard} --older-than 1h --dry-run")).await.assert_code(0).json();
    assert_eq!((&report["discarded"], &report["dry_run"]), (&1.into(), &true.into()));
    assert_eq!(listed(&world, "").await.len(), 3, "a dry run deletes nothing");
    let report = run(&world, &format!("{discard} --older-than 1h --recv-id eve")).await.assert_code(0).json();
    assert_eq!(report["discarded"], 0, "the dead letter is of another inbox");
    let report = run(&world, &format!("{discard} --older-than 1h")).await.assert_code(0).json();
    assert_eq!((&report["discarded"], &report["never_replayed"]), (&1.into(), &1.into()));
    assert_eq!(listed(&world, "").await, [(0, 0), (1, 0)], "dead letters with other reasons stay");
}

/// A dead letter whose content was dropped is never replayed, because that would be another record.
#[tokio::test]
async fn dead_letter_without_content_is_not_replayed() {
    let (world, _) = with_dead_letters("letters_lean").await;
    let database = world.database().await;
    let drop_content = "UPDATE dead_letters SET value = NULL WHERE reason = 'IDEMPOTENCY_CONFLICT'";
    database.execute(drop_content, &[]).await.unwrap();
    let ends = world.end_offsets().await;
    let replay = "dead-letters replay --output json --reason IDEMPOTENCY_CONFLICT --topic-partitions 4";
    let report = run(&world, replay).await.assert_code(0).json();
    assert_eq!((&report["replayed"], &report["without_content"]), (&0.into(), &1.into()));
    assert_eq!(world.end_offsets().await, ends, "nothing was sent");
}
