//! P7 and P6: what may be in flight has a limit, which a record holds until its report, whatever its caller does.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use msg_common::proto::{BatchSendMsgRequest, BatchSendMsgResponse, Msg, Placement, PullMsgsRequest, PullMsgsResponse};
use msg_dev::stack::{Signal, Stack};
use tokio::task::JoinHandle;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::calls::{Client, assert_failed, assert_not_sent, client, in_flight, metric, send, send_within};
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
async fn what_is_in_flight_is_bounded_by_count_and_by_bytes() {
    let (stack, _folder) = own_stack("full").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "full", 4);
    world.create(&stack).await;
    let few = world.gateway("few", |spec| spec.env("MAX_INFLIGHT_MSGS", 3).env("DEADLINE_MARGIN", "500ms"));
    let small =
        world.gateway("small", |spec| spec.env("MAX_INFLIGHT_BYTES", "200KiB").env("MAX_CONTENT_BYTES", "100KiB"));
    for gateway in [&few, &small] {
        gateway.service.start().await.unwrap();
    }
    let clients = (client(&few).await, client(&small).await);
    // Both know where the topic's partitions are before the broker hangs.
    let mut stored = BTreeSet::new();
    for (client, id) in [(&clients.0, "first"), (&clients.1, "second")] {
        send(client, &msg(id, 1)).await.unwrap();
        stored.insert(id);
    }
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    stored.extend(by_bytes(&small, &clients.1).await);
    stored.extend(by_count(&few, &clients.0, &stack).await);
    // Where there is room again, the next send goes through.
    for (client, id) in [(&clients.0, "again few"), (&clients.1, "again small")] {
        eventually("there is room again", async || Ok(send(client, &msg(id, 1)).await?)).await;
        stored.insert(id);
    }
    let _transfer = world.running_transfer().await;
    world.all_committed().await;
    let rows: Vec<String> = world.rows().await.into_iter().map(|row| row.client_msg_id).collect();
    assert_eq!(rows.len(), stored.len(), "{rows:?}");
    assert_eq!(rows.iter().map(String::as_str).collect::<BTreeSet<_>>(), stored, "P6: only what was taken is stored");
    stack.stop().await;
}

/// Two large messages fill it; a third is refused, a small one still fits. They stay in flight.
async fn by_bytes(gateway: &Gateway, client: &Client) -> [&'static str; 3] {
    let sends = [spawn_send(client, msg("large 1", 90 << 10)), spawn_send(client, msg("large 2", 90 << 10))];
    in_flight(gateway, 2).await;
    assert_not_sent(send(client, &msg("refused large", 90 << 10)).await, Code::ResourceExhausted);
    let small = spawn_send(client, msg("small", 100));
    in_flight(gateway, 3).await;
    assert!(!small.is_finished() && sends.iter().all(|send| !send.is_finished()));
    ["large 1", "large 2", "small"]
}

