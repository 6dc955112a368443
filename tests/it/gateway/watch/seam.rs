//! From the table to what is stored now: nothing is missed at the seam, and nothing comes twice.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::super::calls::{client, send};
use super::{Watcher, request};
use crate::support::kafka::{good, id_of, msg};
use crate::support::load::Load;
use crate::support::world::World;

#[tokio::test]
async fn watchers_that_come_at_any_time_get_every_message_in_order() {
    const INBOXES: usize = 7;
    let world = World::new("watch_seam").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let load = Load::start(world.writer(), INBOXES as i64);
    let names: Vec<String> = (0..INBOXES).map(|n| format!("inbox-{n}")).collect();
    let mut watchers = Vec::new();
    for count in 1..=30 {
        world.rows_reach(count * 50).await;
        let client = client(&gateway).await;
        // From the beginning, from the middle, and from further than anything reaches yet.
        let after = [0, 1, 5 * count, 100_000][usize::try_from(count).unwrap() % 4];
        let cursors = names.iter().map(|name| (name.as_str(), Some(after)));
        watchers.push(Watcher::open(&client, request(cursors)).await.unwrap());
    }
    // All of them read while the rest is written.
    let reading = watchers.into_iter().map(|mut watcher| {
        tokio::spawn(async move {
            if watcher.cursors["inbox-0"] < 100_000 {
                watcher.reaches(3000).await;
            }
            watcher
        })
    });
    let watchers = join_all(reading).await;
    let sent = usize::try_from(load.finish(&world).await).unwrap();
    for watcher in watchers {
        let mut watcher = watcher.unwrap();
        let missed: i64 = watcher.cursors.values().sum::<i64>() - i64::try_from(watcher.msgs.len()).unwrap();
        let Some(left) = sent.checked_sub(usize::try_from(missed).unwrap()) else {
            continue;
        };
        watcher.reaches(left).await;
        let mut by_inbox = names.iter().enumerate().map(|(n, name)| (name, n));
        assert!(
            by_inbox.all(|(name, n)| watcher.cursors[name] == i64::try_from((sent - n).div_ceil(INBOXES)).unwrap())
        );
    }
}

#[tokio::test]
async fn from_now_on_is_from_the_first_event_on() {
    let world = World::new("watch_now").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("HEARTBEAT_INTERVAL", "1s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    for i in 0..10 {
        send(&client, &msg("alice", "bob", &format!("before {i}"), "x")).await.unwrap();
    }
    world.rows_reach(10).await;
    let mut watcher = Watcher::open(&client, request([("bob", None), ("carol", None)])).await.unwrap();
    let (to_bob, to_carol) = (msg("alice", "bob", "to bob", "hello"), msg("alice", "carol", "to carol", "hello"));
    for msg in [&to_bob, &to_carol, &msg("alice", "dave", "to nobody who watches", "x")] {
        send(&client, msg).await.unwrap();
    }
    watcher.reaches(2).await;
    let mut ids = watcher.ids();
    ids.sort_unstable();
    assert_eq!(ids, ["to bob", "to carol"]);
    for stored in &watcher.msgs {
        let msg = stored.msg.as_ref().unwrap();
        let sent = if msg.recv_id == "bob" { &to_bob } else { &to_carol };
        assert_eq!((msg, stored.msg_id.as_str()), (sent, id_of(sent).to_string().as_str()));
        assert!(stored.send_time.is_some() && stored.stored_time.is_some());
        assert_eq!(stored.seq, if msg.recv_id == "bob" { 11 } else { 1 });
    }
    // A heartbeat is all that comes of what is not for it.
    watcher.beats(watcher.heartbeats + 1).await;
    assert_eq!(watcher.msgs.len(), 2);
}

#[tokio::test]
async fn whoever_resumes_goes_on_where_it_was_also_through_another_gateway() {
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
        watcher.reaches(150 * turn + 1).await;
        let content = |stored: &msg_common::proto::StoredMsg| stored.msg.as_ref().unwrap().content.is_empty();
        assert!(watcher.msgs.iter().all(|stored| content(stored) == (turn % 3 == 0)));
        after = watcher.cursors["inbox-0"];
    }
    load.finish(&world).await;
}

/// Nothing rests on hints but speed.
#[tokio::test]
async fn without_hints_messages_come_later() {
    let world = World::new("watch_no_hints").await;
    let transfer = world.transfer("transfer", |spec| spec.env("HINTS_TOPIC", "none"));
    transfer.start().await.unwrap();
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let mut watcher = Watcher::open(&client, request([("bob", Some(0)), ("carol", Some(0))])).await.unwrap();
    for i in 0..20 {
        send(&client, &msg("alice", ["bob", "carol"][i % 2], &i.to_string(), "x")).await.unwrap();
    }
    watcher.reaches(20).await;
    // After that the gateway knows better than to wait for hints.
    let begun = Instant::now();
    send(&client, &msg("alice", "bob", "last", "x")).await.unwrap();
    watcher.reaches(21).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "it looks for what no hint told of only every 30 s");
}

#[tokio::test]
async fn while_the_database_is_away_nothing_comes_and_then_everything() {
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
        (from..to).for_each(|i| writer.put(&good(&msg("alice", "bob", &i.to_string(), "x"))));
        writer.flush();
    };
    write(0, 100);
    watcher.reaches(100).await;
    for turn in 1..4 {
        stack.postgres().kill().await;
        write(turn * 100, turn * 100 + 100);
        watcher.beats(watcher.heartbeats + 3).await;
        stack.postgres().start().await.unwrap();
        watcher.reaches(usize::try_from(turn).unwrap() * 100 + 100).await;
    }
}
