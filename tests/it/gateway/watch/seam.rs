//! From reading the table to reading new rows: no message is missing or duplicated at the transition.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::super::calls::{client, send};
use super::{Watcher, request};
use crate::support::kafka::{msg, msg_id_of, record_of};
use crate::support::load::Load;
use crate::support::world::World;

#[tokio::test]
async fn watchers_get_every_message_in_order_from_any_start() {
    const INBOXES: usize = 7;
    let world = World::new("watch_seam").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let load = Load::start(world.writer(), INBOXES as i64);
    let names: Vec<String> = (0..INBOXES).map(|n| format!("inbox-{n}")).collect();
    let mut watchers = Vec::new();
    for count in 1..=30 {
        world.wait_for_rows(count * 50).await;
        let client = client(&gateway).await;
        // From the start, from the middle, and from above the last `seq`.
        let after = [0, 1, 5 * count, 100_000][usize::try_from(count).unwrap() % 4];
        let cursors = names.iter().map(|name| (name.as_str(), Some(after)));
        watchers.push(Watcher::open(&client, request(cursors)).await.unwrap());
    }
    // All of them read while more messages are stored.
    let reading = watchers.into_iter().map(|mut watcher| {
        tokio::spawn(async move {
            if watcher.cursors["inbox-0"] < 100_000 {
                watcher.wait_for_msgs(3000).await;
            }
            watcher
        })
    });
    let watchers = join_all(reading).await;
    let sent = usize::try_from(load.finish(&world).await).unwrap();
    for watcher in watchers {
        let mut watcher = watcher.unwrap();
        let missed: i64 = watcher.cursors.values().sum::<i64>() - i64::try_from(watcher.msgs.len()).unwrap();
        let Some(expected) = sent.checked_sub(usize::try_from(missed).unwrap()) else {
            continue;
        };
        watcher.wait_for_msgs(expected).await;
        let mut by_inbox = names.iter().enumerate().map(|(n, name)| (name, n));
        assert!(
            by_inbox.all(|(name, n)| watcher.cursors[name] == i64::try_from((sent - n).div_ceil(INBOXES)).unwrap())
        );
    }
}

#[tokio::test]
async fn watch_without_a_cursor_starts_at_its_first_event() {
    let world = World::new("watch_now").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("HEARTBEAT_INTERVAL", "1s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    for i in 0..10 {
        send(&client, &msg("alice", "bob", &format!("before {i}"), "x")).await.unwrap();
    }
    world.wait_for_rows(10).await;
    let mut watcher = Watcher::open(&client, request([("bob", None), ("carol", None)])).await.unwrap();
    let (to_bob, to_carol) = (msg("alice", "bob", "to bob", "hello"), msg("alice", "carol", "to carol", "hello"));
    for msg in [&to_bob, &to_carol, &msg("alice", "dave", "not watched", "x")] {
        send(&client, msg).await.unwrap();
    }
    watcher.wait_for_msgs(2).await;
    let mut ids = watcher.ids();
    ids.sort_unstable();
    assert_eq!(ids, ["to bob", "to carol"]);
    for stored in &watcher.msgs {
        let msg = stored.msg.as_ref().unwrap();
        let sent = if msg.recv_id == "bob" { &to_bob } else { &to_carol };
        assert_eq!((msg, stored.msg_id.as_str()), (sent, msg_id_of(sent).to_string().as_str()));
        assert!(stored.send_time.is_some() && stored.stored_time.is_some());
        assert_eq!(stored.seq, if msg.recv_id == "bob" { 11 } else { 1 });
    }
    // For other inboxes it gets only heartbeats.
    watcher.wait_for_heartbeats(watcher.heartbeats + 1).await;
    assert_eq!(watcher.msgs.len(), 2);
}

#[tokio::test]
async fn watch_resumes_at_its_cursor_through_another_gateway() {
    let world = World::new("watch_resume").await;
    let _transfer = world.running_transfer().await;
    let gateways = [world.running_gateway().await, world.gateway("other", |spec| spec)];
    gateways[1].service.start().await.unwrap();
    let load = Load::start(world.writer(), 1);
    let mut after = 0;
    for turn in 0..10 {
        let client = client(&gateways[turn % 2]).await;
        let mut request = request([("inbox-0", Some(after))]);
        request.omit_content = turn % 3 == 0;
        let mut watcher = Watcher::open(&client, request).await.unwrap();
        watcher.wait_for_msgs(150 * turn + 1).await;
        let content = |stored: &msg_common::proto::StoredMsg| stored.msg.as_ref().unwrap().content.is_empty();
        assert!(watcher.msgs.iter().all(|stored| content(stored) == (turn % 3 == 0)));
        after = watcher.cursors["inbox-0"];
    }
    load.finish(&world).await;
}

/// Hints change only how soon a message arrives.
#[tokio::test]
async fn messages_without_hints_arrive_later() {
    let world = World::new("watch_no_hints").await;
    let transfer = world.transfer("transfer", |spec| spec.env("HINTS_TOPIC", "none"));
    transfer.start().await.unwrap();
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let mut watcher = Watcher::open(&client, request([("bob", Some(0)), ("carol", Some(0))])).await.unwrap();
    for i in 0..20 {
        send(&client, &msg("alice", ["bob", "carol"][i % 2], &i.to_string(), "x")).await.unwrap();
    }
    watcher.wait_for_msgs(20).await;
    // By now the gateway knows that hints are unreliable.
    let started = Instant::now();
    send(&client, &msg("alice", "bob", "last", "x")).await.unwrap();
    watcher.wait_for_msgs(21).await;
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "the table is polled for messages without hints only every 30 s"
    );
}

#[tokio::test]
async fn watch_gets_every_message_after_database_outages() {
    let (stack, _folder) = crate::support::stack::own_postgres("watch_database").await;
    let world = World::on(&stack, "watch_database", 4);
    world.create(&stack).await;
    let _transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("HEARTBEAT_INTERVAL", "200ms"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let mut watcher = Watcher::open(&client, request([("bob", Some(0))])).await.unwrap();
    let writer = world.writer();
    let write = |from: i32, to: i32| {
        (from..to).for_each(|i| writer.put(&record_of(&msg("alice", "bob", &i.to_string(), "x"))));
        writer.flush();
    };
    write(0, 100);
    watcher.wait_for_msgs(100).await;
    for turn in 1..4 {
        stack.postgres().kill().await;
        write(turn * 100, turn * 100 + 100);
        watcher.wait_for_heartbeats(watcher.heartbeats + 3).await;
        stack.postgres().start().await.unwrap();
        watcher.wait_for_msgs(usize::try_from(turn).unwrap() * 100 + 100).await;
    }
}
