//! P7 and fairness: memory does not grow with the backlog, and one inbox does not block the others.

use std::time::Duration;

use crate::support::kafka::{msg, record_of};
use crate::support::load::{assert_stored, write_messages};
use crate::support::transfer::{metric, peak_memory_mib};
use crate::support::world::World;
use crate::support::{ensure, eventually, within};

/// One inbox has 90 % of the messages, and its rows are slow to insert: the other lanes do not wait for its lane.
#[tokio::test]
async fn hot_inbox_does_not_starve_the_other_lanes() {
    let world = World::new("starve").await;
    let transfer = world.transfer("transfer", |spec| spec.env("BATCH_RECORDS", 100));
    transfer.start().await.unwrap();
    let database = world.database().await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(0.002); RETURN NULL; END $$;
                CREATE TRIGGER slow AFTER INSERT ON messages FOR EACH ROW WHEN (NEW.recv_id = 'hot')
                EXECUTE FUNCTION slow()";
    database.batch_execute(slow).await.unwrap();
    let writer = world.writer();
    for i in 0..3600 {
        writer.put(&record_of(&msg("a", "hot", &i.to_string(), "x")));
    }
    writer.flush();
    eventually("the hot inbox is in its lane", async || {
        let inflight = metric(&transfer, "msg_transfer_inflight_records").await;
        ensure(inflight > 2000.0, inflight)
    })
    .await;
    for i in 0..400 {
        writer.put(&record_of(&msg("a", &format!("cold-{}", i % 40), &i.to_string(), "x")));
    }
    writer.flush();
    // About a quarter of the other inboxes share the lane of the hot one, and wait for it.
    let counts =
        "SELECT count(*) FILTER (WHERE recv_id = 'hot'), count(*) FILTER (WHERE recv_id <> 'hot') FROM messages";
    let hot: i64 = eventually("half of the others are stored", async || {
        let row = database.query_one(counts, &[]).await?;
        let (hot, cold): (i64, i64) = (row.get(0), row.get(1));
        ensure(cold >= 200, format!("{hot} hot, {cold} cold"))?;
        Ok(hot)
    })
    .await;
    assert!(hot < 1800, "{hot} of the hot inbox's 3,600 messages were stored before half of the others");
    database.batch_execute("DROP TRIGGER slow ON messages").await.unwrap();
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), 4000);
    world.assert_ordered_without_gaps().await;
}

/// A backlog of 200 MB is stored by a process that may have 4 MB in flight.
#[tokio::test]
async fn memory_does_not_grow_with_the_backlog() {
    let world = World::new("backlog").await;
    let writer = world.writer();
    const COUNT: usize = 50_000;
    for i in 0..COUNT {
        // Every 5,000th message has 1 MiB, the others are small.
        let body = if i % 5000 == 4999 { vec![7; 1 << 20] } else { vec![7; 4000] };
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 100), &i.to_string(), body)));
    }
    writer.flush();
    let transfer = world.transfer("transfer", |spec| {
        spec.env("MAX_INFLIGHT_BYTES", "4MiB").env("MAX_INFLIGHT_RECORDS", 1000).env("BATCH_BYTES", "1MiB")
    });
    transfer.start().await.unwrap();
    world.wait_for_all_committed().await;
    let peak = peak_memory_mib(&transfer);
    assert!(peak < 80, "P7: {peak} MiB for a backlog of 200");
    let query = "SELECT count(*), sum(length(content)), bool_and(seq = client_msg_id::bigint / 100 + 1) FROM messages";
    let row = world.database().await.query_one(query, &[]).await.unwrap();
    let (count, bytes, in_order): (i64, i64, bool) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((count, bytes, in_order), (COUNT as i64, (COUNT as i64 - 10) * 4000 + (10 << 20), true));
}

/// Far more inboxes than the cache holds: each `seq` is queried, and no memory is kept for it.
#[tokio::test]
async fn inboxes_beyond_the_seq_cache_need_no_memory() {
    let world = World::new("inboxes").await;
    const COUNT: i64 = 500_000;
    const INBOXES: i64 = 500_000;
    write_messages(&world.writer(), 0, COUNT, INBOXES);
    let transfer =
        world.transfer("transfer", |spec| spec.env("SEQ_CACHE_INBOXES", 1000).env("MAX_INFLIGHT_RECORDS", 5000));
    transfer.start().await.unwrap();
    world.wait_for_all_committed().await;
    let peak = peak_memory_mib(&transfer);
    assert_stored(&world, COUNT, INBOXES).await;
    assert!(peak < 80, "P7: {peak} MiB");
}

/// Far more partitions than deployments have: one member finds, fetches and commits all of them.
#[tokio::test]
async fn one_member_stores_a_thousand_partitions() {
    let stack = crate::support::stack::stack().await;
    let world = World::on(stack, "thousand", 1000);
    world.create(stack).await;
    let writer = world.writer();
    for partition in 0..world.partitions {
        for i in 0..3 {
            writer.put_to(partition, &record_of(&msg("a", &format!("inbox-{partition}"), &i.to_string(), "x")));
        }
    }
    writer.flush();
    let transfer = world.running_transfer().await;
    within(Duration::from_secs(30), "everything is committed", async || {
        let committed = world.committed_offsets().await;
        ensure(committed == [3; 1000], committed.iter().sum::<i64>())
    })
    .await;
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.rows().await.len(), 3000);
    let peak = peak_memory_mib(&transfer);
    assert!(peak < 150, "P7: {peak} MiB");
    assert!(transfer.stop().await.unwrap().success());
}
