//! What watchers cost: a slow one needs no more memory than a fast one, a stalled one is ended, and many idle ones
//! need few database queries.

use futures_util::future::join_all;
use tonic::Code;
use tonic::transport::Endpoint;

use super::super::calls::{Client, assert_failed, channel, client, metric, send};
use super::{Watcher, request};
use crate::support::kafka::{msg, record_of};
use crate::support::transfer::peak_memory_mib;
use crate::support::world::{World, count_rows};
use crate::support::{ensure, eventually};

async fn connect_with_small_window(address: &str) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    Client::new(eventually("the gateway listens", async || Ok(endpoint.connect().await?)).await)
}

#[tokio::test]
async fn slow_watchers_get_every_message_and_need_no_memory() {
    const WATCHERS: usize = 8;
    const MSGS: usize = 1000;
    let world = World::new("watch_slow").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("WATCH_CACHE_BYTES", "4MiB"));
    gateway.service.start().await.unwrap();
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let client = connect_with_small_window(&gateway.address).await;
        watchers.push(Watcher::open(&client, request([("bob", Some(0))])).await.unwrap());
    }
    let before = peak_memory_mib(&gateway.service);
    // 40 MB for each watcher, 320 MB in total. Nothing of it has been read yet.
    let writer = world.writer();
    (0..MSGS).for_each(|i| writer.put(&record_of(&msg("alice", "bob", &i.to_string(), vec![b'x'; 40_000]))));
    writer.flush();
    world.wait_for_rows(i64::try_from(MSGS).unwrap()).await;
    let read = watchers.into_iter().map(|mut watcher| {
        tokio::spawn(async move {
            watcher.wait_for_msgs(MSGS).await;
            (watcher.behind, watcher.msgs.len())
        })
    });
    for read in join_all(read).await {
        let (behind, msgs) = read.unwrap();
        assert_eq!(msgs, MSGS);
        assert!(behind > 10, "{behind} events said that the watcher is behind");
    }
    let growth = peak_memory_mib(&gateway.service) - before;
    assert!(growth < 60, "grown by {growth} MiB");
}

#[tokio::test]
async fn stalled_watch_is_ended_and_resumes_at_its_cursor() {
    let world = World::new("watch_stalled").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("WATCH_STALL_TIMEOUT", "500ms"));
    gateway.service.start().await.unwrap();
    let stalled = connect_with_small_window(&gateway.address).await;
    let mut stalled = Watcher::open(&stalled, request([("bob", Some(0))])).await.unwrap();
    let mut reader = Watcher::open(&client(&gateway).await, request([("bob", Some(0))])).await.unwrap();
    let writer = world.writer();
    (0..100).for_each(|i| writer.put(&record_of(&msg("alice", "bob", &i.to_string(), vec![b'x'; 40_000]))));
    writer.flush();
    reader.wait_for_msgs(100).await;
    eventually("the stalled watch is ended", async || {
        let watchers = metric(&gateway, "msg_gateway_watchers").await?;
        ensure(watchers == 1.0, format!("{watchers} watchers"))
    })
    .await;
    assert_failed::<()>(Err(stalled.end().await), Code::ResourceExhausted, "SLOW_READER");
    let received = stalled.msgs.len();
    assert!(received < 100);
    let after = stalled.cursors.get("bob").copied().unwrap_or_default();
    let mut resumed = Watcher::open(&client(&gateway).await, request([("bob", Some(after))])).await.unwrap();
    resumed.wait_for_msgs(100 - received).await;
}

#[tokio::test]
async fn watchers_and_watched_inboxes_have_limits() {
    let world = World::new("watch_limits").await;
    let _transfer = world.running_transfer().await;
    let settings = [("MAX_WATCHERS", 3), ("MAX_WATCHED_INBOXES", 5)];
    let gateway =
        world.gateway("gateway", |spec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value)));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let two = || request([("a", None), ("b", None)]);
    let watchers = [
        Watcher::open(&client, two()).await.unwrap(),
        Watcher::open(&client, two()).await.unwrap(),
        Watcher::open(&client, request([("c", None)])).await.unwrap(),
    ];
    let rejected = Watcher::open(&client, request([("d", None)])).await.map(|_| ());
    assert_failed(rejected, Code::ResourceExhausted, "NOT_SENT");
    drop(watchers);
    let _one = eventually("a watch is free again", async || Ok(Watcher::open(&client, two()).await?)).await;
    let four = request([("a", None), ("b", None), ("c", None), ("d", None)]);
    assert_failed(Watcher::open(&client, four).await.map(|_| ()), Code::ResourceExhausted, "NOT_SENT");
}

/// The cost of watching grows with the messages, not with watchers and time.
#[tokio::test]
async fn idle_watchers_need_few_database_queries() {
    const STREAMS: usize = 500;
    const INBOXES: usize = 10;
    let world = World::new("watch_idle").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("HEARTBEAT_INTERVAL", "1s"));
    gateway.service.start().await.unwrap();
    let client = Client::new(channel(&gateway).await);
    let mut watchers = Vec::new();
    for stream in 0..STREAMS {
        let names: Vec<String> = (0..INBOXES).map(|n| format!("{stream}-{n}")).collect();
        let cursors = names.iter().map(|name| (name.as_str(), Some(0)));
        watchers.push(Watcher::open(&client, request(cursors)).await.unwrap());
    }
    // From now on hints are read.
    send(&client, &msg("alice", "0-0", "first", "x")).await.unwrap();
    watchers[0].wait_for_msgs(1).await;
    let watch_queries = async || -> f64 { metric(&gateway, "msg_gateway_watch_queries_total").await.unwrap() };
    let before = watch_queries().await;
    for _ in 0..4 {
        for watcher in watchers.iter_mut().take(5) {
            watcher.next().await.unwrap();
        }
    }
    let queries = watch_queries().await - before;
    assert!(queries <= 60.0, "{queries} queries in about four seconds for {} silent inboxes", STREAMS * INBOXES);
    // Each of them still gets its messages.
    let last = watchers.last_mut().unwrap();
    let name = format!("{}-3", STREAMS - 1);
    send(&client, &msg("alice", &name, "to the last", "x")).await.unwrap();
    last.wait_for_msgs(1).await;
    assert_eq!(count_rows(&world.database().await, "messages").await.unwrap(), 2);
}
