//! Watches that open and catch up: they cost others nothing, wait with heartbeats, and get what is larger than any limit.

use std::time::Duration;

use msg_common::proto::PullMsgsRequest;
use tokio::time::timeout;
use tonic::Code;

use super::super::calls::{Client, assert_failed, channel, client, send};
use super::super::stored::{LONG, send_stored};
use super::{Watcher, request};
use crate::support::kafka::{good, msg};
use crate::support::stack::{own_postgres, stack};
use crate::support::world::{Gateway, World};

/// From now on each row of the inbox `slow` takes two seconds to read, and those of other inboxes take no longer than before.
async fn slow_down(world: &World) {
    let slow = "ALTER TABLE messages RENAME TO stored_messages;
         CREATE VIEW messages AS
             SELECT * FROM stored_messages WHERE recv_id <> 'slow' OR pg_sleep(2) IS NOT NULL";
    world.database().await.batch_execute(slow).await.unwrap();
}

/// A gateway with one connection of each kind, and ten messages in the slow inbox.
async fn with_a_slow_inbox(world: &World) -> Gateway {
    let settings = [
        ("WATCH_CONNECTIONS", "1"),
        ("READ_CONNECTIONS", "1"),
        ("DATABASE_CONNECT_TIMEOUT", "1s"),
        ("HEARTBEAT_INTERVAL", "500ms"),
    ];
    let gateway =
        world.gateway("gateway", |spec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value)));
    gateway.service.start().await.unwrap();
    let writer = world.writer();
    (0..10).for_each(|i| writer.put(&good(&msg("alice", "slow", &i.to_string(), "x"))));
    writer.flush();
    world.rows_reach(10).await;
    slow_down(world).await;
    gateway
}

#[tokio::test]
async fn catching_up_delays_neither_live_watches_nor_waiters() {
    let world = World::new("watch_starve").await;
    let _transfer = world.running_transfer().await;
    let gateway = with_a_slow_inbox(&world).await;
    let client = client(&gateway).await;
    let mut live = Watcher::open(&client, request([("bob", None)])).await.unwrap();
    // Reads a page of twenty seconds over the only connection, and then waits for its next turn.
    let mut behind = Watcher::open(&client, request([("slow", Some(0))])).await.unwrap();
    behind.beats(3).await;
    // Nobody else can open meanwhile, and is told when to come back.
    let refused = Watcher::open(&client, request([("carol", None)])).await.map(|_| ());
    let details = assert_failed(refused, Code::ResourceExhausted, "NOT_SENT");
    assert!(details.retry_info().is_some());
    let sent = timeout(Duration::from_secs(10), send_stored(&client, &msg("alice", "bob", "1", "x"), LONG)).await;
    assert!(sent.expect("a waiter needs no turn").unwrap().stored.is_some());
    timeout(Duration::from_secs(10), live.reaches(1)).await.expect("nor does a live watch");
    assert_eq!(behind.msgs.len(), 0, "it is still behind, or nothing was shown");
    behind.beats(behind.heartbeats + 3).await;
    behind.reaches(10).await;
}

#[tokio::test]
async fn reads_without_a_free_connection_are_resource_exhausted() {
    let world = World::new("reads_no_connection").await;
    let _transfer = world.running_transfer().await;
    let gateway = with_a_slow_inbox(&world).await;
    let client = client(&gateway).await;
    let pull = |recv_id: &str| PullMsgsRequest { recv_id: recv_id.into(), ..PullMsgsRequest::default() };
    let (mut other, slow) = (client.clone(), pull("slow"));
    let slow = tokio::spawn(async move { other.pull_msgs(slow).await });
    let mut refusals = 0;
    while !slow.is_finished() && refusals < 2 {
        // Until the slow one has the connection these are quick.
        if let Err(status) = client.clone().pull_msgs(pull("bob")).await {
            let details = assert_failed::<()>(Err(status), Code::ResourceExhausted, "NOT_SENT");
            assert!(details.retry_info().is_some());
            refusals += 1;
        }
    }
    assert_eq!(refusals, 2);
    assert_eq!(slow.await.unwrap().unwrap().into_inner().msgs.len(), 10);
}

