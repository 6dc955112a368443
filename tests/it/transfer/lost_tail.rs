//! Kafka loses the tail of a partition's log (a broker restored from a copy, a power loss): what is accepted after that is stored,
//! and what was lost is counted.

use std::path::{Path, PathBuf};
use std::process::Command;

use msg_dev::stack::{Service, Stack};

use crate::support::kafka::{Raw, good, msg};
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{ensure, eventually};

/// One inbox in one partition: 80 records, a copy of the log, and 20 more, all of them stored.
struct Cut {
    stack: Stack,
    folder: tempfile::TempDir,
    world: World,
    transfer: Service,
}

impl Cut {
    async fn new(name: &str) -> Cut {
        let (stack, folder) = own_stack(name).await;
        stack.launch().await.unwrap();
        let world = World::on(&stack, name, 1);
        world.create(&stack).await;
        let transfer = world.running_transfer().await;
        let cut = Cut { stack, folder, world, transfer };
        cut.send(0..80);
        cut.world.all_committed().await;
        cut.stack.kafka().stop().await;
        copy(&cut.log(), &cut.copy());
        cut.stack.kafka().start().await.unwrap();
        cut.send(80..99);
        cut.send_broken("first");
        cut.world.rows_reach(99).await;
        cut.world.all_committed().await;
        cut
    }

    /// The log is what it was after 80 records.
    async fn lose_tail(&self) {
        self.stack.kafka().stop().await;
        std::fs::remove_dir_all(self.log()).unwrap();
        copy(&self.copy(), &self.log());
        self.stack.kafka().start().await.unwrap();
    }

    fn send(&self, numbers: std::ops::Range<usize>) {
        // A new producer: the broker forgot the old one's last numbers too.
        let writer = self.world.writer();
        for i in numbers {
            writer.put(&good(&msg("a", "inbox", &i.to_string(), "some body")));
        }
        writer.flush();
    }

    fn send_broken(&self, value: &str) {
        let writer = self.world.writer();
        writer.put(&Raw { key: Some(b"inbox".to_vec()), value: Some(value.as_bytes().to_vec()), version: Some("1") });
        writer.flush();
    }

    fn log(&self) -> PathBuf {
        self.stack.kafka().data(1).unwrap().join(format!("{}-0", self.world.topic()))
    }

    fn copy(&self) -> PathBuf {
        self.folder.path().join("copy")
    }

    async fn counts_20_lost(&self) {
        eventually("the lost offsets are counted", async || {
            let metrics = self.transfer.metrics().await?;
            let counted = metrics.contains("msg_transfer_lost_offsets_total{partition=\"0\"} 20\n");
            ensure(counted, metrics)
        })
        .await;
        let log = std::fs::read_to_string(self.transfer.log()).unwrap();
        let line = log.lines().find(|line| line.contains("kafka lost the tail of the log")).expect("it is logged");
        for part in ["ERROR", "partition=0", "first_lost=80", "last_lost=99", "count=20"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    /// Everything that was accepted after the loss is there, once and in order; and what was stored before stays.
    async fn all_is_stored(self, sent_again: std::ops::Range<usize>) {
        let stored = i64::try_from(99 + sent_again.len()).unwrap();
        self.world.rows_reach(stored).await;
        self.world.all_committed().await;
        let rows = self.world.rows().await;
        let numbers: Vec<usize> = rows.iter().map(|row| row.client_msg_id.parse().unwrap()).collect();
        assert_eq!(numbers, (0..99).chain(sent_again).collect::<Vec<_>>(), "P1, P2, P3");
        let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
        assert_eq!(seqs, (1..=stored).collect::<Vec<_>>(), "P4");
        let end = self.world.ends().await[0];
        let next = "SELECT next_offset FROM progress";
        let next: i64 = self.world.database().await.query_one(next, &[]).await.unwrap().get(0);
        assert_eq!(next, end);
        assert!(self.transfer.stop().await.unwrap().success());
        self.stack.stop().await;
    }
}

/// A restart finds a log that ends above the progress row again: only the leader epoch tells that it is another one. A dead letter
/// at an offset that had one is kept too.
#[tokio::test]
async fn records_above_a_lost_tail_are_stored_after_a_restart() {
    let cut = Cut::new("tail-regrown").await;
    assert!(cut.transfer.stop().await.unwrap().success());
    cut.lose_tail().await;
    cut.send(100..119);
    cut.send_broken("second");
    cut.send(119..139);
    cut.transfer.start().await.unwrap();
    cut.counts_20_lost().await;
    cut.world.rows_reach(99 + 39).await;
    cut.world.all_committed().await;
    let values: Vec<_> = cut.world.dead_letters().await.into_iter().map(|(_, _, value)| value.unwrap()).collect();
    assert_eq!(values, [b"first".to_vec(), b"second".to_vec()], "both were at offset 99");
    cut.all_is_stored(100..139).await;
}

/// The transfer runs all the time: its position is in a log that was replaced.
#[tokio::test]
async fn running_transfer_continues_after_a_lost_tail() {
    let cut = Cut::new("tail-running").await;
    cut.lose_tail().await;
    cut.send(100..140);
    cut.counts_20_lost().await;
    cut.all_is_stored(100..140).await;
}

/// The log still ends below the progress row when the transfer finds it, and what comes later is new.
#[tokio::test]
async fn lost_tail_is_found_before_new_records_come() {
    let cut = Cut::new("tail-short").await;
    cut.lose_tail().await;
    cut.counts_20_lost().await;
    cut.send(100..140);
    cut.all_is_stored(100..140).await;
}

/// A row of a version that wrote no leader epoch: the end alone tells, and all of the log is read again.
#[tokio::test]
async fn lost_tail_is_found_by_number_without_a_leader_epoch() {
    let cut = Cut::new("tail-number").await;
    assert!(cut.transfer.stop().await.unwrap().success());
    let forget = "UPDATE progress SET leader_epoch = NULL; UPDATE dead_letters SET leader_epoch = -1";
    cut.world.database().await.batch_execute(forget).await.unwrap();
    cut.lose_tail().await;
    cut.transfer.start().await.unwrap();
    cut.counts_20_lost().await;
    cut.send(100..140);
    cut.all_is_stored(100..140).await;
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}
