//! `dead-letters replay`: it sends dead letters to Kafka again, and repeats do no harm.

use msg_common::partition::partition_for;

use super::{migrated, run, run_with};
use crate::support::kafka::{RawRecord, msg, record_of};
use crate::support::world::World;
use crate::support::{ensure, eventually};

/// The header with the version, and one whose key is not UTF-8.
const HEADERS: &[u8] = b"\0\0\0\x0bmsg-version\0\0\0\x011\0\0\0\x02\xff\xfe\0\0\0\x02\x01\0\0\0\0\x01k\xff\xff\xff\xff";

async fn insert_dead_letter(world: &World, offset: i64, reason: &str, record: &RawRecord) {
    let insert =
        "INSERT INTO dead_letters (topic, topic_id, kafka_partition, kafka_offset, recv_id, key, value, headers,
                                            reason, detail)
                  VALUES ($1, '00000000-0000-0000-0000-000000000001', 0, $2, 'bob', $3, $4, $5, $6, 'by a test')";
    let database = world.database().await;
    let topic = world.topic();
    database.execute(insert, &[&topic, &offset, &record.key, &record.value, &HEADERS, &reason]).await.unwrap();
}

#[tokio::test]
async fn replayed_record_is_stored_once_with_a_new_seq() {
    let world = migrated("replay").await;
    let transfer = world.running_transfer().await;
    let writer = world.writer();
    writer.put(&record_of(&msg("alice", "bob", "later", "x")));
    writer.flush();
    world.wait_for_rows(1).await;
    insert_dead_letter(&world, 7, "REJECTED_BY_DATABASE", &record_of(&msg("alice", "bob", "first", "some body"))).await;
    let replay = "dead-letters replay --reason REJECTED_BY_DATABASE --output json";
    let dry = run(&world, &format!("{replay} --dry-run")).await.assert_code(0).json();
    assert_eq!((&dry["replayed"], &dry["unreadable"]), (&1.into(), &0.into()));
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 1, "a dry run sends nothing");
    assert_eq!(run(&world, replay).await.assert_code(0).json()["replayed"], 1);
    world.wait_for_rows(2).await;
    let rows = world.rows().await;
    assert_eq!(
        (rows[1].seq, rows[1].client_msg_id.as_str(), rows[1].content.as_slice()),
        (2, "first", b"some body".as_slice())
    );
    assert_eq!(rows[1].partition, partition_for(b"bob", world.partitions));
    let marked = "SELECT count(*) FROM dead_letters WHERE replayed_at > now() - interval '1 minute'";
    assert_eq!(world.database().await.query_one(marked, &[]).await.unwrap().get::<_, i64>(0), 1);
    // Dead letters that were replayed are skipped, and a repeat is not stored twice.
    assert_eq!(run(&world, replay).await.assert_code(0).json()["replayed"], 0);
    assert_eq!(run(&world, &format!("{replay} --again")).await.assert_code(0).json()["replayed"], 1);
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 3);
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), 2, "P2");
    assert!(transfer.stop().await.unwrap().success());
}

/// Each record becomes one new dead letter, which the same run does not replay.
#[tokio::test]
async fn replayed_undecodable_record_is_dead_lettered_unchanged() {
    let world = migrated("replay_broken").await;
    let transfer = world.running_transfer().await;
    let records = [
        RawRecord { key: None, value: Some(b"\xff".to_vec()), version: None },
        RawRecord { key: Some(b"bob".to_vec()), value: None, version: None },
        RawRecord { key: Some(b"bob".to_vec()), value: Some(Vec::new()), version: None },
    ];
    for (offset, record) in (0..).zip(&records) {
        insert_dead_letter(&world, offset, "UNDECODABLE", record).await;
    }
    let ran = run(&world, "dead-letters replay --all --output json").await.assert_code(0);
    assert_eq!((&ran.json()["replayed"], &ran.json()["unreadable"]), (&3.into(), &3.into()));
    assert!(ran.stderr.contains("will be dead-lettered again"), "{}", ran.stderr);
    world.wait_for_all_committed().await;
    let query = "SELECT key, value, headers FROM dead_letters
                 WHERE topic_id <> '00000000-0000-0000-0000-000000000001' ORDER BY key NULLS FIRST, value NULLS FIRST";
    let rows = world.database().await.query(query, &[]).await.unwrap();
    assert_eq!(rows.len(), records.len(), "each record is dead-lettered once");
    for (row, record) in rows.iter().zip(&records) {
        let (key, value, headers): (Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>) = (row.get(0), row.get(1), row.get(2));
        assert_eq!((&key, &value, headers.as_slice()), (&record.key, &record.value, HEADERS));
    }
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn dead_letters_are_replayed_in_order() {
    let world = migrated("replay_many").await;
    const COUNT: i64 = 1_234;
    for i in 0..COUNT {
        insert_dead_letter(&world, i, "REJECTED_BY_DATABASE", &record_of(&msg("alice", "bob", &i.to_string(), "x")))
            .await;
    }
    let ran = run(&world, "dead-letters replay --topic-partition 0 --limit 1000 --output json").await.assert_code(0);
    assert_eq!(ran.json()["replayed"], 1000);
    let ran = run(&world, "dead-letters replay --recv-id bob --output json").await.assert_code(0);
    assert_eq!(ran.json()["replayed"], COUNT - 1000);
    let transfer = world.running_transfer().await;
    world.wait_for_rows(COUNT).await;
    let order: Vec<i64> = world.rows().await.iter().map(|row| row.client_msg_id.parse().unwrap()).collect();
    assert_eq!(order, (0..COUNT).collect::<Vec<i64>>());
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn replay_needs_a_selection_and_the_right_partition_count() {
    let world = migrated("replay_refused").await;
    insert_dead_letter(&world, 1, "REJECTED_BY_DATABASE", &record_of(&msg("alice", "bob", "1", "x"))).await;
    for flags in ["", "--not-replayed", "--limit 5"] {
        run(&world, &format!("dead-letters replay {flags}")).await.assert_code(64);
    }
    let wrong = run_with(&world, "dead-letters replay --all", &[("TOPIC_PARTITIONS", "16")]).await.assert_code(1);
    assert!(wrong.stderr.contains("--topic-partitions 16"), "{}", wrong.stderr);
    // A record that Kafka has not confirmed is not marked as replayed.
    let unavailable = [("KAFKA_BROKERS", "127.0.0.1:1")];
    run_with(&world, "dead-letters replay --all", &unavailable).await.assert_code(1);
    let too_large = RawRecord { value: Some(vec![0; 3 << 20]), ..record_of(&msg("alice", "bob", "2", "x")) };
    insert_dead_letter(&world, 2, "TOO_LARGE", &too_large).await;
    let failed = run(&world, "dead-letters replay --all").await.assert_code(1);
    assert!(failed.stderr.contains("offset 2") && failed.stderr.contains("1 were replayed"), "{}", failed.stderr);
    eventually("the other record is written", async || {
        let ends: i64 = world.end_offsets().await.iter().sum();
        ensure(ends == 1, ends)
    })
    .await;
    let marked = "SELECT kafka_offset FROM dead_letters WHERE replayed_at IS NOT NULL";
    let marked: Vec<i64> =
        world.database().await.query(marked, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(marked, [1]);
}
