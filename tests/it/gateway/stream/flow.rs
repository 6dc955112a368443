//! P7 of streams: a caller that sends more than the limits allow, or does not read, has to wait, and a caller that
//! disconnects leaves nothing behind.

use std::time::Duration;

use futures_util::future::join_all;
use msg_common::proto::Msg;
use msg_stack::Signal;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Endpoint;

use super::{open, request, try_open};
use crate::gateway::calls::{Client, assert_failed, assert_not_sent, client, metric, reason, send, wait_in_flight};
use crate::gateway::raw;
use crate::support::kafka::msg;
use crate::support::stack::own_stack;
use crate::support::transfer::peak_memory_mib;
use crate::support::world::{Gateway, World};
use crate::support::{ensure, eventually};

const OK: &str = "msg_gateway_messages_total{method=\"StreamSendMsg\",outcome=\"OK\"}";

async fn wait_for_streams(gateway: &Gateway, count: usize) {
    eventually("the number of open streams is right", async || {
        let found = metric(gateway, "msg_gateway_send_streams").await?;
        ensure(found == count as f64, format!("{found} of {count}"))
    })
    .await;
}

#[tokio::test]
async fn stream_is_not_read_while_its_results_are_unread() {
    let world = World::new("slow_reader").await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_STREAM_INFLIGHT_MSGS", 200));
    gateway.service.start().await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    // A small window, so that the client's side buffers little by itself.
    let channel = endpoint.initial_stream_window_size(64 << 10).connect().await.unwrap();
    let client = Client::new(channel);
    let mut stream = open(&client).await;
    let message = |i: u64| msg("alice", &format!("inbox-{}", i % 4), &i.to_string(), vec![b'x'; 500]);
    let before = peak_memory_mib(&gateway.service);
    let mut sent = 0;
    let sends = |first: u64| stream.requests.send(request(first, (first..first + 100).map(message)));
    while timeout(Duration::from_secs(2), sends(sent)).await.is_ok() {
        sent += 100;
        assert!(sent < 1_000_000, "the sender was never blocked");
    }
    let accepted = metric(&gateway, OK).await.unwrap();
    // As many results as HTTP/2's window allows, and no more.
    assert!((200.0..15_000.0).contains(&accepted) && accepted < sent as f64, "{accepted} of {sent} were accepted");
    wait_in_flight(&gateway, 0).await;
    assert_eq!(metric(&gateway, OK).await.unwrap(), accepted, "an unread stream continues");
    let growth = peak_memory_mib(&gateway.service) - before;
    assert!(growth < 50, "the gateway has grown by {growth} MiB");
    send(&client, &msg("alice", "bob", "other", "x")).await.expect("other calls on the connection succeed");
    // Once the results are read, the stream continues.
    let results = stream.results(sent as usize).await;
    assert!(results.values().all(Result::is_ok));
    assert!(stream.finish().await.1.is_ok());
    // The last request, which timed out, was not passed to the client.
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), sent as i64 + 1);
}

