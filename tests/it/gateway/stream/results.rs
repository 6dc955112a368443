//! Each entry gets its own result, no matter what is wrong with it or with others.

use std::time::{Duration, Instant};

use msg_common::proto::{Msg, StreamSendEntry, StreamSendMsgRequest};
use tonic::Code;

use super::{Stream, open, request, try_open};
use crate::gateway::calls::{assert_failed, client, fields, metric};
use crate::support::eventually;
use crate::support::kafka::{msg, msg_id_of};
use crate::support::world::World;

#[tokio::test]
async fn stream_returns_a_result_per_entry_and_ends_with_ok() {
    let world = World::new("stream").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let mut stream = open(&client).await;
    let message = |i: u64| msg("alice", &format!("inbox-{}", i % 4), &i.to_string(), "x");
    for i in 0..10 {
        let results = stream.send_and_read(request(1000 + i, [message(i)])).await;
        assert_eq!(results[&(1000 + i)].as_ref().unwrap().msg_id, msg_id_of(&message(i)).to_string());
    }
    // A correlation_id can be used again once its result was returned.
    stream.send_and_read(request(1000, [message(0)])).await[&1000].as_ref().unwrap();
    for first in (10..5010).step_by(1000) {
        stream.send(request(first, (first..first + 1000).map(message))).await;
    }
    // Results that are ready together are returned together, so there are fewer responses than entries.
    drop(stream.requests);
    stream.requests = tokio::sync::mpsc::channel(1).0;
    let (mut responses, mut count) = (0, 0);
    while let Some(results) = stream.next_response().await.unwrap() {
        assert!(results.values().all(Result::is_ok));
        responses += 1;
        count += results.len();
    }
    assert_eq!(count, 5000);
    assert!(responses < 2500, "{responses} responses for {count} results");
    world.wait_for_all_committed().await;
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.rows().await.len(), 5010);
    for (line, expected) in [
        ("msg_gateway_requests_total{method=\"StreamSendMsg\",outcome=\"OK\"}", 1.0),
        ("msg_gateway_messages_total{method=\"StreamSendMsg\",outcome=\"OK\"}", 5011.0),
        ("msg_gateway_send_streams", 0.0),
    ] {
        eventually(line, async || crate::support::ensure(metric(&gateway, line).await? == expected, line)).await;
    }
}

#[tokio::test]
async fn invalid_stream_entry_fails_alone() {
    let world = World::new("stream_bad_entries").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let mut stream = open(&client).await;
    let entry = |correlation_id, msg: Option<Msg>| StreamSendEntry { correlation_id, msg };
    let good = |id: &str| Some(msg("alice", "bob", id, "x"));
    let too_long = Msg { client_msg_id: "x".repeat(257), ..msg("", "bob", "2", "x") };
    let entries =
        vec![entry(1, good("1")), entry(2, Some(too_long)), entry(3, None), entry(1, good("4")), entry(5, good("5"))];
    stream.send(StreamSendMsgRequest { entries, wait_for: 0 }).await;
    drop(stream.requests);
    stream.requests = tokio::sync::mpsc::channel(1).0;
    let mut results = Vec::new();
    while let Some(more) = stream.next_results().await.unwrap() {
        results.extend(more);
    }
    let of = |id: u64| results.iter().filter(|one| one.0 == id).map(|one| one.1.clone()).collect::<Vec<_>>();
    let bad = |id: u64| of(id).into_iter().find(Result::is_err).unwrap();
    for (id, named) in [
        (2, &["entries[1].msg.send_id", "entries[1].msg.client_msg_id"][..]),
        (3, &["entries[2].msg"]),
        (1, &["entries[3].correlation_id"]),
    ] {
        assert_eq!(fields(&assert_failed(bad(id), Code::InvalidArgument, "INVALID_FIELDS")), named);
    }
    assert!(of(1).iter().any(Result::is_ok) && of(5)[0].is_ok());
    world.wait_for_all_committed().await;
    let rows: Vec<String> = world.rows().await.into_iter().map(|row| row.client_msg_id).collect();
    assert_eq!(rows, ["1", "5"]);
}

/// A malformed request ends the stream. Entries sent before it get their results, and nothing of the malformed
/// request is sent.
#[tokio::test]
async fn invalid_request_ends_the_stream_after_accepted_entries() {
    let world = World::new("stream_bad_requests").await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let message = |i: u64| msg("alice", "bob", &i.to_string(), "x");
    let too_many = request(10, (10..1011).map(message));
    let bad_wait = StreamSendMsgRequest { wait_for: 7, ..request(10, [message(10)]) };
    let large = request(10, (0..5).map(|i| msg("alice", "bob", &i.to_string(), vec![0; 1_000_000])));
    for (bad, code, reason, named) in [
        (StreamSendMsgRequest::default(), Code::InvalidArgument, "INVALID_FIELDS", &["entries"][..]),
        (too_many, Code::InvalidArgument, "INVALID_FIELDS", &["entries"]),
        (bad_wait, Code::InvalidArgument, "INVALID_FIELDS", &["wait_for"]),
        (large, Code::ResourceExhausted, "TOO_LARGE", &[]),
    ] {
        let mut stream = open(&client).await;
        stream.send(request(0, (0..5).map(message))).await;
        stream.send(bad).await;
        let (results, end) = stream.remaining().await;
        assert_eq!(results.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(results.values().all(Result::is_ok));
        let details = assert_failed(end, code, reason);
        if !named.is_empty() {
            assert_eq!(fields(&details), named);
        }
    }
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 20, "an entry of an invalid request was sent");
}

#[tokio::test]
async fn stream_ends_before_the_callers_deadline() {
    let world = World::new("stream_deadline").await;
    let gateway = world.gateway("gateway", |spec| spec.env("DEADLINE_MARGIN", "5s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let rejected = try_open(&client, Some(Duration::from_secs(4))).await;
    assert_failed(rejected, Code::DeadlineExceeded, "DEADLINE_TOO_SHORT");
    let started = Instant::now();
    let mut stream: Stream = try_open(&client, Some(Duration::from_secs(7))).await.unwrap();
    stream.send_and_read(request(0, [msg("alice", "bob", "1", "x")])).await[&0].as_ref().unwrap();
    let (results, end) = stream.remaining().await;
    assert!(results.is_empty());
    assert_failed(end, Code::DeadlineExceeded, "STREAM_ENDED");
    let elapsed = started.elapsed().as_secs_f64();
    assert!((1.9..6.9).contains(&elapsed), "the stream ended after {elapsed} s");
}
