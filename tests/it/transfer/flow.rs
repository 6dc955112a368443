//! A partition that has more than its part of the limits is held back, and the others go on.

use crate::support::kafka::{good, msg};
use crate::support::transfer::{metric, short_session};
use crate::support::world::World;
use crate::support::{PATIENCE, ensure, eventually};

/// One inbox cannot be written, so its lane stands and its partition is held back. It is revoked like that, and comes back,
/// and whoever has it then goes on where it was.
#[tokio::test]
async fn a_partition_held_back_is_given_away_and_comes_back() {
    let world = World::new("held").await;
    let writer = world.writer();
    let spec = |spec| {
        let spec = short_session(spec).env("DATABASE_STATEMENT_TIMEOUT", "60s").env("LANES", 4);
        spec.env("MAX_PARTITION_INFLIGHT_RECORDS", 100).env("MAX_INFLIGHT_RECORDS", 800)
    };
    let first = world.transfer("first", spec);
    first.start().await.unwrap();

    // Somebody else has the next row of the inbox in an open transaction.
    let mut blocker = world.database().await;
    let block = blocker.transaction().await.unwrap();
    let row = "INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content,
                                     send_time, kafka_partition, kafka_offset)
               VALUES ('stuck', 1, gen_random_uuid(), 'x', 'x', 1, 'x', '', now(), 0, 0)";
    block.execute(row, &[]).await.unwrap();
    for i in 0..2000 {
        writer.put_to(0, &good(&msg("a", "stuck", &i.to_string(), "some body")));
    }
    writer.flush();
    eventually("the partition is held back", async || {
        let held = metric(&first, "msg_transfer_throttled_partitions").await;
        ensure(held >= 1.0, held)
    })
    .await;
    // The others go on.
    for i in 0..1000 {
        for partition in 1..4 {
            writer.put_to(partition, &good(&msg("a", &format!("free-{partition}"), &i.to_string(), "some body")));
        }
    }
    writer.flush();
    // Those that share the lane wait with it.
    let database = world.database().await;
    eventually("the others are stored", async || {
        let stored: i64 = database.query_one("SELECT count(DISTINCT recv_id) FROM messages", &[]).await?.get(0);
        ensure(stored >= 1, stored)
    })
    .await;

    let second = world.transfer("second", spec);
    second.start().await.unwrap();
    assert!(first.stop().await.unwrap().success());
    eventually("the other one has it, and holds it back", async || {
        let held = metric(&second, "msg_transfer_throttled_partitions").await;
        ensure(held >= 1.0, held)
    })
    .await;
    first.start().await.unwrap();
    assert!(second.stop().await.unwrap().success());
    block.rollback().await.unwrap();
    world.all_committed().await;
    assert_eq!(world.rows().await.len(), 5000, "P1, P2");
    world.assert_ordered_without_gaps().await;
    first.wait_ready(PATIENCE).await.unwrap();
}