/// Three messages fill it: the first one's caller is told that its outcome is unknown, the second's goes away, the third's
/// waits. Nobody else gets in before the broker goes on.
async fn by_count(gateway: &Gateway, client: &Client, stack: &Stack) -> [&'static str; 3] {
    let cancelled = spawn_send(client, msg("cancelled", 1));
    let waiting = spawn_send(client, msg("waiting", 1));
    in_flight(gateway, 2).await;
    let answered = send_within(client, &msg("answered", 1), Duration::from_millis(1500)).await;
    assert_failed(answered, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    for i in 0..20 {
        assert_not_sent(send(client, &msg(&format!("refused {i}"), 1)).await, Code::ResourceExhausted);
    }
    // A larger one than there is ever room for fits when it is alone, which it is not.
    for count in [2, 4] {
        let batch = BatchSendMsgRequest { msgs: vec![msg("refused batch", 1); count], wait_for: 0 };
        assert_not_sent(client.clone().batch_send_msg(batch).await, Code::ResourceExhausted);
    }
    in_flight(gateway, 3).await;
    assert!(!waiting.is_finished());
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    waiting.await.unwrap().expect("it is answered by its report");
    ["cancelled", "waiting", "answered"]
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
    // Whether the one too many fails at once or at its first call depends on who is faster.
    let further = async || -> Result<Placement, NotYet> {
        let client = Client::connect(format!("http://{}", gateway.address)).await?;
        Ok(send(&client, &msg("third", 1)).await?)
    };
    let refused = further().await;
    assert!(refused.is_err(), "a third connection is served");
    assert_eq!(metric(&gateway, "msg_gateway_connections").await.unwrap(), 2.0);
    assert!(metric(&gateway, "msg_gateway_connections_refused_total").await.unwrap() >= 1.0);
    for client in &clients {
        send(client, &msg("second", 1)).await.expect("those that are there are not disturbed");
    }
    drop(clients);
    eventually("there is room again", further).await;
}

/// A large answer is kept until it is taken, or its caller loses the connection; there are only so many.
#[tokio::test]
async fn who_does_not_take_the_answer_to_a_batch_keeps_no_place() {
    let world = World::new("batch_not_taken").await;
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
    let mut answer = grpc.server_streaming(Request::new(batch(1000)), path, codec).await.unwrap().into_inner();
    assert_not_sent(client.clone().batch_send_msg(batch(1000)).await, Code::ResourceExhausted);
    let small = client.clone().batch_send_msg(batch(20)).await.expect("its answer is small");
    assert_eq!(small.into_inner().results.len(), 20);
    eventually("there is a place again", async || Ok(client.clone().batch_send_msg(batch(1000)).await.map(drop)?))
        .await;
    answer.message().await.expect_err("its connection was ended");
    assert_eq!(metric(&gateway, "msg_gateway_slow_reader_disconnects_total").await.unwrap(), 1.0);
}

/// As many callers as there are places ask for large answers, and take none of them.
#[tokio::test]
async fn who_does_not_take_an_answer_keeps_no_place() {
    let world = World::new("not_taken").await;
    let (gateway, transfer) = (
        world.gateway("gateway", |spec| spec.env("RESPONSE_READ_TIMEOUT", "3s").env("MAX_READS", 4)),
        world.running_transfer().await,
    );
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    for id in ["1", "2"] {
        send(&client, &msg(id, 1_000_000)).await.unwrap();
    }
    world.rows_reach(2).await;
    let bobs = PullMsgsRequest { recv_id: "bob".into(), ..PullMsgsRequest::default() };
    // A window that one answer does not go through.
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let channel = endpoint.connect().await.unwrap();
        for _ in 0..2 {
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            grpc.ready().await.unwrap();
            let path = PathAndQuery::from_static("/msg.v1.MsgGateway/PullMsgs");
            let codec = ProstCodec::<PullMsgsRequest, PullMsgsResponse>::default();
            answers.push(grpc.server_streaming(Request::new(bobs.clone()), path, codec).await.unwrap().into_inner());
        }
    }
    let mut hurried = Request::new(bobs.clone());
    hurried.set_timeout(Duration::from_millis(500));
    assert_not_sent(client.clone().pull_msgs(hurried).await, Code::ResourceExhausted);
    // Four times as many may wait for a place, and the hurry was not the fault of its connection.
    let (mut pages, mut refused) = (0, 0);
    for answer in join_all((0..40).map(async |_| client.clone().pull_msgs(bobs.clone()).await)).await {
        match answer {
            Ok(page) => {
                assert_eq!(page.into_inner().msgs.len(), 2);
                pages += 1;
            }
            refusal => {
                assert_not_sent(refusal, Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    assert!(pages >= 16 && refused > 0, "{pages} pages, {refused} were refused");
    for mut answer in answers {
        answer.message().await.expect_err("its connection was ended");
    }
    assert_eq!(metric(&gateway, "msg_gateway_connections").await.unwrap(), 1.0);
    assert!(metric(&gateway, "msg_gateway_slow_reader_disconnects_total").await.unwrap() >= 2.0);
    assert!(transfer.stop().await.unwrap().success());
}
