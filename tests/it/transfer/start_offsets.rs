//! Start offsets: a partition never starts above the records that the database has.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::kafka::{msg, record_of};
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{ensure, eventually};

async fn with_stored_records(name: &str) -> World {
    let world = World::new(name).await;
    let writer = world.writer();
    for i in 0..500 {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 10), &i.to_string(), "some body")));
    }
    writer.flush();
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    world
}

/// The database is restored to an earlier point. The committed offsets are ahead of it, and the missing records are
/// read again.
#[tokio::test]
async fn restored_database_is_filled_again() {
    let world = with_stored_records("restored").await;
    let earlier = "DELETE FROM messages WHERE kafka_offset >= 20; UPDATE progress SET next_offset = 20";
    world.database().await.batch_execute(earlier).await.unwrap();
    let transfer = world.transfer("again", |spec| spec);
    transfer.start().await.unwrap();
    world.wait_for_rows(500).await;
    world.assert_ordered_without_gaps().await;
    assert!(transfer.stop().await.unwrap().success());
    // To a point before the very first row.
    world.database().await.batch_execute("TRUNCATE messages, progress").await.unwrap();
    transfer.start().await.unwrap();
    world.wait_for_rows(500).await;
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.rows().await.len(), 500);
}

/// The progress row is above the end of the log: the lost offsets are counted, and the partitions continue at their
/// end offsets.
#[tokio::test]
async fn offsets_beyond_the_end_are_counted_as_lost() {
    let world = with_stored_records("lost").await;
    let database = world.database().await;
    let ends: i64 = world.end_offsets().await.iter().sum();
    let partitions = i64::from(world.partitions);
    // With the group's committed offsets, and without.
    for (name, group) in [("again", "lost"), ("other-group", "lost-other")] {
        database.execute("UPDATE progress SET next_offset = 100000", &[]).await.unwrap();
        let transfer = world.transfer(name, |spec| spec.env("GROUP_ID", group));
        transfer.start().await.unwrap();
        eventually("each lost offset is counted, and each row is lowered", async || {
            let lost = transfer.metric("msg_transfer_lost_offsets_total").await?;
            let next = "SELECT sum(next_offset)::bigint FROM progress";
            let next: i64 = database.query_one(next, &[]).await?.get(0);
            let expected = ((100_000 * partitions - ends) as f64, ends);
            ensure((lost, next) == expected, format!("{lost} lost, progress {next}, not {expected:?}"))
        })
        .await;
        assert!(transfer.stop().await.unwrap().success());
    }
    assert_eq!(world.rows().await.len(), 500);
}

/// The database is restored to an earlier point under a running transfer, which reads the missing records again
/// without a restart.
#[tokio::test]
async fn database_restored_under_a_running_transfer_is_filled_again() {
    let (stack, folder) = own_stack("restored_running").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "restored_running", 4);
    world.create(&stack).await;
    let transfer = world.running_transfer().await;
    let writer = world.writer();
    let send = |from: usize, to: usize| {
        for i in from..to {
            writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 10), &i.to_string(), "some body")));
        }
        writer.flush();
    };
    send(0, 1000);
    world.wait_for_all_committed().await;
    stack.postgres().stop().await;
    let data = data_folder(folder.path());
    let copy = folder.path().join("copy");
    copy_folder(&data, &copy);
    stack.postgres().start().await.unwrap();
    send(1000, 3000);
    world.wait_for_all_committed().await;
    world.wait_for_rows(3000).await;
    stack.postgres().stop().await;
    std::fs::remove_dir_all(&data).unwrap();
    copy_folder(&copy, &data);
    stack.postgres().start().await.unwrap();
    send(3000, 3100);
    world.wait_for_rows(3100).await;
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), 3100, "P1, P2");
    world.assert_ordered_without_gaps().await;
    // 2,000 rows were inserted twice, so the database really was restored.
    let metrics = transfer.metrics().await.unwrap();
    assert!(metrics.contains("msg_transfer_stored_messages_total 5100"), "{metrics}");
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

/// The server's data folder, somewhere below this folder.
fn data_folder(below: &Path) -> PathBuf {
    let mut folders = vec![below.to_owned()];
    while let Some(folder) = folders.pop() {
        if folder.join("PG_VERSION").exists() {
            return folder;
        }
        let entries = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
        folders.extend(entries.filter(|path| path.is_dir()));
    }
    panic!("no server below {}", below.display());
}

/// Copies owners and permissions too, because the server checks them.
pub(super) fn copy_folder(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}
