//! The dead-letter limit: a partition is halted before it has too many dead letters, skips nothing, and resumes where
//! it was halted.

use msg_stack::Service;

use super::commands::run;
use crate::support::kafka::{RawRecord, RecordWriter, msg, record_of};
use crate::support::transfer::wait_not_ready;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

const LIMIT: usize = 5;

fn limited(world: &World, name: &str, limit: usize) -> Service {
    world.transfer(name, |spec| {
        spec.env("DEAD_LETTER_LIMIT", limit).env("DEAD_LETTER_PERCENT", 0).env("BATCH_RECORDS", 3)
    })
}

/// Writes good and broken records in turns to partition 1, and at the end one good record to each other partition.
fn write(writer: &RecordWriter, from: usize, count: usize) {
    for i in from..from + count {
        writer.put_to(1, &record_of(&msg("a", "inbox-of-1", &i.to_string(), "some body")));
        writer.put_to(
            1,
            &RawRecord { key: Some(b"k".to_vec()), value: Some(b"not a message".to_vec()), version: Some("1") },
        );
    }
    for partition in [0, 2, 3] {
        writer
            .put_to(partition, &record_of(&msg("a", &format!("inbox-of-{partition}"), &from.to_string(), "some body")));
    }
    writer.flush();
}

async fn wait_until_halted(transfer: &Service) {
    wait_not_ready(transfer, &["partition 1", "would be dead letters"]).await;
}

#[tokio::test]
async fn dead_letter_limit_halts_partition_until_resume() {
    let world = World::new("breaker").await;
    let writer = world.writer();
    let transfer = limited(&world, "first", LIMIT);
    transfer.start().await.unwrap();
    write(&writer, 0, 20);
    wait_until_halted(&transfer).await;
    world.wait_for_rows(3).await;
    let dead = world.dead_letters().await.len();
    assert!(dead <= LIMIT, "{dead} dead letters, the limit is {LIMIT}");
    world.assert_offsets_do_not_lead(&world.committed_offsets().await).await;

    // A restart does not resume the partition.
    assert!(transfer.stop().await.unwrap().success());
    transfer.launch().unwrap();
    wait_until_halted(&transfer).await;
    assert!(world.dead_letters().await.len() <= LIMIT);

    // Each `resume` continues where the partition was halted, up to the next limit, until everything is stored.
    let ends = world.end_offsets().await;
    eventually("everything is stored or dead-lettered", async || {
        let (_, reasons) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await?;
        if reasons.contains("would be dead letters") {
            run(&world, "resume --topic-partition 1").await.assert_code(0);
        }
        let committed = world.committed_offsets().await;
        ensure(committed == ends, format!("{committed:?} of {ends:?}: {reasons}"))
    })
    .await;
    assert_eq!(world.dead_letters().await.len(), 20);
    assert_eq!(world.rows().await.len(), 23, "P1");
    world.assert_ordered_without_gaps().await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
}

#[tokio::test]
async fn raised_dead_letter_limit_resumes_the_partition() {
    let world = World::new("raised").await;
    let writer = world.writer();
    let low_limit = limited(&world, "strict", LIMIT);
    low_limit.start().await.unwrap();
    write(&writer, 0, 20);
    wait_until_halted(&low_limit).await;
    assert!(low_limit.stop().await.unwrap().success());
    let high_limit = limited(&world, "lenient", 1000);
    high_limit.start().await.unwrap();
    world.wait_for_all_committed().await;
    assert_eq!(world.dead_letters().await.len(), 20);
    assert_eq!(world.rows().await.len(), 23, "P1");
    world.assert_ordered_without_gaps().await;
}

/// A single caller can cause any number of conflicts, so they must halt no partition.
#[tokio::test]
async fn conflicts_do_not_count_against_the_limit() {
    let world = World::new("many_conflicts").await;
    let writer = world.writer();
    let transfer = limited(&world, "transfer", LIMIT);
    transfer.start().await.unwrap();
    for i in 0..20 {
        writer.put_to(1, &record_of(&msg("a", "inbox-of-1", "the same id", format!("body {i}"))));
    }
    writer.flush();
    world.wait_for_all_committed().await;
    assert_eq!((world.rows().await.len(), world.dead_letters().await.len()), (1, 19));
    assert!(transfer.is_ready().await);
}

/// All poison records are in one batch: one `resume` approves all of them.
#[tokio::test]
async fn batch_above_the_limit_is_stored_after_one_resume() {
    let world = World::new("one_batch").await;
    let transfer =
        world.transfer("transfer", |spec| spec.env("DEAD_LETTER_LIMIT", LIMIT).env("DEAD_LETTER_PERCENT", 0));
    write(&world.writer(), 0, 20);
    transfer.launch().unwrap();
    wait_until_halted(&transfer).await;
    assert!(world.dead_letters().await.len() <= LIMIT);
    run(&world, "resume --topic-partition 1").await.assert_code(0);
    world.wait_for_all_committed().await;
    assert_eq!((world.rows().await.len(), world.dead_letters().await.len()), (23, 20), "P1");
}

/// A constraint that rejects every message and not the canary row looks like poison records: only the limit halts the
/// partition.
#[tokio::test]
async fn constraint_that_only_the_canary_passes_halts_partition() {
    let world = World::new("canary_only").await;
    let transfer = limited(&world, "transfer", LIMIT);
    transfer.start().await.unwrap();
    let database = world.database().await;
    database.batch_execute("ALTER TABLE messages ADD CONSTRAINT tiny CHECK (octet_length(content) < 3)").await.unwrap();
    let writer = world.writer();
    for i in 0..200 {
        writer.put_to(1, &record_of(&msg("a", "inbox", &i.to_string(), "some body")));
    }
    writer.flush();
    wait_until_halted(&transfer).await;
    let dead = world.dead_letters().await.len();
    assert!(dead <= LIMIT, "{dead} dead letters");
    database.batch_execute("ALTER TABLE messages DROP CONSTRAINT tiny").await.unwrap();
    run(&world, "resume --topic-partition 1").await.assert_code(0);
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len() + world.dead_letters().await.len(), 200, "P1");
    assert_eq!(world.dead_letters().await.len(), dead);
    run(&world, "dead-letters replay --all").await.assert_code(0);
    world.wait_for_all_committed().await;
    world.wait_for_rows(200).await;
}
