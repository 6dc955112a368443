//! Why a watch is rejected, and how it ends.

use std::time::Duration;

use msg_stack::Signal;
use tokio::time::timeout;
use tonic::Code;

use super::super::calls::{assert_failed, client, fields, metric, without};
use super::{Watcher, request};
use crate::support::kafka::{msg, record_of};
use crate::support::world::World;
use crate::support::{ensure, eventually};

#[tokio::test]
async fn invalid_watch_requests_are_rejected_with_their_fields() {
    let world = World::new("watch_bad").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let rejected_fields = async |request| {
        let opened = Watcher::open(&client, request).await.map(|_| ());
        let details = assert_failed(opened, Code::InvalidArgument, "INVALID_FIELDS");
        fields(&details).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rejected_fields(request([])).await, ["inboxes"]);
    let many: Vec<String> = (0..1001).map(|n| n.to_string()).collect();
    assert_eq!(rejected_fields(request(many.iter().map(|name| (name.as_str(), None)))).await, ["inboxes"]);
    let bad = [("", None), ("bob", Some(-1)), ("carol", None), ("bob", None), ("a\0", Some(1))];
    let expected = ["inboxes[0].recv_id", "inboxes[1].after_seq", "inboxes[3].recv_id", "inboxes[4].recv_id"];
    assert_eq!(rejected_fields(request(bad)).await, expected);
    Watcher::open(&client, request(many.iter().take(1000).map(|name| (name.as_str(), None)))).await.unwrap();

    let without_database = world.gateway("blind", |spec| without(spec, "DATABASE_URL"));
    without_database.service.start().await.unwrap();
    let opened = Watcher::open(&super::super::calls::client(&without_database).await, request([("bob", None)]))
        .await
        .map(|_| ());
    assert_failed(opened, Code::FailedPrecondition, "NO_DATABASE");
}

#[tokio::test]
async fn watches_end_with_stream_ended_at_sigterm() {
    let world = World::new("watch_sigterm").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let mut watcher = Watcher::open(&client(&gateway).await, request([("bob", Some(0))])).await.unwrap();
    assert!(gateway.service.signal(Signal::Term));
    let details = assert_failed::<()>(Err(watcher.end().await), Code::Unavailable, "STREAM_ENDED");
    assert!(details.retry_info().is_some());
    let status = timeout(Duration::from_secs(10), gateway.service.wait()).await.expect("no watcher delays the exit");
    assert_eq!(status.unwrap().code(), Some(0));
}

#[tokio::test]
async fn watch_ends_before_its_connection_is_too_old() {
    let world = World::new("watch_age").await;
    let _transfer = world.running_transfer().await;
    let settings = [("MAX_CONNECTION_AGE", "2s"), ("MAX_CONNECTION_AGE_GRACE", "4s")];
    let gateway =
        world.gateway("gateway", |spec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value)));
    gateway.service.start().await.unwrap();
    let writer = world.writer();
    let mut after = 0;
    // The client reconnects by itself.
    let client = client(&gateway).await;
    for turn in 0..3 {
        let mut watcher = Watcher::open(&client, request([("bob", Some(after))])).await.unwrap();
        writer.put(&record_of(&msg("alice", "bob", &turn.to_string(), "x")));
        writer.flush();
        assert_failed::<()>(Err(watcher.end().await), Code::Unavailable, "STREAM_ENDED");
        assert_eq!(watcher.msgs.len(), 1, "the message was stored long before the end");
        after = watcher.cursors["bob"];
    }
    assert_eq!(after, 3);
}

#[tokio::test]
async fn disconnected_watcher_leaves_nothing_behind() {
    let world = World::new("watch_gone").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let mut watchers = Vec::new();
    for n in 0..20 {
        let client = client(&gateway).await;
        watchers.push(Watcher::open(&client, request([("bob", None), (n.to_string().as_str(), None)])).await.unwrap());
    }
    let wait_for_gauges = async |streams: f64, inboxes: f64| {
        eventually("the gauges have the expected values", async || {
            let found = (
                metric(&gateway, "msg_gateway_watchers").await?,
                metric(&gateway, "msg_gateway_watched_inboxes").await?,
            );
            ensure(found == (streams, inboxes), format!("{found:?}"))
        })
        .await;
    };
    wait_for_gauges(20.0, 40.0).await;
    watchers.truncate(5);
    wait_for_gauges(5.0, 10.0).await;
    watchers.clear();
    wait_for_gauges(0.0, 0.0).await;
}
