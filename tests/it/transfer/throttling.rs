//! A partition that has used up its share of the limits is throttled, and the others continue.

use crate::support::kafka::{msg, record_of};
use crate::support::transfer::{metric, short_session};
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// One inbox is blocked, so its lane does not continue and its partition is throttled. The partition is reassigned in
/// this state, and each owner resumes it where it was.
#[tokio::test]
async fn throttled_partition_can_be_reassigned() {
    let world = World::new("throttled").await;
    let writer = world.writer();
    let spec = |spec| {
        let spec = short_session(spec).env("DATABASE_STATEMENT_TIMEOUT", "60s").env("LANES", 4);
        spec.env("MAX_PARTITION_INFLIGHT_RECORDS", 100).env("MAX_INFLIGHT_RECORDS", 800)
    };
    let first = world.transfer("first", spec);
    first.start().await.unwrap();

    // Another session has inserted the next row of the inbox in an open transaction.
    let mut other_session = world.database().await;
    let lock = other_session.transaction().await.unwrap();
    let row = "INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content,
                                     send_time, kafka_partition, kafka_offset)
               VALUES ('stuck', 1, gen_random_uuid(), 'x', 'x', 1, 'x', '', now(), 0, 0)";
    lock.execute(row, &[]).await.unwrap();
    for i in 0..2000 {
        writer.put_to(0, &record_of(&msg("a", "stuck", &i.to_string(), "some body")));
    }
    writer.flush();
    eventually("the partition is throttled", async || {
        let throttled = metric(&first, "msg_transfer_throttled_partitions").await;
        ensure(throttled >= 1.0, throttled)
    })
    .await;
    // The other partitions continue.
    for i in 0..1000 {
        for partition in 1..4 {
            writer.put_to(partition, &record_of(&msg("a", &format!("free-{partition}"), &i.to_string(), "some body")));
        }
    }
    writer.flush();
    // Inboxes that share the lane wait with it.
    let database = world.database().await;
    eventually("other inboxes are stored", async || {
        let stored: i64 = database.query_one("SELECT count(DISTINCT recv_id) FROM messages", &[]).await?.get(0);
        ensure(stored >= 1, stored)
    })
    .await;

    let second = world.transfer("second", spec);
    second.start().await.unwrap();
    assert!(first.stop().await.unwrap().success());
    eventually("the second transfer owns and throttles the partition", async || {
        let throttled = metric(&second, "msg_transfer_throttled_partitions").await;
        ensure(throttled >= 1.0, throttled)
    })
    .await;
    first.start().await.unwrap();
    assert!(second.stop().await.unwrap().success());
    lock.rollback().await.unwrap();
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), 5000, "P1, P2");
    world.assert_ordered_without_gaps().await;
    first.wait_ready(WAIT_TIMEOUT).await.unwrap();
}
