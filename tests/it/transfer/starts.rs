//! Where a partition starts: never past what the database has.

use crate::support::kafka::{good, msg};
use crate::support::world::World;
use crate::support::{ensure, eventually};

async fn stored_once(name: &str) -> World {
    let world = World::new(name).await;
    let writer = world.writer();
    for i in 0..500 {
        writer.put(&good(&msg("a", &format!("inbox-{}", i % 10), &i.to_string(), "some body")));
    }
    writer.flush();
    let transfer = world.running_transfer().await;
    world.all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    world
}

/// The database is put back to an earlier point: Kafka's offsets are ahead of it, and what it lacks is read again.
#[tokio::test]
async fn a_database_restored_to_an_earlier_point_is_filled_again() {
    let world = stored_once("restored").await;
    let earlier = "DELETE FROM messages WHERE kafka_offset >= 20; UPDATE progress SET next_offset = 20";
    world.database().await.batch_execute(earlier).await.unwrap();
    let transfer = world.transfer("again", |spec| spec);
    transfer.start().await.unwrap();
    world.rows_reach(500).await;
    world.assert_ordered_without_gaps().await;
    assert!(transfer.stop().await.unwrap().success());
    // To before the very first row.
    world.database().await.batch_execute("TRUNCATE messages, progress").await.unwrap();
    transfer.start().await.unwrap();
    world.rows_reach(500).await;
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.rows().await.len(), 500);
}

/// The offset to start with is beyond the log's end: nothing is guessed, the partitions stand still and say so.
#[tokio::test]
async fn what_kafka_has_lost_is_told_and_nothing_is_guessed() {
    let world = stored_once("lost").await;
    world.database().await.execute("UPDATE progress SET next_offset = 100000", &[]).await.unwrap();
    world.database().await.execute("DELETE FROM messages", &[]).await.unwrap();
    // Committed offsets are lower, so they count: all is well.
    let transfer = world.transfer("again", |spec| spec);
    transfer.start().await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
    // Without them the row alone counts.
    let other = world.transfer("other-group", |spec| spec.env("GROUP_ID", "lost-other"));
    world.database().await.execute("UPDATE progress SET next_offset = 100000", &[]).await.unwrap();
    other.launch().unwrap();
    eventually("it says what is missing", async || {
        let (status, body) = msg_common::admin::probe(other.spec().admin.unwrap(), "/readyz").await?;
        ensure(status == 503 && body.contains("offset 100000 is wanted"), body)
    })
    .await;
    assert!(other.stop().await.unwrap().success());
}
