//! Watches that open and catch up: they do not delay others, they get heartbeats while they wait, and messages above
//! any limit.

use std::time::Duration;

use msg_common::proto::PullMsgsRequest;
use tokio::time::timeout;
use tonic::Code;

use super::super::calls::{Client, assert_failed, channel, client, send};
use super::super::stored::{LONG, send_stored};
use super::{Watcher, request};
use crate::support::kafka::{msg, record_of};
use crate::support::stack::{own_postgres, stack};
use crate::support::world::{Gateway, World};

/// Makes each row of the inbox `slow` need two seconds to read. Rows of other inboxes stay as fast as before.
async fn slow_down(world: &World) {
    let slow = "ALTER TABLE messages RENAME TO stored_messages;
         CREATE VIEW messages AS
             SELECT * FROM stored_messages WHERE recv_id <> 'slow' OR pg_sleep(2) IS NOT NULL";
    world.database().await.batch_execute(slow).await.unwrap();
}

/// Starts a gateway with one connection of each kind; stores ten messages in the slow inbox.
async fn gateway_with_a_slow_inbox(world: &World) -> Gateway {
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
    (0..10).for_each(|i| writer.put(&record_of(&msg("alice", "slow", &i.to_string(), "x"))));
    writer.flush();
    world.wait_for_rows(10).await;
    slow_down(world).await;
    gateway
}

#[tokio::test]
async fn watch_that_catches_up_delays_no_other_watch_or_waiter() {
    let world = World::new("watch_starve").await;
    let _transfer = world.running_transfer().await;
    let gateway = gateway_with_a_slow_inbox(&world).await;
    let client = client(&gateway).await;
    let mut caught_up = Watcher::open(&client, request([("bob", None)])).await.unwrap();
    // Needs 20 s to read a page over the only connection for reads, and then waits for its next turn.
    let mut behind = Watcher::open(&client, request([("slow", Some(0))])).await.unwrap();
    behind.wait_for_heartbeats(3).await;
    // Meanwhile no other watch can open; the error has a retry delay.
    let rejected = Watcher::open(&client, request([("carol", None)])).await.map(|_| ());
    let details = assert_failed(rejected, Code::ResourceExhausted, "NOT_SENT");
    assert!(details.retry_info().is_some());
    let sent = timeout(Duration::from_secs(10), send_stored(&client, &msg("alice", "bob", "1", "x"), LONG)).await;
    assert!(sent.expect("a waiter is not delayed").unwrap().stored.is_some());
    timeout(Duration::from_secs(10), caught_up.wait_for_msgs(1))
        .await
        .expect("a watch that has caught up is not delayed");
    assert_eq!(behind.msgs.len(), 0, "the slow watch had caught up, so this tests nothing");
    behind.wait_for_heartbeats(behind.heartbeats + 3).await;
    behind.wait_for_msgs(10).await;
}

#[tokio::test]
async fn reads_without_a_free_connection_are_resource_exhausted() {
    let world = World::new("reads_no_connection").await;
    let _transfer = world.running_transfer().await;
    let gateway = gateway_with_a_slow_inbox(&world).await;
    let client = client(&gateway).await;
    let pull = |recv_id: &str| PullMsgsRequest { recv_id: recv_id.into(), ..PullMsgsRequest::default() };
    let (mut other, slow) = (client.clone(), pull("slow"));
    let slow = tokio::spawn(async move { other.pull_msgs(slow).await });
    let mut rejections = 0;
    while !slow.is_finished() && rejections < 2 {
        // These reads succeed until the slow one has the connection.
        if let Err(status) = client.clone().pull_msgs(pull("bob")).await {
            let details = assert_failed::<()>(Err(status), Code::ResourceExhausted, "NOT_SENT");
            assert!(details.retry_info().is_some());
            rejections += 1;
        }
    }
    assert_eq!(rejections, 2);
    assert_eq!(slow.await.unwrap().unwrap().into_inner().msgs.len(), 10);
}

/// The database becomes unavailable while a watch has messages left to read.
#[tokio::test]
async fn heartbeats_continue_while_the_database_is_unavailable() {
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
    (0..MSGS).for_each(|i| writer.put(&record_of(&msg("alice", "bob", &i.to_string(), vec![b'x'; 20_000]))));
    writer.flush();
    world.wait_for_rows(i64::try_from(MSGS).unwrap()).await;
    let client = client(&gateway).await;
    for frozen in [true, false] {
        // 30 MB, of which the connection buffers a part before it is read.
        let mut watcher = Watcher::open(&client, request([("bob", Some(0))])).await.unwrap();
        watcher.wait_for_msgs(1).await;
        if frozen {
            assert!(stack.postgres().freeze());
        } else {
            stack.postgres().kill().await;
        }
        watcher.wait_for_heartbeats(watcher.heartbeats + 5).await;
        assert!(watcher.msgs.len() < MSGS, "the watch had caught up, so this tests nothing");
        if frozen {
            assert!(stack.postgres().thaw());
        } else {
            stack.postgres().start().await.unwrap();
        }
        watcher.wait_for_msgs(MSGS).await;
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
    // Pages end at 3.75 MiB, events at 64 KiB. With the smallest cache and buffer nothing is cached, and one event at
    // a time is buffered.
    let settings = [("MAX_CONTENT_BYTES", "6MiB"), ("WATCH_CACHE_BYTES", "0"), ("WATCH_BUFFER_BYTES", "1")];
    let gateway =
        world.gateway("gateway", |spec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value)));
    gateway.service.start().await.unwrap();
    let mut client = Client::new(channel(&gateway).await).max_decoding_message_size(16 << 20);
    let mut caught_up = Watcher::open(&client, request([("bob", Some(0)), ("carol", Some(0))])).await.unwrap();
    let sizes = [1, LARGE, 1, LARGE, LARGE, 1];
    for (i, size) in sizes.into_iter().enumerate() {
        for recv_id in ["bob", "carol"] {
            send(&client, &msg("alice", recv_id, &i.to_string(), vec![b'x'; size])).await.unwrap();
        }
    }
    caught_up.wait_for_msgs(12).await;
    let mut late = Watcher::open(&client, request([("bob", Some(0)), ("carol", Some(3))])).await.unwrap();
    late.wait_for_msgs(9).await;
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
