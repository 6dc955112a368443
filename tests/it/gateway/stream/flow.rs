//! P7 of streams: whoever sends more than there is room for, or does not read, waits; and whoever goes leaves nothing behind.

use std::time::Duration;

use futures_util::future::join_all;
use msg_common::proto::Msg;
use msg_dev::stack::Signal;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Endpoint;

use super::{open, request, try_open};
use crate::gateway::calls::{Client, assert_failed, assert_not_sent, client, in_flight, metric, reason, send};
use crate::gateway::raw;
use crate::support::kafka::msg;
use crate::support::stack::own_stack;
use crate::support::transfer::peak_memory;
use crate::support::world::{Gateway, World};
use crate::support::{ensure, eventually};

const OK: &str = "msg_gateway_messages_total{method=\"StreamSendMsg\",outcome=\"OK\"}";

async fn streams(gateway: &Gateway, count: usize) {
    eventually("so many streams are open", async || {
        let found = metric(gateway, "msg_gateway_send_streams").await?;
        ensure(found == count as f64, format!("{found} of {count}"))
    })
    .await;
}

#[tokio::test]
async fn who_does_not_read_the_results_is_not_read_from() {
    let world = World::new("slow_reader").await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_STREAM_INFLIGHT_MSGS", 200));
    gateway.service.start().await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    // What the caller's side takes in by itself is little.
    let channel = endpoint.initial_stream_window_size(64 << 10).connect().await.unwrap();
    let client = Client::new(channel);
    let mut stream = open(&client).await;
    let message = |i: u64| msg("alice", &format!("inbox-{}", i % 4), &i.to_string(), vec![b'x'; 500]);
    let before = peak_memory(&gateway.service);
    let mut sent = 0;
    let sends = |first: u64| stream.requests.send(request(first, (first..first + 100).map(message)));
    while timeout(Duration::from_secs(2), sends(sent)).await.is_ok() {
        sent += 100;
        assert!(sent < 1_000_000, "nothing stops the sender");
    }
    let taken = metric(&gateway, OK).await.unwrap();
    // The results that HTTP/2 has room for, and no more.
    assert!((200.0..15_000.0).contains(&taken) && taken < sent as f64, "{taken} of {sent} were taken");
    in_flight(&gateway, 0).await;
    assert_eq!(metric(&gateway, OK).await.unwrap(), taken, "it goes on");
    let grown = peak_memory(&gateway.service) - before;
    assert!(grown < 50, "the gateway has grown by {grown} MiB");
    send(&client, &msg("alice", "bob", "beside", "x")).await.expect("other calls on the connection are not stopped");
    // Whoever reads goes on.
    let told = stream.results(sent as usize).await;
    assert!(told.values().all(Result::is_ok));
    assert!(stream.finish().await.1.is_ok());
    // The request that was given up by the time-out was not handed to the client.
    assert_eq!(world.ends().await.iter().sum::<i64>(), sent as i64 + 1);
}

/// Entries that are refused at the door take no place in flight, and their results are the larger ones.
#[tokio::test]
async fn what_nobody_reads_is_bounded_over_all_streams() {
    let world = World::new("unread").await;
    let gateway = world.gateway("gateway", |spec| {
        spec.env("MAX_UNREAD_RESULTS", 2000).env("RESPONSE_READ_TIMEOUT", "3s").env("MAX_SEND_WAIT", "20s")
    });
    gateway.service.start().await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    let small = endpoint.initial_stream_window_size(64 << 10);
    let unread = Client::new(small.connect().await.unwrap());
    // All of them first: the time to read runs from the first result on, and opening 20 streams may take as long.
    let mut opened = Vec::new();
    for _ in 0..20 {
        opened.push(open(&unread).await);
    }
    let mut sending = Vec::new();
    for stream in opened {
        sending.push(tokio::spawn(async move {
            // Until the connection is gone, or there is no room for more on it.
            for i in 0..30 {
                let sent = stream.requests.send(request(i * 1000, vec![Msg::default(); 1000]));
                if sent.await.is_err() {
                    break;
                }
            }
            stream
        }));
    }
    eventually("who reads nothing loses the connection", async || {
        ensure(metric(&gateway, "msg_gateway_slow_reader_disconnects_total").await? >= 1.0, "it stays")
    })
    .await;
    streams(&gateway, 0).await;
    let refused = "msg_gateway_messages_total{method=\"StreamSendMsg\",outcome=\"INVALID_FIELDS\"}";
    let made = metric(&gateway, refused).await.unwrap();
    // Those that there is room for, and what the caller's side has taken in by itself.
    assert!((1000.0..8000.0).contains(&made), "{made} results were made");
    for sending in sending {
        sending.await.unwrap().rest().await.1.expect_err("its connection was ended");
    }
    let client = client(&gateway).await;
    let mut stream = open(&client).await;
    for round in 0..5 {
        let told = stream.ask(request(round * 1000, vec![Msg::default(); 1000])).await;
        assert_eq!(told.len(), 1000, "there is room for who reads");
    }
    assert!(stream.finish().await.1.is_ok());
}

/// What a connection may have sent and we have not read is not used up by a few streams that nobody reads from.
#[tokio::test]
async fn unread_streams_do_not_stop_the_calls_beside_them() {
    let world = World::new("beside").await;
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
            assert!(sent < 100_000, "nothing stops the sender");
        }
        stream
    });
    let _streams = join_all(stalled).await;
    let beside = timeout(Duration::from_secs(10), send(&client, &msg("alice", "bob", "beside", "x"))).await;
    beside.expect("it is not stopped").unwrap();
}

