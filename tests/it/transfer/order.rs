//! P1, P3 and P4: every message is stored, in order and without gaps.

use crate::support::kafka::{msg, record_of};
use crate::support::world::World;

#[tokio::test]
async fn every_message_is_stored_in_order_without_gaps() {
    let world = World::new("order").await;
    let writer = world.writer();
    // Half before the transfer starts, half while it runs.
    let send = |from: usize, to: usize| {
        for i in from..to {
            writer.put(&record_of(&msg(
                &format!("sender-{}", i % 7),
                &format!("inbox-{}", i % 50),
                &i.to_string(),
                format!("body {i}"),
            )));
        }
        writer.flush();
    };
    send(0, 3000);
    let transfer = world.running_transfer().await;
    send(3000, 6000);
    world.wait_for_rows(6000).await;
    world.assert_ordered_without_gaps().await;
    let rows = world.rows().await;
    assert_eq!(rows.len(), 6000);
    for row in &rows {
        assert_eq!(row.content, format!("body {}", row.client_msg_id).as_bytes());
        // Each inbox has every 50th message, in ascending order.
        let i: i64 = row.client_msg_id.parse().unwrap();
        assert_eq!(row.seq, i / 50 + 1, "P3: {row:?}");
    }
    assert_eq!(world.dead_letters().await, []);
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn bodies_of_every_kind_are_stored_byte_for_byte() {
    let world = World::new("bodies").await;
    let writer = world.writer();
    let bodies: Vec<Vec<u8>> =
        vec![Vec::new(), vec![0], (0..=255).collect(), "你好, Привет, مرحبا, 👩‍👩‍👧‍👦".into(), vec![0xff; 1 << 20]];
    for (i, body) in bodies.iter().enumerate() {
        writer.put(&record_of(&msg("alice", "bob", &i.to_string(), body.clone())));
    }
    writer.flush();
    let _transfer = world.running_transfer().await;
    world.wait_for_rows(bodies.len() as i64).await;
    let stored: Vec<Vec<u8>> = world.rows().await.into_iter().map(|row| row.content).collect();
    assert!(stored == bodies, "a body differs");
}

/// One inbox has nearly all messages: the batches of its lane must keep their order, and the other inboxes are stored
/// too.
#[tokio::test]
async fn hot_inbox_keeps_its_order() {
    let world = World::new("hot").await;
    let writer = world.writer();
    for i in 0..20_000 {
        let inbox = if i % 10 == 0 { format!("cold-{}", i % 100) } else { "hot".to_owned() };
        writer.put(&record_of(&msg("a", &inbox, &i.to_string(), "x")));
    }
    writer.flush();
    let _transfer = world.running_transfer().await;
    world.wait_for_rows(20_000).await;
    world.assert_ordered_without_gaps().await;
    let hot: Vec<i64> = world
        .rows()
        .await
        .iter()
        .filter(|row| row.recv_id == "hot")
        .map(|row| row.client_msg_id.parse().unwrap())
        .collect();
    assert_eq!(hot.len(), 18_000);
    assert!(hot.is_sorted(), "P3");
}

/// A transfer that just started has no `seq` in memory: it reads those of all inboxes of a batch together.
#[tokio::test]
async fn restarted_transfer_continues_each_inbox_of_a_batch() {
    let world = World::new("continued").await;
    let writer = world.writer();
    // The n-th inbox has n messages, so no two have the same last `seq`, and one is empty until the restart.
    for (inbox, count) in (0..20).map(|n| (format!("inbox-{n}"), n)) {
        for i in 0..count {
            writer.put(&record_of(&msg("alice", &inbox, &i.to_string(), "before")));
        }
    }
    writer.flush();
    let transfer = world.transfer("transfer", |spec| spec.env("LANES", 1));
    transfer.start().await.unwrap();
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    for inbox in (0..20).map(|n| format!("inbox-{n}")) {
        writer.put(&record_of(&msg("alice", &inbox, "next", "after")));
    }
    writer.flush();
    transfer.start().await.unwrap();
    world.wait_for_all_committed().await;
    world.assert_ordered_without_gaps().await;
    for row in world.rows().await.iter().filter(|row| row.client_msg_id == "next") {
        assert_eq!(format!("inbox-{}", row.seq - 1), row.recv_id, "P4");
    }
    assert_eq!(world.dead_letters().await, []);
}
