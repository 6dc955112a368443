//! When the transfer fetches (ADR 9): a lone record immediately, and a backlog in large steps.

use crate::support::WAIT_TIMEOUT;
use crate::support::kafka::{msg, record_of};
use crate::support::load::write_messages;
use crate::support::stack::stack;
use crate::support::transfer::metric;
use crate::support::world::World;

/// Each record ends a fetch that could wait for 30 s. If one had to wait for the end of its fetch, the test would need
/// longer than its deadline. One partition: several could start a fetch one after the other.
#[tokio::test]
async fn lone_record_is_stored_before_its_fetch_times_out() {
    let stack = stack().await;
    let world = World::on(stack, "lone", 1);
    world.create(stack).await;
    let transfer = world.transfer("transfer", |spec| spec.env("KAFKA_PROPERTIES", "fetch.wait.max.ms=30000"));
    transfer.start().await.unwrap();
    let writer = world.writer();
    let one_by_one = async {
        for i in 1..=20 {
            writer.put(&record_of(&msg("a", "lone", &i.to_string(), "x")));
            writer.flush();
            world.wait_for_rows(i).await;
        }
    };
    let stored = tokio::time::timeout(WAIT_TIMEOUT, one_by_one).await;
    assert!(stored.is_ok(), "only {} of 20 rows within {WAIT_TIMEOUT:?}", world.rows().await.len());
}

/// Although one record is enough for a response, fetches and batches grow with the load.
#[tokio::test]
async fn backlog_is_stored_in_large_batches() {
    let world = World::new("large_steps").await;
    const COUNT: i64 = 100_000;
    write_messages(&world.writer(), 0, COUNT, 1000);
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    let [rows, batches] = [
        metric(&transfer, "msg_transfer_batch_rows_sum").await,
        metric(&transfer, "msg_transfer_batch_rows_count").await,
    ];
    assert_eq!(rows, COUNT as f64);
    assert!(rows / batches >= 500.0, "{rows} rows in {batches} batches");
}