/// While it has messages for its watcher that it cannot read.
#[tokio::test]
async fn heartbeats_go_on_while_catching_up_waits_for_the_database() {
    const MSGS: usize = 1500;
    let (stack, _folder) = own_postgres("watch_beats").await;
    let world = World::on(&stack, "watch_beats", 4);
    world.create(&stack).await;
    let _transfer = world.running_transfer().await;
    let settings = [("HEARTBEAT_INTERVAL", "200ms"), ("WATCH_CACHE_BYTES", "1KiB")];
    let gateway =
        world.gateway("gateway", |spec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value)));
    gateway.service.start().await.unwrap();
    let writer = world.writer();
    (0..MSGS).for_each(|i| writer.put(&good(&msg("alice", "bob", &i.to_string(), vec![b'x'; 20_000]))));
    writer.flush();
    world.rows_reach(i64::try_from(MSGS).unwrap()).await;
    let client = client(&gateway).await;
    for frozen in [true, false] {
        // 30 MB, of which its connection takes a part before it is read.
        let mut watcher = Watcher::open(&client, request([("bob", Some(0))])).await.unwrap();
        watcher.reaches(1).await;
        if frozen {
            assert!(stack.postgres().freeze());
        } else {
            stack.postgres().kill().await;
        }
        watcher.beats(watcher.heartbeats + 5).await;
        assert!(watcher.msgs.len() < MSGS, "it had everything before, and nothing was shown");
        if frozen {
            assert!(stack.postgres().thaw());
        } else {
            stack.postgres().start().await.unwrap();
        }
        watcher.reaches(MSGS).await;
    }
}

#[tokio::test]
async fn message_above_every_limit_is_pulled_and_watched() {
    const LARGE: usize = 5 << 20;
    let stack = stack().await;
    let world = World::on(stack, "watch_large", 4);
    stack.kafka().create_topic(world.topic(), 4, &[("max.message.bytes", "8388608")]).await.unwrap();
    stack.postgres().create_database(world.topic()).await.unwrap();
    let _transfer = world.running_transfer().await;
    // Pages end at 3.75 MiB, events at 64 KiB. The smallest cache and buffer: nothing is kept, and one event at a time is on its way.
    let settings = [("MAX_CONTENT_BYTES", "6MiB"), ("WATCH_CACHE_BYTES", "0"), ("WATCH_BUFFER_BYTES", "1")];
    let gateway =
        world.gateway("gateway", |spec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value)));
    gateway.service.start().await.unwrap();
    let mut client = Client::new(channel(&gateway).await).max_decoding_message_size(16 << 20);
    let mut live = Watcher::open(&client, request([("bob", Some(0)), ("carol", Some(0))])).await.unwrap();
    let sizes = [1, LARGE, 1, LARGE, LARGE, 1];
    for (i, size) in sizes.into_iter().enumerate() {
        for recv_id in ["bob", "carol"] {
            send(&client, &msg("alice", recv_id, &i.to_string(), vec![b'x'; size])).await.unwrap();
        }
    }
    live.reaches(12).await;
    let mut late = Watcher::open(&client, request([("bob", Some(0)), ("carol", Some(3))])).await.unwrap();
    late.reaches(9).await;
    let mut pulled = Vec::new();
    let mut pull = PullMsgsRequest { recv_id: "bob".into(), ..PullMsgsRequest::default() };
    loop {
        let page = client.pull_msgs(pull.clone()).await.unwrap().into_inner();
        pulled.extend(page.msgs.iter().map(|stored| stored.msg.as_ref().unwrap().content.len()));
        if page.next_page_token.is_empty() {
            break;
        }
        pull.page_token = page.next_page_token;
    }
    assert_eq!(pulled, sizes);
}
