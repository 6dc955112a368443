//! P2 end to end: a message is one row, no matter how often it is sent and through which gateway.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::calls::{client, send};
use super::order::two_gateways;
use crate::support::kafka::{msg, msg_id_of, record_of};
use crate::support::world::World;

#[tokio::test]
async fn message_sent_often_through_two_gateways_is_one_row() {
    let world = World::new("repeats").await;
    let _transfer = world.running_transfer().await;
    let (_gateways, clients) = two_gateways(&world).await;
    // 20 messages, each sent 30 times concurrently.
    let messages: Vec<_> = (0..20).map(|i| msg("alice", &format!("inbox-{}", i % 4), &i.to_string(), "x")).collect();
    let sends = (0..30).flat_map(|round| messages.iter().map(move |message| (round, message)));
    let placements = join_all(sends.map(|(round, message)| {
        let client = &clients[round % 2];
        async move { (message, send(client, message).await.unwrap()) }
    }))
    .await;
    let mut offsets = BTreeSet::new();
    for (message, placement) in placements {
        assert_eq!(placement.msg_id, msg_id_of(message).to_string());
        assert!(offsets.insert((placement.partition, placement.offset)), "two sends have one position");
    }
    world.wait_for_all_committed().await;
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 600, "every OK is a record");
    assert_eq!(world.rows().await.len(), 20, "P2");
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.dead_letters().await, []);
}

#[tokio::test]
async fn same_id_with_other_content_is_dead_lettered() {
    let world = World::new("conflict").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let first = msg("alice", "bob", "1", "first");
    let second = msg("alice", "bob", "1", "second");
    let placement = send(&client, &first).await.unwrap();
    assert_eq!(send(&client, &second).await.unwrap().msg_id, placement.msg_id);
    send(&client, &first).await.unwrap();
    world.wait_for_all_committed().await;
    let rows = world.rows().await;
    assert_eq!(rows.iter().map(|row| row.content.as_slice()).collect::<Vec<_>>(), [b"first"]);
    let letters = world.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].0.as_str(), &letters[0].1), ("IDEMPOTENCY_CONFLICT", &record_of(&second).key));
    let value = letters[0].2.as_deref().unwrap();
    assert!(value.windows(6).any(|window| window == b"second"), "the dead letter has the record's bytes");
}
