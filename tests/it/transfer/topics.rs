//! Changes of the topic under a transfer: partitions are added, records are deleted, the topic is recreated.

use msg_stack::Stack;

use crate::support::admin::{delete_records, set_partition_count};
use crate::support::kafka::{msg, record_of};
use crate::support::load::{Load, assert_in_order, write_messages};
use crate::support::stack::{own_stack, stack};
use crate::support::transfer::{metric, wait_not_ready};
use crate::support::world::{World, count_rows};
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// A partition that is added under load is fetched from its first record on, no matter how late it is found.
#[tokio::test]
async fn added_partition_is_stored_from_its_start() {
    let mut world = World::new("grown").await;
    let transfer = world.running_transfer().await;
    let load = Load::start(world.writer(), 20);
    world.wait_for_more_rows(300).await;
    set_partition_count(world.brokers(), world.topic(), 5).await;
    world.partitions = 5;
    let writer = world.writer();
    for i in 0..1000 {
        writer.put_to(4, &record_of(&msg("a", "new", &i.to_string(), "x")));
    }
    writer.flush();
    assert_eq!(world.committed_offsets().await[4], 0, "the partition was not found yet");
    let database = world.database().await;
    let stored = "SELECT count(*), min(seq), max(seq), min(kafka_offset), max(kafka_offset)
                  FROM messages WHERE recv_id = 'new'";
    eventually("the new partition is stored", async || {
        let row = database.query_one(stored, &[]).await?;
        let found: (i64, Option<i64>, Option<i64>) = (row.get(0), row.get(3), row.get(4));
        ensure(found == (1000, Some(0), Some(999)), format!("{found:?}"))
    })
    .await;
    world.assert_ordered_without_gaps().await;
    database.execute("DELETE FROM messages WHERE recv_id = 'new'", &[]).await.unwrap();
    load.finish(&world).await;
    assert!(transfer.stop().await.unwrap().success());
}

/// Retention was shorter than the outage: only an operator can accept the loss.
#[tokio::test]
async fn deleted_unstored_records_halt_their_partition_alone() {
    let world = World::new("deleted").await;
    let writer = world.writer();
    let put = |partition, from: i64, put: i64| {
        for i in from..put {
            writer.put_to(partition, &record_of(&msg("a", &format!("inbox-{partition}"), &i.to_string(), "x")));
        }
        writer.flush();
    };
    put(1, 0, 100);
    put(2, 0, 100);
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    put(1, 100, 200);
    delete_records(world.brokers(), world.topic(), 1, 150).await;
    put(2, 100, 200);
    transfer.launch().unwrap();
    wait_not_ready(&transfer, &["partition 1", "offset 100 is wanted", "oldest record kept is 150"]).await;
    eventually("the other partition continues", async || {
        let committed = world.committed_offsets().await;
        ensure(committed[2] == 200, format!("{committed:?}"))
    })
    .await;
    assert_eq!(world.committed_offsets().await[1], 100, "P5");
    assert_eq!(world.rows().await.len(), 300);
    assert_eq!(metric(&transfer, "msg_transfer_halted_partitions").await, 1.0);
    assert!(transfer.stop().await.unwrap().success());
    let accepting = world.transfer("accepting", |spec| spec.arg("--start-at-oldest"));
    accepting.start().await.unwrap();
    world.wait_for_all_committed().await;
    world.assert_ordered_without_gaps().await;
    let offsets: Vec<i64> = world.rows().await.iter().filter(|row| row.partition == 1).map(|row| row.offset).collect();
    let expected: Vec<i64> = (0..100).chain(150..200).collect();
    assert_eq!(offsets, expected, "the oldest remaining record follows the stored ones");
}

