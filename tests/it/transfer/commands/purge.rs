//! `purge`: it deletes a prefix of each inbox and nothing else, also while a transfer runs.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{HOUR, migrated, put_with_age, run, run_with};
use crate::support::kafka::{msg, record_of};
use crate::support::stack::stack;
use crate::support::world::World;
use crate::support::{ensure, eventually};

/// Inserts rows of one inbox with `seq` from 1 on: one per letter of `rows`, old (`o`) or young (`y`).
async fn fill(world: &World, recv_id: &str, rows: &str) {
    let insert =
        "INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content,
                                        send_time, stored_time, kafka_partition, kafka_offset)
                  SELECT $1, seq, gen_random_uuid(), 'a', seq::text, 1, 'text/plain', 'x', now(),
                         now() - CASE kind WHEN 'o' THEN interval '100 days' ELSE interval '80 days' END, 0, seq
                  FROM regexp_split_to_table($2, '') WITH ORDINALITY AS t (kind, seq)";
    world.database().await.execute(insert, &[&recv_id, &rows]).await.unwrap();
}

/// The remaining `seq`s by inbox.
async fn remaining(world: &World) -> BTreeMap<String, Vec<i64>> {
    let mut remaining: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in world.rows().await {
        remaining.entry(row.recv_id).or_default().push(row.seq);
    }
    remaining
}

fn inboxes<const N: usize>(expected: [(&str, Vec<i64>); N]) -> BTreeMap<String, Vec<i64>> {
    expected.into_iter().map(|(inbox, seqs)| (inbox.to_owned(), seqs)).collect()
}

#[tokio::test]
async fn purge_deletes_a_prefix_and_never_the_newest_row() {
    let world = migrated("purge").await;
    for (inbox, rows) in
        [("all-old", "oooooooooo"), ("mixed", "ooooyoyo"), ("young", "yyy"), ("one-old", "o"), ("young-first", "yooo")]
    {
        fill(&world, inbox, rows).await;
    }
    let before = remaining(&world).await;
    let dry = run(&world, "purge --older-than 90days --dry-run --output json").await.assert_code(0).json();
    assert_eq!((&dry["messages_deleted"], &dry["transactions"]), (&13.into(), &0.into()));
    assert_eq!(remaining(&world).await, before, "a dry run deletes nothing");
    // Batches that end within an inbox, and batches of more than one inbox.
    let report = run(&world, "purge --older-than 90days --batch-rows 4 --output json").await.assert_code(0).json();
    assert_eq!((&report["messages_deleted"], &report["inboxes_purged"]), (&13.into(), &2.into()));
    assert_eq!((&report["inboxes_seen"], &report["transactions"]), (&5.into(), &4.into()));
    let expected = inboxes([
        ("all-old", vec![10]),
        ("mixed", vec![5, 6, 7, 8]),
        ("young", vec![1, 2, 3]),
        ("one-old", vec![1]),
        ("young-first", vec![1, 2, 3, 4]),
    ]);
    assert_eq!(remaining(&world).await, expected);
    let again = run(&world, "purge --older-than 90days").await.assert_code(0).stdout;
    assert!(again.contains("messages deleted"), "{again}");
    assert_eq!(remaining(&world).await, expected);
}

#[tokio::test]
async fn purge_fails_for_messages_that_kafka_may_still_have() {
    let world = migrated("purge_rejected").await;
    fill(&world, "bob", "ooo").await;
    let assert_rejected = async |arguments: &str, settings: &[(&str, &str)], text: &str| {
        let ran = run_with(&world, arguments, settings).await.assert_code(1);
        assert!(ran.stderr.contains(text), "{text}: {}", ran.stderr);
        assert_eq!(remaining(&world).await["bob"], [1, 2, 3], "{text}");
    };
    assert_rejected("purge --older-than 6days", &[], "below the topic's retention of 7days").await;
    assert_rejected("purge --older-than 90days", &[("KAFKA_BROKERS", "127.0.0.1:1")], "when Kafka responds").await;
    stack().await.kafka().create_topic("purge_unlimited", 1, &[("retention.ms", "-1")]).await.unwrap();
    assert_rejected("purge --older-than 90days", &[("KAFKA_TOPIC", "purge_unlimited")], "without limit").await;
    run(&world, "purge").await.assert_code(64);
    run(&world, "purge --older-than 90days --batch-rows 0").await.assert_code(64);
    // The first record is older than the retention. Kafka keeps it, because the younger one is in the same segment.
    put_with_age(&world, 2, &record_of(&msg("alice", "bob", "1", "x")), 95 * 24 * HOUR);
    put_with_age(&world, 2, &record_of(&msg("alice", "bob", "2", "x")), Duration::ZERO);
    assert_rejected("purge --older-than 90days", &[], "in partition 2").await;
    run(&world, "purge --older-than 96days").await.assert_code(0);
    assert_eq!(remaining(&world).await["bob"], [3]);
}

