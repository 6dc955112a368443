//! Streams and watches whose token expires.

use msg_common::proto::watch_msgs_response::Event;
use msg_common::proto::{InboxCursor, StreamSendEntry, StreamSendMsgRequest, WatchMsgsRequest};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::super::hang_up;
use super::{KeyFile, send_as};
use crate::gateway::calls::{assert_failed, client, result};
use crate::support::WAIT_TIMEOUT;
use crate::support::issuer::{SigningKey, authorized, jwks};
use crate::support::kafka::msg;
use crate::support::world::World;

/// How long the token of a stream is valid, in seconds.
const VALID: u64 = 5;

#[tokio::test]
async fn stream_ends_when_its_token_expires_after_all_results() {
    let world = World::new("auth_stream").await;
    let _transfer = world.running_transfer().await;
    let keys = KeyFile::new();
    let gateway = keys.gateway(&world, |spec| spec).await;
    let client = client(&gateway).await;
    let (requests, receiver) = mpsc::channel(1);
    let token = keys.key.token_for("alice", "", VALID);
    let request = authorized(&token, ReceiverStream::new(receiver));
    let mut responses = client.clone().stream_send_msg(request).await.unwrap().into_inner();
    // It sends until the stream ends, so entries are in flight at that moment.
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        loop {
            let entry = |id: u64| {
                let msg = msg("alice", &format!("inbox-{}", id % 7), &id.to_string(), "hello");
                StreamSendEntry { correlation_id: id, msg: Some(msg) }
            };
            let entries = (sent..sent + 10).map(entry).collect();
            if requests.send(StreamSendMsgRequest { entries, wait_for: 0 }).await.is_err() {
                return sent;
            }
            sent += 10;
        }
    });
    let mut accepted = Vec::new();
    let end = loop {
        match timeout(WAIT_TIMEOUT, responses.message()).await.expect("a response or the end arrives") {
            Ok(Some(response)) => {
                for one in response.results {
                    let outcome = result(one.result.as_ref().expect("a result is set"));
                    outcome.unwrap_or_else(|status| panic!("{}: {status:?}", one.correlation_id));
                    accepted.push(one.correlation_id);
                }
            }
            Ok(None) => panic!("the stream ended with OK"),
            Err(status) => break status,
        }
    };
    let details = assert_failed::<()>(Err(end), Code::Unavailable, "STREAM_ENDED");
    assert!(details.retry_info().is_some());
    let sent = sending.await.unwrap();
    accepted.sort_unstable();
    assert!(!accepted.is_empty() && accepted.len() <= sent as usize);
    // Every accepted entry has its result: there are as many records, and later as many rows.
    world.wait_for_all_committed().await;
    let mut stored: Vec<u64> = world.rows().await.iter().map(|row| row.client_msg_id.parse().unwrap()).collect();
    stored.sort_unstable();
    assert_eq!(stored, accepted);
    world.assert_ordered_without_gaps().await;
}

/// A key is withdrawn because others may have it: what they have opened must not stay open.
#[tokio::test]
async fn streams_and_watches_end_when_their_key_is_withdrawn() {
    let world = World::new("auth_withdrawn").await;
    let _transfer = world.running_transfer().await;
    let keys = KeyFile::new();
    let second = SigningKey::new("second");
    keys.write(&jwks(&[&keys.key, &second]));
    let gateway = keys.gateway(&world, |spec| spec).await;
    let client = client(&gateway).await;
    let opened = async |key: &SigningKey, id: u64| {
        let token = key.token("alice", "");
        let (requests, receiver) = mpsc::channel(1);
        let entry = StreamSendEntry { correlation_id: id, msg: Some(msg("alice", "bob", &id.to_string(), "hello")) };
        requests.send(StreamSendMsgRequest { entries: vec![entry], wait_for: 0 }).await.unwrap();
        let stream = client.clone().stream_send_msg(authorized(&token, ReceiverStream::new(receiver))).await.unwrap();
        let mut results = stream.into_inner();
        let first = results.message().await.unwrap().expect("the entry has a result").results;
        result(first[0].result.as_ref().unwrap()).unwrap();
        let inboxes = vec![InboxCursor { recv_id: "alice".into(), after_seq: None }];
        let watch = WatchMsgsRequest { inboxes, omit_content: false };
        let watch = client.clone().watch_msgs(authorized(&token, watch)).await.unwrap().into_inner();
        (requests, results, watch)
    };
    let (_withdrawn, mut results, mut watch) = opened(&keys.key, 1).await;
    let (kept, mut kept_results, mut kept_watch) = opened(&second, 2).await;
    keys.write(&jwks(&[&second]));
    hang_up(&gateway.service);
    let end = timeout(WAIT_TIMEOUT, results.message()).await.expect("the stream ends");
    assert_failed(end, Code::Unavailable, "STREAM_ENDED");
    let end = async {
        loop {
            if let Err(status) = watch.message().await {
                return status;
            }
        }
    };
    let end = timeout(WAIT_TIMEOUT, end).await.expect("the watch ends");
    assert_failed::<()>(Err(end), Code::Unavailable, "STREAM_ENDED");
    // Those of the other key continue.
    let to_alice = StreamSendEntry { correlation_id: 3, msg: Some(msg("alice", "alice", "3", "hello")) };
    kept.send(StreamSendMsgRequest { entries: vec![to_alice], wait_for: 0 }).await.unwrap();
    let next = kept_results.message().await.unwrap().expect("the entry has a result").results;
    result(next[0].result.as_ref().unwrap()).unwrap();
    let watched = async {
        loop {
            let event = kept_watch.message().await.unwrap().expect("a watch never ends with OK").event.unwrap();
            if let Event::Msgs(watched) = event {
                return watched.msgs.len();
            }
        }
    };
    assert_eq!(timeout(WAIT_TIMEOUT, watched).await.expect("the message is watched"), 1);
}

#[tokio::test]
async fn watch_ends_when_its_token_expires() {
    let world = World::new("auth_watch").await;
    let _transfer = world.running_transfer().await;
    let keys = KeyFile::new();
    let gateway = keys.gateway(&world, |spec| spec).await;
    let client = client(&gateway).await;
    let alice = keys.key.token("alice", "");
    let watch = async |token: &str| {
        let inboxes = vec![InboxCursor { recv_id: "bob".into(), after_seq: Some(0) }];
        let request = WatchMsgsRequest { inboxes, omit_content: false };
        client.clone().watch_msgs(authorized(token, request)).await
    };
    assert_failed(watch(&alice).await, Code::PermissionDenied, "PERMISSION_DENIED");
    let mut events = watch(&keys.key.token_for("bob", "", VALID)).await.unwrap().into_inner();
    send_as(&client, &alice, &msg("alice", "bob", "1", "hello")).await.unwrap();
    let mut received = 0;
    let end = loop {
        match timeout(WAIT_TIMEOUT, events.message()).await.expect("an event or the end arrives") {
            Ok(event) => {
                if let Event::Msgs(watched) = event.expect("a watch never ends with OK").event.unwrap() {
                    received += watched.msgs.len();
                }
            }
            Err(status) => break status,
        }
    };
    assert_failed::<()>(Err(end), Code::Unavailable, "STREAM_ENDED");
    assert_eq!(received, 1);
}
