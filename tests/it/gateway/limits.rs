//! P7 and P6: the limits of the gateway, and who holds a permit until when.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use msg_common::proto::{BatchSendMsgRequest, BatchSendMsgResponse, Msg, Placement, PullMsgsRequest, PullMsgsResponse};
use msg_stack::{Signal, Stack};
use tokio::task::JoinHandle;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::calls::{Client, assert_failed, assert_not_sent, client, metric, send, send_within, wait_in_flight};
use crate::support::stack::own_stack;
use crate::support::world::{Gateway, World};
use crate::support::{NotYet, eventually, kafka};

fn msg(id: &str, bytes: usize) -> Msg {
    kafka::msg("alice", "bob", id, vec![b'x'; bytes])
}

fn spawn_send(client: &Client, msg: Msg) -> JoinHandle<Result<(), Status>> {
    let client = client.clone();
    tokio::spawn(async move { send(&client, &msg).await.map(|_| ()) })
}

#[tokio::test]
async fn messages_in_flight_are_limited_by_count_and_bytes() {
    let (stack, _folder) = own_stack("inflight_limits").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "inflight_limits", 4);
    world.create(&stack).await;
    let limited_count = world.gateway("few", |spec| spec.env("MAX_INFLIGHT_MSGS", 3).env("DEADLINE_MARGIN", "500ms"));
    let small =
        world.gateway("small", |spec| spec.env("MAX_INFLIGHT_BYTES", "200KiB").env("MAX_CONTENT_BYTES", "100KiB"));
    for gateway in [&limited_count, &small] {
        gateway.service.start().await.unwrap();
    }
    let clients = (client(&limited_count).await, client(&small).await);
    // Both gateways know the partition leaders before the broker is frozen.
    let mut stored = BTreeSet::new();
    for (client, id) in [(&clients.0, "first"), (&clients.1, "second")] {
        send(client, &msg(id, 1)).await.unwrap();
        stored.insert(id);
    }
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    stored.extend(fill_by_bytes(&small, &clients.1).await);
    stored.extend(fill_by_count(&limited_count, &clients.0, &stack).await);
    // Once capacity is free again, sends succeed.
    for (client, id) in [(&clients.0, "again few"), (&clients.1, "again small")] {
        eventually("capacity is free again", async || Ok(send(client, &msg(id, 1)).await?)).await;
        stored.insert(id);
    }
    let _transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    let rows: Vec<String> = world.rows().await.into_iter().map(|row| row.client_msg_id).collect();
    assert_eq!(rows.len(), stored.len(), "{rows:?}");
    assert_eq!(
        rows.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        stored,
        "P6: only accepted messages are stored"
    );
    stack.stop().await;
}

/// Two large messages use up the bytes: a third is rejected, and a small one still fits. All three stay in flight.
async fn fill_by_bytes(gateway: &Gateway, client: &Client) -> [&'static str; 3] {
    let sends = [spawn_send(client, msg("large 1", 90 << 10)), spawn_send(client, msg("large 2", 90 << 10))];
    wait_in_flight(gateway, 2).await;
    assert_not_sent(send(client, &msg("rejected large", 90 << 10)).await, Code::ResourceExhausted);
    let small = spawn_send(client, msg("small", 100));
    wait_in_flight(gateway, 3).await;
    assert!(!small.is_finished() && sends.iter().all(|send| !send.is_finished()));
    ["large 1", "large 2", "small"]
}