/// P4 for readers, and for messages that are stored later.
#[tokio::test]
async fn purge_during_a_running_transfer_leaves_no_gaps() {
    let world = World::new("purge_running").await;
    let transfer = world.running_transfer().await;
    let writer = world.writer();
    const INBOXES: i64 = 50;
    let send = |from: i64, to: i64| {
        for i in from..to {
            writer.put(&record_of(&msg("a", &format!("inbox-{}", i % INBOXES), &i.to_string(), "some body")));
        }
        writer.flush();
    };
    send(0, 5_000);
    world.wait_for_rows(5_000).await;
    let age = "UPDATE messages SET stored_time = now() - interval '100 days'";
    world.database().await.execute(age, &[]).await.unwrap();
    let purge = run(&world, "purge --older-than 90days --batch-rows 7 --output json");
    let (ran, ()) = tokio::join!(purge, async {
        for part in 5..25 {
            send(part * 1000, (part + 1) * 1000);
            tokio::task::yield_now().await;
        }
    });
    let deleted = ran.assert_code(0).json()["messages_deleted"].as_u64().unwrap();
    assert!(deleted >= 5_000 - INBOXES as u64, "{deleted}");
    world.wait_for_all_committed().await;
    let inboxes = remaining(&world).await;
    assert_eq!(inboxes.len() as i64, INBOXES);
    for (inbox, seqs) in inboxes {
        let expected: Vec<i64> = (seqs[0]..=25_000 / INBOXES).collect();
        assert_eq!(seqs, expected, "P4: {inbox}");
        assert!((100..=101).contains(&seqs[0]), "{inbox} starts at {}", seqs[0]);
    }
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn purge_stops_between_two_transactions() {
    let world = migrated("purge_stopped").await;
    fill(&world, "bob", &"o".repeat(20)).await;
    // The third row is locked, so the purge waits for it.
    let locker = world.database().await;
    locker.batch_execute("BEGIN; SELECT 1 FROM messages WHERE seq = 3 FOR UPDATE").await.unwrap();
    let purge = world.transfer("purge", |spec| {
        ["purge", "--older-than", "90days", "--batch-rows", "1"].into_iter().fold(spec, |spec, word| spec.arg(word))
    });
    let process = purge.launch().unwrap();
    eventually("the purge waits for the row", async || {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting: i64 = world.database().await.query_one(waiting, &[]).await?.get(0);
        ensure(waiting == 1, waiting)
    })
    .await;
    assert!(process.signal(msg_stack::Signal::Term));
    eventually("the purge has received the signal", async || {
        let log = std::fs::read_to_string(purge.log())?;
        ensure(log.contains("received signal"), log)
    })
    .await;
    locker.batch_execute("COMMIT").await.unwrap();
    assert!(purge.wait().await.unwrap().success());
    assert_eq!(
        remaining(&world).await["bob"],
        (4..=20).collect::<Vec<i64>>(),
        "the open transaction was completed, and no further one started"
    );
    let log = std::fs::read_to_string(purge.log()).unwrap();
    assert!(log.lines().any(|line| line.starts_with("stopped by a signal") && line.ends_with("yes")), "{log}");
}

#[tokio::test]
async fn purge_deletes_only_replayed_dead_letters_with_its_flag() {
    let world = migrated("purge_letters").await;
    let insert = "INSERT INTO dead_letters (topic, topic_id, kafka_partition, kafka_offset, headers, reason, detail,
                                            first_seen, replayed_at)
                  SELECT topic, gen_random_uuid(), 0, number, '', 'INVALID', 'x', now() - age, replayed_at
                  FROM (VALUES ('purge_letters', 1, interval '100 days', now()), ('purge_letters', 2, '100 days', NULL),
                               ('purge_letters', 3, '80 days', now()), ('another', 4, '100 days', now()),
                               ('purge_letters', 5, '100 days', now()))
                       AS t (topic, number, age, replayed_at)";
    let database = world.database().await;
    database.execute(insert, &[]).await.unwrap();
    let remaining = async || -> Vec<i64> {
        let rows = database.query("SELECT kafka_offset FROM dead_letters ORDER BY 1", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    run(&world, "purge --older-than 90days").await.assert_code(0);
    let dry = run(&world, "purge --older-than 90days --dead-letters --dry-run --output json").await.assert_code(0);
    assert_eq!(dry.json()["dead_letters_deleted"], 2);
    assert_eq!(remaining().await, [1, 2, 3, 4, 5]);
    let ran = run(&world, "purge --older-than 90days --dead-letters --batch-rows 1 --output json").await.assert_code(0);
    assert_eq!(ran.json()["dead_letters_deleted"], 2);
    assert_eq!(remaining().await, [2, 3, 4]);
}