#[tokio::test]
async fn streams_have_a_limit() {
    let world = World::new("stream_limit").await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_SEND_STREAMS", 2));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let (first, mut second) = (open(&client).await, open(&client).await);
    assert_not_sent(try_open(&client, None).await, Code::ResourceExhausted);
    second.ask(request(0, [msg("alice", "bob", "1", "x")])).await[&0].as_ref().expect("it is not disturbed");
    drop(first);
    eventually("there is room again", async || Ok(try_open(&client, None).await.map(drop)?)).await;
}

#[tokio::test]
async fn who_goes_leaves_nothing_behind() {
    let (stack, _folder) = own_stack("gone").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "gone", 4);
    world.create(&stack).await;
    let gateway = world.running_gateway().await;
    let stays = client(&gateway).await;
    send(&stays, &msg("alice", "bob", "before", "x")).await.unwrap();
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    // One takes its stream down, one its connection.
    let own = client(&gateway).await;
    let (on_shared, on_own) = (open(&stays).await, open(&own).await);
    for (stream, id) in [(&on_shared, "shared"), (&on_own, "own")] {
        stream.send(request(0, (0..50).map(|i| msg("alice", "bob", &format!("{id} {i}"), "x")))).await;
    }
    in_flight(&gateway, 100).await;
    streams(&gateway, 2).await;
    drop(on_shared);
    streams(&gateway, 1).await;
    drop((on_own, own));
    streams(&gateway, 0).await;
    // The records are in flight still, and have their places until Kafka has said what became of them.
    assert_eq!(metric(&gateway, "msg_gateway_inflight_msgs").await.unwrap(), 100.0);
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    in_flight(&gateway, 0).await;
    let cancelled = "msg_gateway_requests_total{method=\"StreamSendMsg\",outcome=\"CANCELLED\"}";
    assert_eq!(metric(&gateway, cancelled).await.unwrap(), 2.0);
    stack.stop().await;
}

#[tokio::test]
async fn where_the_gateway_is_full_a_stream_waits_for_room_but_not_for_ever() {
    let (stack, _folder) = own_stack("stream_full").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "stream_full", 4);
    world.create(&stack).await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_INFLIGHT_MSGS", 3).env("MAX_SEND_WAIT", "4s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "before", "x")).await.unwrap();
    // Many more than there is room for, of two streams: all go through.
    let mut streams = [open(&client).await, open(&client).await];
    let message = |stream: usize, i: u64| msg("alice", &format!("inbox-{stream}"), &i.to_string(), "x");
    let many = |stream, first| request(first, (first..first + 100).map(move |i| message(stream, i)));
    for (i, stream) in streams.iter().enumerate() {
        stream.send(many(i, 0)).await;
    }
    for stream in &mut streams {
        assert!(stream.results(100).await.values().all(Result::is_ok));
    }
    // While Kafka hangs they wait, and others are refused at once.
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    streams[0].send(many(0, 100)).await;
    in_flight(&gateway, 3).await;
    assert_not_sent(send(&client, &msg("alice", "bob", "refused", "x")).await, Code::ResourceExhausted);
    let told = streams[0].results(100).await;
    for id in 100..103 {
        assert_failed(told[&id].clone(), Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    }
    // All to one inbox, whose order would be broken: which of the two comes first depends on the clock alone.
    for id in 103..200 {
        let status = told[&id].clone().unwrap_err();
        let reason = reason(&status).unwrap();
        assert!(["NOT_SENT", "PREDECESSOR_FAILED"].contains(&reason.as_str()), "{status:?}");
    }
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    in_flight(&gateway, 0).await;
    assert_eq!(world.ends().await.iter().sum::<i64>(), 1 + 200 + 3, "P6");
    let told = streams[0].ask(many(0, 100)).await;
    assert!(told.values().all(Result::is_ok), "the same again, in the same order");
    for stream in streams {
        assert!(stream.finish().await.1.is_ok());
    }
    let transfer = world.running_transfer().await;
    world.all_committed().await;
    assert_eq!(world.rows().await.len(), 1 + 300);
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

/// A request that stops half way is not waited for, on a stream as elsewhere; a stream that pauses between requests is.
#[tokio::test]
async fn what_begins_to_arrive_has_to_arrive_in_time() {
    let world = World::new("trickle").await;
    let gateway = world.gateway("gateway", |spec| spec.env("REQUEST_RECEIVE_TIMEOUT", "1s"));
    gateway.service.start().await.unwrap();
    let mut half: Vec<_> = Vec::new();
    for method in ["SendMsg", "StreamSendMsg"] {
        half.push(raw::begun(&gateway.address, method).await);
    }
    let client = client(&gateway).await;
    let mut pausing = open(&client).await;
    pausing.ask(request(0, [msg("alice", "bob", "1", "x")])).await[&0].as_ref().unwrap();
    let arriving = "msg_gateway_buffered_request_bytes";
    eventually("they are seen", async || ensure(metric(&gateway, arriving).await? > 0.0, "nothing arrives")).await;
    for call in &mut half {
        timeout(Duration::from_secs(20), call.ended()).await.expect("it is ended");
    }
    eventually("nothing is kept of them", async || ensure(metric(&gateway, arriving).await? == 0.0, "bytes")).await;
    streams(&gateway, 1).await;
    let told: super::Told = pausing.ask(request(0, [msg("alice", "bob", "2", "x")])).await;
    told[&0].as_ref().expect("a pause is no fault");
    assert_eq!(world.ends().await.iter().sum::<i64>(), 2);
}