/// Records of a running transfer are deleted before they are fetched.
#[tokio::test]
async fn records_deleted_while_running_halt_their_partition_alone() {
    let world = World::new("deleted_running").await;
    let writer = world.writer();
    let transfer = world.transfer("transfer", |spec| {
        // Few records are in flight, and one fetch is ahead, so most of them are not fetched yet when the lock ends.
        spec.env("MAX_INFLIGHT_RECORDS", 2).env("DATABASE_STATEMENT_TIMEOUT", "60s")
    });
    transfer.start().await.unwrap();
    let locker = world.database().await;
    locker.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await.unwrap();
    const COUNT: i64 = 80;
    for i in 0..COUNT {
        writer.put_to(1, &record_of(&msg("a", "large", &i.to_string(), vec![7; 500_000])));
    }
    writer.flush();
    eventually("the limit of records in flight is reached", async || {
        let inflight = metric(&transfer, "msg_transfer_inflight_records").await;
        ensure(inflight >= 2.0, inflight)
    })
    .await;
    delete_records(world.brokers(), world.topic(), 1, COUNT - 1).await;
    locker.batch_execute("COMMIT").await.unwrap();
    wait_not_ready(&transfer, &["partition 1", "oldest record kept is 79"]).await;
    writer.put_to(2, &record_of(&msg("a", "other", "1", "x")));
    writer.flush();
    eventually("the other partition continues", async || {
        let committed = world.committed_offsets().await;
        ensure(committed[2] == 1, format!("{committed:?}"))
    })
    .await;
    // The fetched records are stored, in order, and no record after the deleted ones is.
    world.assert_ordered_without_gaps().await;
    let offsets: Vec<i64> = world.rows().await.iter().filter(|row| row.partition == 1).map(|row| row.offset).collect();
    let expected: Vec<i64> = (0..).take(offsets.len()).collect();
    assert_eq!(offsets, expected);
    // P7: the records in flight, and a fetch ahead of them with one of the producer's batches, which has one or two.
    assert!(offsets.len() <= 8, "{} records of 500 kB were fetched while 2 may be in flight", offsets.len());
    let committed = world.committed_offsets().await;
    world.assert_offsets_do_not_lead(&committed).await;
}

/// The new topic's offsets start at 0, below the old topic's committed offsets and progress rows.
#[tokio::test]
async fn topic_recreated_while_stopped_is_stored_from_its_start() {
    let world = World::new("recreated").await;
    write_messages(&world.writer(), 0, 500, 10);
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    recreate_topic(stack().await, &world).await;
    // More records than the old topic had: its offsets are valid in the new one too.
    write_messages(&world.writer(), 500, 1500, 10);
    transfer.start().await.unwrap();
    assert_stored_from_the_start(&world, 1500).await;
}

/// The same under a running transfer.
#[tokio::test]
async fn topic_recreated_while_running_is_stored_from_its_start() {
    let world = World::new("recreated_running").await;
    write_messages(&world.writer(), 0, 500, 10);
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    recreate_topic(stack().await, &world).await;
    write_messages(&world.writer(), 500, 1500, 10);
    assert_stored_from_the_start(&world, 1500).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
}

/// The leader epochs of the new topic start at 0 too, below those that librdkafka knows. It considers the metadata
/// outdated, and its consumer would retry indefinitely.
#[tokio::test]
async fn topic_recreated_with_lower_leader_epochs_is_stored() {
    let (stack, _folder) = own_stack("recreated_epochs").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "recreated_epochs", 4);
    world.create(&stack).await;
    write_messages(&world.writer(), 0, 500, 10);
    stack.kafka().stop_broker(1).await.unwrap();
    stack.kafka().start_broker(1).await.unwrap();
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    recreate_topic(&stack, &world).await;
    write_messages(&world.writer(), 500, 1500, 10);
    assert_stored_from_the_start(&world, 1500).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert_eq!(metric(&transfer, "msg_transfer_client_restarts_total").await, 1.0);
    assert!(transfer.stop().await.unwrap().success());
}

pub(crate) async fn recreate_topic(stack: &Stack, world: &World) {
    stack.kafka().delete_topic(world.topic()).await.unwrap();
    // Kafka releases the name shortly after it has confirmed the deletion.
    eventually("the topic is recreated", async || {
        stack.kafka().create_topic(world.topic(), world.partitions, &[]).await.map_err(Into::into)
    })
    .await;
}

async fn assert_stored_from_the_start(world: &World, count: i64) {
    world.wait_for_rows(count).await;
    world.wait_for_all_committed().await;
    let database = world.database().await;
    assert_eq!(count_rows(&database, "messages").await.unwrap(), count, "P1, P2");
    assert_in_order(&database, 10).await;
    let topics: i64 = database.query_one("SELECT count(DISTINCT topic_id) FROM progress", &[]).await.unwrap().get(0);
    assert_eq!(topics, 2, "each topic has progress rows of its own");
}
