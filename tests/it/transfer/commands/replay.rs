//! `dead-letters replay`: a record gets a second chance through Kafka, and repeats are harmless.

use msg_common::partition::partition_for;

use super::{migrated, run, run_with};
use crate::support::kafka::{Raw, good, msg};
use crate::support::world::World;
use crate::support::{ensure, eventually};

/// A header whose key is no text, beside the version's.
const HEADERS: &[u8] = b"\0\0\0\x0bmsg-version\0\0\0\x011\0\0\0\x02\xff\xfe\0\0\0\x02\x01\0\0\0\0\x01k\xff\xff\xff\xff";

async fn keep_aside(world: &World, offset: i64, reason: &str, record: &Raw) {
    let insert =
        "INSERT INTO dead_letters (topic, topic_id, kafka_partition, kafka_offset, recv_id, key, value, headers,
                                            reason, detail)
                  VALUES ($1, '00000000-0000-0000-0000-000000000001', 0, $2, 'bob', $3, $4, $5, $6, 'by hand')";
    let database = world.database().await;
    let topic = world.topic();
    database.execute(insert, &[&topic, &offset, &record.key, &record.value, &HEADERS, &reason]).await.unwrap();
}

#[tokio::test]
async fn a_record_that_is_good_by_now_is_stored_at_a_new_place_and_once() {
    let world = migrated("replay").await;
    let transfer = world.running_transfer().await;
    let writer = world.writer();
    writer.put(&good(&msg("alice", "bob", "later", "x")));
    writer.flush();
    world.rows_reach(1).await;
    keep_aside(&world, 7, "REJECTED_BY_DATABASE", &good(&msg("alice", "bob", "first", "kept aside"))).await;
    let replay = "dead-letters replay --reason REJECTED_BY_DATABASE --output json";
    let dry = run(&world, &format!("{replay} --dry-run")).await.assert_code(0).json();
    assert_eq!((&dry["replayed"], &dry["unreadable"]), (&1.into(), &0.into()));
    assert_eq!(world.ends().await.iter().sum::<i64>(), 1, "a dry run sends nothing");
    assert_eq!(run(&world, replay).await.assert_code(0).json()["replayed"], 1);
    world.rows_reach(2).await;
    let rows = world.rows().await;
    assert_eq!(
        (rows[1].seq, rows[1].client_msg_id.as_str(), rows[1].content.as_slice()),
        (2, "first", b"kept aside".as_slice())
    );
    assert_eq!(rows[1].partition, partition_for(b"bob", world.partitions));
    let marked = "SELECT count(*) FROM dead_letters WHERE replayed_at > now() - interval '1 minute'";
    assert_eq!(world.database().await.query_one(marked, &[]).await.unwrap().get::<_, i64>(0), 1);
    // Marked ones are passed by, and a repeat is not stored twice.
    assert_eq!(run(&world, replay).await.assert_code(0).json()["replayed"], 0);
    assert_eq!(run(&world, &format!("{replay} --again")).await.assert_code(0).json()["replayed"], 1);
    assert_eq!(world.ends().await.iter().sum::<i64>(), 3);
    world.all_committed().await;
    assert_eq!(world.rows().await.len(), 2, "P2");
    assert!(transfer.stop().await.unwrap().success());
}

/// It comes back as one new dead letter, which the same run does not replay again.
#[tokio::test]
async fn a_record_that_holds_no_message_comes_back_as_it_was() {
    let world = migrated("replay_broken").await;
    let transfer = world.running_transfer().await;
    let records = [
        Raw { key: None, value: Some(b"\xff".to_vec()), version: None },
        Raw { key: Some(b"bob".to_vec()), value: None, version: None },
        Raw { key: Some(b"bob".to_vec()), value: Some(Vec::new()), version: None },
    ];
    for (offset, record) in (0..).zip(&records) {
        keep_aside(&world, offset, "UNDECODABLE", record).await;
    }
    let ran = run(&world, "dead-letters replay --all --output json").await.assert_code(0);
    assert_eq!((&ran.json()["replayed"], &ran.json()["unreadable"]), (&3.into(), &3.into()));
    assert!(ran.stderr.contains("will come back"), "{}", ran.stderr);
    world.all_committed().await;
    let query = "SELECT key, value, headers FROM dead_letters
                 WHERE topic_id <> '00000000-0000-0000-0000-000000000001' ORDER BY key NULLS FIRST, value NULLS FIRST";
    let rows = world.database().await.query(query, &[]).await.unwrap();
    assert_eq!(rows.len(), records.len(), "each once");
    for (row, record) in rows.iter().zip(&records) {
        let (key, value, headers): (Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>) = (row.get(0), row.get(1), row.get(2));
        assert_eq!((&key, &value, headers.as_slice()), (&record.key, &record.value, HEADERS));
    }
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn many_are_replayed_in_order() {
    let world = migrated("replay_many").await;
    const COUNT: i64 = 1_234;
    for i in 0..COUNT {
        keep_aside(&world, i, "REJECTED_BY_DATABASE", &good(&msg("alice", "bob", &i.to_string(), "x"))).await;
    }
    let ran = run(&world, "dead-letters replay --topic-partition 0 --limit 1000 --output json").await.assert_code(0);
    assert_eq!(ran.json()["replayed"], 1000);
    let ran = run(&world, "dead-letters replay --recv-id bob --output json").await.assert_code(0);
    assert_eq!(ran.json()["replayed"], COUNT - 1000);
    let transfer = world.running_transfer().await;
    world.rows_reach(COUNT).await;
    let order: Vec<i64> = world.rows().await.iter().map(|row| row.client_msg_id.parse().unwrap()).collect();
    assert_eq!(order, (0..COUNT).collect::<Vec<i64>>());
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn nothing_is_replayed_by_accident_or_to_a_wrong_partition() {
    let world = migrated("replay_refused").await;
    keep_aside(&world, 1, "REJECTED_BY_DATABASE", &good(&msg("alice", "bob", "1", "x"))).await;
    for unchosen in ["", "--not-replayed", "--limit 5"] {
        run(&world, &format!("dead-letters replay {unchosen}")).await.assert_code(64);
    }
    let wrong = run_with(&world, "dead-letters replay --all", &[("TOPIC_PARTITIONS", "16")]).await.assert_code(1);
    assert!(wrong.stderr.contains("--topic-partitions 16"), "{}", wrong.stderr);
    // Not confirmed is not marked.
    let away = [("KAFKA_BROKERS", "127.0.0.1:1")];
    run_with(&world, "dead-letters replay --all", &away).await.assert_code(1);
    let too_large = Raw { value: Some(vec![0; 3 << 20]), ..good(&msg("alice", "bob", "2", "x")) };
    keep_aside(&world, 2, "TOO_LARGE", &too_large).await;
    let refused = run(&world, "dead-letters replay --all").await.assert_code(1);
    assert!(refused.stderr.contains("offset 2") && refused.stderr.contains("1 were replayed"), "{}", refused.stderr);
    eventually("the other is there", async || {
        let ends: i64 = world.ends().await.iter().sum();
        ensure(ends == 1, ends)
    })
    .await;
    let marked = "SELECT kafka_offset FROM dead_letters WHERE replayed_at IS NOT NULL";
    let marked: Vec<i64> =
        world.database().await.query(marked, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(marked, [1]);
}
