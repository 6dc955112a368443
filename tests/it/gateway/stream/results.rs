//! Each entry has its result, whatever is wrong with it or with others.

use std::time::{Duration, Instant};

use msg_common::proto::{Msg, StreamSendEntry, StreamSendMsgRequest};
use tonic::Code;

use super::{Stream, open, request, try_open};
use crate::gateway::calls::{assert_failed, client, fields, metric};
use crate::support::eventually;
use crate::support::kafka::{id_of, msg};
use crate::support::world::World;

#[tokio::test]
async fn each_entry_has_its_result_and_the_end_of_the_requests_is_a_good_end() {
    let world = World::new("stream").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let mut stream = open(&client).await;
    let message = |i: u64| msg("alice", &format!("inbox-{}", i % 4), &i.to_string(), "x");
    for i in 0..10 {
        let told = stream.ask(request(1000 + i, [message(i)])).await;
        assert_eq!(told[&(1000 + i)].as_ref().unwrap().msg_id, id_of(&message(i)).to_string());
    }
    // A correlation_id that is answered may be used again.
    stream.ask(request(1000, [message(0)])).await[&1000].as_ref().unwrap();
    for first in (10..5010).step_by(1000) {
        stream.send(request(first, (first..first + 1000).map(message))).await;
    }
    // The replies are fewer than the entries: results that are ready together go together.
    drop(stream.requests);
    stream.requests = tokio::sync::mpsc::channel(1).0;
    let (mut replies, mut results) = (0, 0);
    while let Some(told) = stream.reply().await.unwrap() {
        assert!(told.values().all(Result::is_ok));
        replies += 1;
        results += told.len();
    }
    assert_eq!(results, 5000);
    assert!(replies < 2500, "{replies} replies for {results} results");
    world.all_committed().await;
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
async fn a_bad_entry_fails_alone() {
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
    let mut told = Vec::new();
    while let Some(more) = stream.one_by_one().await.unwrap() {
        told.extend(more);
    }
    let of = |id: u64| told.iter().filter(|one| one.0 == id).map(|one| one.1.clone()).collect::<Vec<_>>();
    let bad = |id: u64| of(id).into_iter().find(Result::is_err).unwrap();
    for (id, named) in [
        (2, &["entries[1].msg.send_id", "entries[1].msg.client_msg_id"][..]),
        (3, &["entries[2].msg"]),
        (1, &["entries[3].correlation_id"]),
    ] {
        assert_eq!(fields(&assert_failed(bad(id), Code::InvalidArgument, "INVALID_FIELDS")), named);
    }
    assert!(of(1).iter().any(Result::is_ok) && of(5)[0].is_ok());
    world.all_committed().await;
    let rows: Vec<String> = world.rows().await.into_iter().map(|row| row.client_msg_id).collect();
    assert_eq!(rows, ["1", "5"]);
}

/// A request that is none ends the stream: what came before it is answered, and nothing of it is sent.
#[tokio::test]
async fn a_bad_request_ends_the_stream_after_what_was_taken() {
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
        let (told, end) = stream.rest().await;
        assert_eq!(told.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(told.values().all(Result::is_ok));
        let details = assert_failed(end, code, reason);
        if !named.is_empty() {
            assert_eq!(fields(&details), named);
        }
    }
    assert_eq!(world.ends().await.iter().sum::<i64>(), 20, "something of a bad request was sent");
}

#[tokio::test]
async fn the_callers_deadline_ends_a_stream_in_time() {
    let world = World::new("stream_deadline").await;
    let gateway = world.gateway("gateway", |spec| spec.env("DEADLINE_MARGIN", "5s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let refused = try_open(&client, Some(Duration::from_secs(4))).await;
    assert_failed(refused, Code::DeadlineExceeded, "DEADLINE_TOO_SHORT");
    let begun = Instant::now();
    let mut stream: Stream = try_open(&client, Some(Duration::from_secs(7))).await.unwrap();
    stream.ask(request(0, [msg("alice", "bob", "1", "x")])).await[&0].as_ref().unwrap();
    let (told, end) = stream.rest().await;
    assert!(told.is_empty());
    assert_failed(end, Code::DeadlineExceeded, "STREAM_ENDED");
    let took = begun.elapsed().as_secs_f64();
    assert!((1.9..6.9).contains(&took), "it ended after {took} s");
}