/// Three messages use up the count: the caller of the first gets OUTCOME_UNKNOWN, that of the second disconnects,
/// that of the third waits. No other message is accepted until the broker is resumed.
async fn fill_by_count(gateway: &Gateway, client: &Client, stack: &Stack) -> [&'static str; 3] {
    let cancelled = spawn_send(client, msg("cancelled", 1));
    let waiting = spawn_send(client, msg("waiting", 1));
    wait_in_flight(gateway, 2).await;
    let unknown = send_within(client, &msg("unknown", 1), Duration::from_millis(1500)).await;
    assert_failed(unknown, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    for i in 0..20 {
        assert_not_sent(send(client, &msg(&format!("rejected {i}"), 1)).await, Code::ResourceExhausted);
    }
    // A batch above the limit is accepted only if nothing else is in flight.
    for count in [2, 4] {
        let batch = BatchSendMsgRequest { msgs: vec![msg("rejected batch", 1); count], wait_for: 0 };
        assert_not_sent(client.clone().batch_send_msg(batch).await, Code::ResourceExhausted);
    }
    wait_in_flight(gateway, 3).await;
    assert!(!waiting.is_finished());
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    waiting.await.unwrap().expect("the delivery report ends the call");
    ["cancelled", "waiting", "unknown"]
}

#[tokio::test]
async fn connections_have_a_limit() {
    let world = World::new("connections").await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_CONNECTIONS", 2));
    gateway.service.start().await.unwrap();
    let clients = [client(&gateway).await, client(&gateway).await];
    for client in &clients {
        send(client, &msg("first", 1)).await.unwrap();
    }
    // Whether the third connection fails immediately or at its first call depends on timing.
    let third_connection = async || -> Result<Placement, NotYet> {
        let client = Client::connect(format!("http://{}", gateway.address)).await?;
        Ok(send(&client, &msg("third", 1)).await?)
    };
    let rejected = third_connection().await;
    assert!(rejected.is_err(), "a third connection is served");
    assert_eq!(metric(&gateway, "msg_gateway_connections").await.unwrap(), 2.0);
    assert!(metric(&gateway, "msg_gateway_connections_refused_total").await.unwrap() >= 1.0);
    for client in &clients {
        send(client, &msg("second", 1)).await.expect("open connections still work");
    }
    drop(clients);
    eventually("a connection is free again", third_connection).await;
}

/// The permit of a large response is held until the response is read, or its caller loses the connection.
#[tokio::test]
async fn slow_batch_reader_loses_its_permit() {
    let world = World::new("slow_batch_reader").await;
    let gateway = world.gateway("gateway", |spec| spec.env("RESPONSE_READ_TIMEOUT", "3s").env("MAX_BATCHES", 1));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let batch = |count| BatchSendMsgRequest { msgs: vec![Msg::default(); count], wait_for: 0 };
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let mut grpc = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/msg.v1.MsgGateway/BatchSendMsg");
    let codec = ProstCodec::<BatchSendMsgRequest, BatchSendMsgResponse>::default();
    let mut response = grpc.server_streaming(Request::new(batch(1000)), path, codec).await.unwrap().into_inner();
    assert_not_sent(client.clone().batch_send_msg(batch(1000)).await, Code::ResourceExhausted);
    let small = client.clone().batch_send_msg(batch(20)).await.expect("a small response needs no permit");
    assert_eq!(small.into_inner().results.len(), 20);
    eventually("a permit is free again", async || Ok(client.clone().batch_send_msg(batch(1000)).await.map(drop)?))
        .await;
    response.message().await.expect_err("the slow reader's connection is closed");
    assert_eq!(metric(&gateway, "msg_gateway_slow_reader_disconnects_total").await.unwrap(), 1.0);
}

/// Callers acquire all read permits for large responses, and read none of them.
#[tokio::test]
async fn slow_pull_reader_loses_its_permit() {
    let world = World::new("slow_pull_reader").await;
    let (gateway, transfer) = (
        world.gateway("gateway", |spec| spec.env("RESPONSE_READ_TIMEOUT", "3s").env("MAX_READS", 4)),
        world.running_transfer().await,
    );
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    for id in ["1", "2"] {
        send(&client, &msg(id, 1_000_000)).await.unwrap();
    }
    world.wait_for_rows(2).await;
    let bobs = PullMsgsRequest { recv_id: "bob".into(), ..PullMsgsRequest::default() };
    // A flow-control window that is smaller than one response.
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let mut responses = Vec::new();
    for _ in 0..2 {
        let channel = endpoint.connect().await.unwrap();
        for _ in 0..2 {
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            grpc.ready().await.unwrap();
            let path = PathAndQuery::from_static("/msg.v1.MsgGateway/PullMsgs");
            let codec = ProstCodec::<PullMsgsRequest, PullMsgsResponse>::default();
            responses.push(grpc.server_streaming(Request::new(bobs.clone()), path, codec).await.unwrap().into_inner());
        }
    }
    let mut short_deadline = Request::new(bobs.clone());
    short_deadline.set_timeout(Duration::from_millis(500));
    assert_not_sent(client.clone().pull_msgs(short_deadline).await, Code::ResourceExhausted);
    // Four times as many reads may wait for a permit. The short deadline above did not close its connection.
    let (mut pages, mut rejected) = (0, 0);
    for response in join_all((0..40).map(async |_| client.clone().pull_msgs(bobs.clone()).await)).await {
        match response {
            Ok(page) => {
                assert_eq!(page.into_inner().msgs.len(), 2);
                pages += 1;
            }
            error => {
                assert_not_sent(error, Code::ResourceExhausted);
                rejected += 1;
            }
        }
    }
    assert!(pages >= 16 && rejected > 0, "{pages} pages, {rejected} were rejected");
    for mut response in responses {
        response.message().await.expect_err("the slow reader's connection is closed");
    }
    assert_eq!(metric(&gateway, "msg_gateway_connections").await.unwrap(), 1.0);
    assert!(metric(&gateway, "msg_gateway_slow_reader_disconnects_total").await.unwrap() >= 2.0);
    assert!(transfer.stop().await.unwrap().success());
}