/// Invalid entries acquire no in-flight permit, and their results are larger than placements.
#[tokio::test]
async fn unread_results_have_a_limit_over_all_streams() {
    let world = World::new("unread").await;
    let gateway = world.gateway("gateway", |spec| {
        spec.env("MAX_UNREAD_RESULTS", 2000).env("RESPONSE_READ_TIMEOUT", "3s").env("MAX_SEND_WAIT", "20s")
    });
    gateway.service.start().await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    let small = endpoint.initial_stream_window_size(64 << 10);
    let narrow = Client::new(small.connect().await.unwrap());
    // Opens all streams first: the read timeout runs from the first result on, and opening 20 streams may need as
    // long.
    let mut opened = Vec::new();
    for _ in 0..20 {
        opened.push(open(&narrow).await);
    }
    let mut sending = Vec::new();
    for stream in opened {
        sending.push(tokio::spawn(async move {
            // Until the connection is closed or its window is full.
            for i in 0..30 {
                let sent = stream.requests.send(request(i * 1000, vec![Msg::default(); 1000]));
                if sent.await.is_err() {
                    break;
                }
            }
            stream
        }));
    }
    eventually("the slow reader loses its connection", async || {
        ensure(metric(&gateway, "msg_gateway_slow_reader_disconnects_total").await? >= 1.0, "the connection is open")
    })
    .await;
    wait_for_streams(&gateway, 0).await;
    let invalid = "msg_gateway_messages_total{method=\"StreamSendMsg\",outcome=\"INVALID_FIELDS\"}";
    let created = metric(&gateway, invalid).await.unwrap();
    // As many as the limit allows, and those that the client's side has buffered by itself.
    assert!((1000.0..8000.0).contains(&created), "{created} results were created");
    for sending in sending {
        sending.await.unwrap().remaining().await.1.expect_err("the slow reader's connection is closed");
    }
    let client = client(&gateway).await;
    let mut stream = open(&client).await;
    for round in 0..5 {
        let results = stream.send_and_read(request(round * 1000, vec![Msg::default(); 1000])).await;
        assert_eq!(results.len(), 1000, "a caller that reads gets its results");
    }
    assert!(stream.finish().await.1.is_ok());
}

/// A few unread streams must not use up the flow-control window of the connection.
#[tokio::test]
async fn unread_streams_do_not_block_other_calls() {
    let world = World::new("unread_streams").await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_STREAM_INFLIGHT_MSGS", 200));
    gateway.service.start().await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    let client = Client::new(endpoint.initial_stream_window_size(64 << 10).connect().await.unwrap());
    let message = Msg { content: vec![b'x'; 1000].into(), ..Msg::default() };
    let stalled = (0..20).map(async |_| {
        let stream = open(&client).await;
        let mut sent = 0;
        let sends = |first: u64| stream.requests.send(request(first, vec![message.clone(); 200]));
        while timeout(Duration::from_secs(2), sends(sent)).await.is_ok() {
            sent += 200;
            assert!(sent < 100_000, "the sender was never blocked");
        }
        stream
    });
    let _streams = join_all(stalled).await;
    let other_call = timeout(Duration::from_secs(10), send(&client, &msg("alice", "bob", "other", "x"))).await;
    other_call.expect("another call on the connection succeeds").unwrap();
}

#[tokio::test]
async fn streams_have_a_limit() {
    let world = World::new("stream_limit").await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_SEND_STREAMS", 2));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let (first, mut second) = (open(&client).await, open(&client).await);
    assert_not_sent(try_open(&client, None).await, Code::ResourceExhausted);
    second.send_and_read(request(0, [msg("alice", "bob", "1", "x")])).await[&0]
        .as_ref()
        .expect("an open stream still works");
    drop(first);
    eventually("a stream is free again", async || Ok(try_open(&client, None).await.map(drop)?)).await;
}

#[tokio::test]
async fn disconnected_stream_leaves_only_records_in_flight() {
    let (stack, _folder) = own_stack("stream_left").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "stream_left", 4);
    world.create(&stack).await;
    let gateway = world.running_gateway().await;
    let shared = client(&gateway).await;
    send(&shared, &msg("alice", "bob", "before", "x")).await.unwrap();
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    // One caller drops its stream, the other its connection.
    let own = client(&gateway).await;
    let (on_shared, on_own) = (open(&shared).await, open(&own).await);
    for (stream, id) in [(&on_shared, "shared"), (&on_own, "own")] {
        stream.send(request(0, (0..50).map(|i| msg("alice", "bob", &format!("{id} {i}"), "x")))).await;
    }
    wait_in_flight(&gateway, 100).await;
    wait_for_streams(&gateway, 2).await;
    drop(on_shared);
    wait_for_streams(&gateway, 1).await;
    drop((on_own, own));
    wait_for_streams(&gateway, 0).await;
    // The records are still in flight, and hold their permits until their delivery reports.
    assert_eq!(metric(&gateway, "msg_gateway_inflight_msgs").await.unwrap(), 100.0);
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    wait_in_flight(&gateway, 0).await;
    let cancelled = "msg_gateway_requests_total{method=\"StreamSendMsg\",outcome=\"CANCELLED\"}";
    assert_eq!(metric(&gateway, cancelled).await.unwrap(), 2.0);
    stack.stop().await;
}

