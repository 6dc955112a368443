//! Kafka loses the tail of a partition's log, as after a power loss or when a broker is restored from a copy: records
//! accepted after that are stored, and the lost offsets are counted.

use std::path::PathBuf;

use msg_stack::{Service, Stack};

use super::start_offsets::copy_folder;
use crate::support::kafka::{RawRecord, msg, record_of};
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{ensure, eventually};

/// One inbox in one partition: 80 records, a copy of the log, and 20 more records. All of them are stored.
struct LostTail {
    stack: Stack,
    folder: tempfile::TempDir,
    world: World,
    transfer: Service,
}

impl LostTail {
    async fn new(name: &str) -> LostTail {
        let (stack, folder) = own_stack(name).await;
        stack.launch().await.unwrap();
        let world = World::on(&stack, name, 1);
        world.create(&stack).await;
        let transfer = world.running_transfer().await;
        let tail = LostTail { stack, folder, world, transfer };
        tail.send(0..80);
        tail.world.wait_for_all_committed().await;
        tail.stack.kafka().stop().await;
        copy_folder(&tail.log(), &tail.copy());
        tail.stack.kafka().start().await.unwrap();
        tail.send(80..99);
        tail.send_broken("first");
        tail.world.wait_for_rows(99).await;
        tail.world.wait_for_all_committed().await;
        tail
    }

    /// Replaces the log by its copy with 80 records.
    async fn lose_tail(&self) {
        self.stack.kafka().stop().await;
        std::fs::remove_dir_all(self.log()).unwrap();
        copy_folder(&self.copy(), &self.log());
        self.stack.kafka().start().await.unwrap();
    }

    fn send(&self, numbers: std::ops::Range<usize>) {
        // A new producer, because the broker has lost the last sequence numbers of the old one too.
        let writer = self.world.writer();
        for i in numbers {
            writer.put(&record_of(&msg("a", "inbox", &i.to_string(), "some body")));
        }
        writer.flush();
    }

    fn send_broken(&self, value: &str) {
        let writer = self.world.writer();
        writer.put(&RawRecord {
            key: Some(b"inbox".to_vec()),
            value: Some(value.as_bytes().to_vec()),
            version: Some("1"),
        });
        writer.flush();
    }

    fn log(&self) -> PathBuf {
        self.stack.kafka().data(1).unwrap().join(format!("{}-0", self.world.topic()))
    }

    fn copy(&self) -> PathBuf {
        self.folder.path().join("copy")
    }

    async fn wait_for_20_lost(&self) {
        eventually("the lost offsets are counted", async || {
            let metrics = self.transfer.metrics().await?;
            let counted = metrics.contains("msg_transfer_lost_offsets_total{partition=\"0\"} 20\n");
            ensure(counted, metrics)
        })
        .await;
        let log = std::fs::read_to_string(self.transfer.log()).unwrap();
        let line =
            log.lines().find(|line| line.contains("kafka lost the tail of the log")).expect("the loss is logged");
        for part in ["ERROR", "partition=0", "first_lost=80", "last_lost=99", "count=20"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    /// Waits until every message accepted after the loss is stored, and checks that all rows are in order and each
    /// message has one.
    async fn assert_all_stored(self, sent_again: std::ops::Range<usize>) {
        let stored = i64::try_from(99 + sent_again.len()).unwrap();
        self.world.wait_for_rows(stored).await;
        self.world.wait_for_all_committed().await;
        let rows = self.world.rows().await;
        let numbers: Vec<usize> = rows.iter().map(|row| row.client_msg_id.parse().unwrap()).collect();
        assert_eq!(numbers, (0..99).chain(sent_again).collect::<Vec<_>>(), "P1, P2, P3");
        let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
        assert_eq!(seqs, (1..=stored).collect::<Vec<_>>(), "P4");
        let end = self.world.end_offsets().await[0];
        let next = "SELECT next_offset FROM progress";
        let next: i64 = self.world.database().await.query_one(next, &[]).await.unwrap().get(0);
        assert_eq!(next, end);
        assert!(self.transfer.stop().await.unwrap().success());
        self.stack.stop().await;
    }
}

/// After a restart the log again ends above the progress row: only the leader epoch shows that it is another log. A
/// dead letter at an offset that already had one is kept too.
#[tokio::test]
async fn records_above_a_lost_tail_are_stored_after_a_restart() {
    let tail = LostTail::new("tail-regrown").await;
    assert!(tail.transfer.stop().await.unwrap().success());
    tail.lose_tail().await;
    tail.send(100..119);
    tail.send_broken("second");
    tail.send(119..139);
    tail.transfer.start().await.unwrap();
    tail.wait_for_20_lost().await;
    tail.world.wait_for_rows(99 + 39).await;
    tail.world.wait_for_all_committed().await;
    let values: Vec<_> = tail.world.dead_letters().await.into_iter().map(|(_, _, value)| value.unwrap()).collect();
    assert_eq!(values, [b"first".to_vec(), b"second".to_vec()], "both dead letters were at offset 99");
    tail.assert_all_stored(100..139).await;
}

/// The transfer keeps running: its next offset belongs to a log that was replaced.
#[tokio::test]
async fn running_transfer_continues_after_a_lost_tail() {
    let tail = LostTail::new("tail-running").await;
    tail.lose_tail().await;
    tail.send(100..140);
    tail.wait_for_20_lost().await;
    tail.assert_all_stored(100..140).await;
}

/// The log still ends below the progress row when the transfer finds the loss; new records come later.
#[tokio::test]
async fn lost_tail_is_found_before_new_records_arrive() {
    let tail = LostTail::new("tail-short").await;
    tail.lose_tail().await;
    tail.wait_for_20_lost().await;
    tail.send(100..140);
    tail.assert_all_stored(100..140).await;
}

/// A progress row of a version that wrote no leader epoch: only the end offset shows the loss, and the whole log is
/// read again.
#[tokio::test]
async fn lost_tail_is_found_by_end_offset_without_leader_epoch() {
    let tail = LostTail::new("tail-number").await;
    assert!(tail.transfer.stop().await.unwrap().success());
    let forget = "UPDATE progress SET leader_epoch = NULL; UPDATE dead_letters SET leader_epoch = -1";
    tail.world.database().await.batch_execute(forget).await.unwrap();
    tail.lose_tail().await;
    tail.transfer.start().await.unwrap();
    tail.wait_for_20_lost().await;
    tail.send(100..140);
    tail.assert_all_stored(100..140).await;
}
