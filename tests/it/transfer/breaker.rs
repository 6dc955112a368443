//! The limit on dead letters: a partition stops before it has too many, skips nothing, and goes on from where it stood.

use msg_dev::stack::Service;

use super::commands::run;
use crate::support::kafka::{Raw, Writer, good, msg};
use crate::support::transfer::not_ready_because;
use crate::support::world::World;
use crate::support::{PATIENCE, ensure, eventually};

const LIMIT: usize = 5;

fn limited(world: &World, name: &str, limit: usize) -> Service {
    world.transfer(name, |spec| {
        spec.env("DEAD_LETTER_LIMIT", limit).env("DEAD_LETTER_PERCENT", 0).env("BATCH_RECORDS", 3)
    })
}

/// A good record, then a broken one, and so on, all to partition 1; one good one to each of the others at the end.
fn write(writer: &Writer, from: usize, count: usize) {
    for i in from..from + count {
        writer.put_to(1, &good(&msg("a", "inbox-of-1", &i.to_string(), "some body")));
        writer.put_to(1, &Raw { key: Some(b"k".to_vec()), value: Some(b"not a message".to_vec()), version: Some("1") });
    }
    for partition in [0, 2, 3] {
        writer.put_to(partition, &good(&msg("a", &format!("inbox-of-{partition}"), &from.to_string(), "some body")));
    }
    writer.flush();
}

async fn stands_still(transfer: &Service) {
    not_ready_because(transfer, &["partition 1", "would be dead letters"]).await;
}

#[tokio::test]
async fn too_many_dead_letters_stop_the_partition_until_it_is_told_to_go_on() {
    let world = World::new("breaker").await;
    let writer = world.writer();
    let transfer = limited(&world, "first", LIMIT);
    transfer.start().await.unwrap();
    write(&writer, 0, 20);
    stands_still(&transfer).await;
    world.rows_reach(3).await;
    let dead = world.dead_letters().await.len();
    assert!(dead <= LIMIT, "{dead} dead letters, the limit is {LIMIT}");
    world.assert_offsets_do_not_lead(&world.committed().await).await;

    // A restart is no permission.
    assert!(transfer.stop().await.unwrap().success());
    transfer.launch().unwrap();
    stands_still(&transfer).await;
    assert!(world.dead_letters().await.len() <= LIMIT);

    // Told to go on, it goes on from where it stood, as far as the limit reaches again; told again and again, to the end.
    let ends = world.ends().await;
    eventually("everything is stored or kept aside", async || {
        let (_, reasons) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await?;
        if reasons.contains("would be dead letters") {
            run(&world, "resume --topic-partition 1").await.assert_code(0);
        }
        let committed = world.committed().await;
        ensure(committed == ends, format!("{committed:?} of {ends:?}: {reasons}"))
    })
    .await;
    assert_eq!(world.dead_letters().await.len(), 20);
    assert_eq!(world.rows().await.len(), 23, "P1");
    world.assert_ordered_without_gaps().await;
    transfer.wait_ready(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_raised_limit_lets_the_partition_go_on_from_where_it_stood() {
    let world = World::new("raised").await;
    let writer = world.writer();
    let strict = limited(&world, "strict", LIMIT);
    strict.start().await.unwrap();
    write(&writer, 0, 20);
    stands_still(&strict).await;
    assert!(strict.stop().await.unwrap().success());
    let lenient = limited(&world, "lenient", 1000);
    lenient.start().await.unwrap();
    world.all_committed().await;
    assert_eq!(world.dead_letters().await.len(), 20);
    assert_eq!(world.rows().await.len(), 23, "P1");
    world.assert_ordered_without_gaps().await;
}

/// Callers make conflicts, at will: those stop nobody.
#[tokio::test]
async fn conflicts_do_not_count() {
    let world = World::new("many_conflicts").await;
    let writer = world.writer();
    let transfer = limited(&world, "transfer", LIMIT);
    transfer.start().await.unwrap();
    for i in 0..20 {
        writer.put_to(1, &good(&msg("a", "inbox-of-1", "the same id", format!("body {i}"))));
    }
    writer.flush();
    world.all_committed().await;
    assert_eq!((world.rows().await.len(), world.dead_letters().await.len()), (1, 19));
    assert!(transfer.is_ready().await);
}

/// All at once, in one batch: it is told to go on once, and the whole of it passes.
#[tokio::test]
async fn a_batch_with_more_than_the_limit_passes_once_somebody_has_looked() {
    let world = World::new("at_once").await;
    let transfer =
        world.transfer("transfer", |spec| spec.env("DEAD_LETTER_LIMIT", LIMIT).env("DEAD_LETTER_PERCENT", 0));
    write(&world.writer(), 0, 20);
    transfer.launch().unwrap();
    stands_still(&transfer).await;
    assert!(world.dead_letters().await.len() <= LIMIT);
    run(&world, "resume --topic-partition 1").await.assert_code(0);
    world.all_committed().await;
    assert_eq!((world.rows().await.len(), world.dead_letters().await.len()), (23, 20), "P1");
}

/// A rule that refuses every message and not the canary looks like bad records: the limit is what stops it.
#[tokio::test]
async fn a_migration_that_only_the_canary_passes_stops_at_the_limit() {
    let world = World::new("sly").await;
    let transfer = limited(&world, "transfer", LIMIT);
    transfer.start().await.unwrap();
    let database = world.database().await;
    database.batch_execute("ALTER TABLE messages ADD CONSTRAINT sly CHECK (octet_length(content) < 3)").await.unwrap();
    let writer = world.writer();
    for i in 0..200 {
        writer.put_to(1, &good(&msg("a", "inbox", &i.to_string(), "some body")));
    }
    writer.flush();
    stands_still(&transfer).await;
    let kept_aside = world.dead_letters().await.len();
    assert!(kept_aside <= LIMIT, "{kept_aside} kept aside");
    database.batch_execute("ALTER TABLE messages DROP CONSTRAINT sly").await.unwrap();
    run(&world, "resume --topic-partition 1").await.assert_code(0);
    world.all_committed().await;
    assert_eq!(world.rows().await.len() + world.dead_letters().await.len(), 200, "P1");
    assert_eq!(world.dead_letters().await.len(), kept_aside);
    run(&world, "dead-letters replay --all").await.assert_code(0);
    world.all_committed().await;
    world.rows_reach(200).await;
}