#[tokio::test]
async fn stream_waits_for_capacity_up_to_max_send_wait() {
    let (stack, _folder) = own_stack("stream_full").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "stream_full", 4);
    world.create(&stack).await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_INFLIGHT_MSGS", 3).env("MAX_SEND_WAIT", "4s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "before", "x")).await.unwrap();
    // Two streams send many more entries than the limit: all of them are accepted.
    let mut streams = [open(&client).await, open(&client).await];
    let message = |stream: usize, i: u64| msg("alice", &format!("inbox-{stream}"), &i.to_string(), "x");
    let many = |stream, first| request(first, (first..first + 100).map(move |i| message(stream, i)));
    for (i, stream) in streams.iter().enumerate() {
        stream.send(many(i, 0)).await;
    }
    for stream in &mut streams {
        assert!(stream.results(100).await.values().all(Result::is_ok));
    }
    // While Kafka is frozen, stream entries wait for capacity, and other calls are rejected immediately.
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    streams[0].send(many(0, 100)).await;
    wait_in_flight(&gateway, 3).await;
    assert_not_sent(send(&client, &msg("alice", "bob", "rejected", "x")).await, Code::ResourceExhausted);
    let results = streams[0].results(100).await;
    for id in 100..103 {
        assert_failed(results[&id].clone(), Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    }
    // All entries are to one inbox, so the order has to be kept. Which of the two reasons an entry gets depends on
    // timing.
    for id in 103..200 {
        let status = results[&id].clone().unwrap_err();
        let reason = reason(&status).unwrap();
        assert!(["NOT_SENT", "PREDECESSOR_FAILED"].contains(&reason.as_str()), "{status:?}");
    }
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    wait_in_flight(&gateway, 0).await;
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 1 + 200 + 3, "P6");
    let results = streams[0].send_and_read(many(0, 100)).await;
    assert!(results.values().all(Result::is_ok), "entries sent again in the same order are accepted");
    for stream in streams {
        assert!(stream.finish().await.1.is_ok());
    }
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), 1 + 300);
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

/// A request that stops midway times out, on a stream as elsewhere. A stream that pauses between requests does not.
#[tokio::test]
async fn partial_request_fails_at_the_receive_timeout() {
    let world = World::new("trickle").await;
    let gateway = world.gateway("gateway", |spec| spec.env("REQUEST_RECEIVE_TIMEOUT", "1s"));
    gateway.service.start().await.unwrap();
    let mut partial: Vec<_> = Vec::new();
    for method in ["SendMsg", "StreamSendMsg"] {
        partial.push(raw::start_partial_call(&gateway.address, method).await);
    }
    let client = client(&gateway).await;
    let mut pausing = open(&client).await;
    pausing.send_and_read(request(0, [msg("alice", "bob", "1", "x")])).await[&0].as_ref().unwrap();
    let buffered = "msg_gateway_buffered_request_bytes";
    eventually("the gateway has received the partial requests", async || {
        ensure(metric(&gateway, buffered).await? > 0.0, "no bytes are buffered")
    })
    .await;
    for call in &mut partial {
        timeout(Duration::from_secs(20), call.wait_until_ended()).await.expect("the call ends");
    }
    eventually("the partial requests are freed", async || ensure(metric(&gateway, buffered).await? == 0.0, "bytes"))
        .await;
    wait_for_streams(&gateway, 1).await;
    let results: super::Results = pausing.send_and_read(request(0, [msg("alice", "bob", "2", "x")])).await;
    results[&0].as_ref().expect("a pause ends no stream");
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 2);
}
