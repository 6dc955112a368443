//! Callers that request much and read nothing: the responses to every kind of call stay within their budgets.

use futures_util::future::join_all;
use h2::client::SendRequest;
use msg_common::proto::{
    BatchSendMsgRequest, GetMaxSeqsRequest, InboxCursor, Msg, PullMsgsRequest, SendMsgRequest, WatchMsgsRequest,
};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::codegen::Bytes;

use super::super::calls::{assert_not_sent, client, metric, send};
use super::peer::{
    END_HEADERS, END_STREAM, Outcome, PULL, Peer, SEND, call, frame, grpc_frame, head, headers_block, kind,
};
use super::{Attacked, ordinary_msg};
use crate::support::kafka::{msg, record_of};
use crate::support::world::Gateway;
use crate::support::{ensure, eventually};

/// HTTP/2's setting for the initial flow-control window of each stream.
const INITIAL_WINDOW_SIZE: u16 = 4;
/// The memory that a gateway may need in addition to a test's own budget, in MiB.
const SLACK: u64 = 64;

const WATCH: &str = "/msg.v1.MsgGateway/WatchMsgs";
const BATCH: &str = "/msg.v1.MsgGateway/BatchSendMsg";
const MAX_SEQS: &str = "/msg.v1.MsgGateway/GetMaxSeqs";
const REFLECT: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// The frames of `count` calls of this method with this message.
fn calls(path: &str, message: &[u8], count: u32) -> Vec<u8> {
    let body = grpc_frame(0, message.len(), message);
    let call = |stream| {
        let head = frame(kind::HEADERS, END_HEADERS, stream, &headers_block(path));
        let chunks = body.chunks(16_384).collect::<Vec<_>>();
        let last = chunks.len() - 1;
        let data = chunks.into_iter().enumerate();
        let data =
            data.flat_map(move |(i, chunk)| frame(kind::DATA, if i == last { END_STREAM } else { 0 }, stream, chunk));
        head.into_iter().chain(data.collect::<Vec<_>>())
    };
    (0..count).flat_map(|i| call(2 * i + 1)).collect()
}

/// Opens a connection with a window of this many bytes per response, and makes these calls. Reads all frames, so that
/// HTTP/2's flow control holds the responses back, and not TCP's.
async fn unread(gateway: &Gateway, window: u32, calls: &[u8]) -> JoinHandle<()> {
    let mut peer = Peer::with_preface(&gateway.address, &[(INITIAL_WINDOW_SIZE, window)]).await;
    peer.writing.write_all(calls).await.unwrap();
    tokio::spawn(async move { while peer.next().await.is_some() {} })
}

#[tokio::test]
async fn unread_watch_events_stay_within_their_budget() {
    const CONNECTIONS: usize = 40;
    const WATCHES: u32 = 50;
    let settings = [("WATCH_STALL_TIMEOUT", "2s"), ("RESPONSE_READ_TIMEOUT", "3s"), ("WATCH_BUFFER_BYTES", "32MiB")];
    let attacked = Attacked::new("hostile_watches", |spec| {
        settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value))
    })
    .await;
    let _transfer = attacked.world.running_transfer().await;
    let gateway = &attacked.gateway;
    let inboxes = vec![InboxCursor { recv_id: "eve".into(), after_seq: Some(0) }];
    let request = WatchMsgsRequest { inboxes, omit_content: false };
    let watches = calls(WATCH, &request.encode_to_vec(), WATCHES);
    let mut peers = Vec::new();
    for _ in 0..CONNECTIONS {
        peers.push(unread(gateway, 100, &watches).await);
    }
    let count = CONNECTIONS as f64 * f64::from(WATCHES);
    eventually("all watches are open", async || {
        let watchers = metric(gateway, "msg_gateway_watchers").await?;
        ensure(watchers == count, format!("{watchers} of {count} watches"))
    })
    .await;
    let mut reader = client(gateway).await.watch_msgs(request).await.unwrap().into_inner();
    let writer = attacked.world.writer();
    writer.put(&record_of(&msg("alice", "eve", "large", vec![b'x'; 1_000_000])));
    writer.flush();
    // A watcher that reads gets the message, at the latest once the watchers that do not read are ended.
    let event = async {
        loop {
            match reader.message().await.unwrap().expect("the watch is open").event.expect("an event is set") {
                msg_common::proto::watch_msgs_response::Event::Msgs(msgs) => return msgs.msgs.len(),
                msg_common::proto::watch_msgs_response::Event::Heartbeat(_) => {}
            }
        }
    };
    assert_eq!(
        tokio::time::timeout(crate::support::WAIT_TIMEOUT, event).await.expect("the watcher gets the message"),
        1
    );
    peers.iter().for_each(JoinHandle::abort);
    // The 2,000 open calls need memory too: at most 32 KiB each.
    attacked.assert_unharmed(32 + 2000 * 32 / 1024 + SLACK).await;
}

#[tokio::test]
async fn unread_reads_and_batches_stay_within_their_budget() {
    let settings = [("RESPONSE_READ_TIMEOUT", "3s"), ("MAX_RESPONSE_BYTES", "16MiB"), ("MAX_OPEN_CALLS", "3000")];
    let attacked = Attacked::new("hostile_responses", |spec| {
        settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value))
    })
    .await;
    let _transfer = attacked.world.running_transfer().await;
    let writer = attacked.world.writer();
    (0..90).for_each(|i| writer.put(&record_of(&msg("alice", "eve", &i.to_string(), vec![b'x'; 40_000]))));
    writer.flush();
    attacked.world.wait_for_rows(91).await;
    let gateway = &attacked.gateway;
    let pull = PullMsgsRequest { recv_id: "eve".into(), page_size: 1000, ..PullMsgsRequest::default() };
    let seqs = GetMaxSeqsRequest { recv_ids: (0..1000).map(|i| format!("{i:0>200}")).collect() };
    // Each result of a batch is an error, which is larger than a placement.
    let batch = |count| BatchSendMsgRequest { msgs: vec![Msg::default(); count], wait_for: 0 }.encode_to_vec();
    for (path, message, count) in [
        (PULL, pull.encode_to_vec(), 200),
        (MAX_SEQS, seqs.encode_to_vec(), 40),
        (BATCH, batch(40), 500),
        (BATCH, batch(5), 500),
        (BATCH, batch(1000), 200),
        (SEND, SendMsgRequest { msg: Some(Msg::default()), wait_for: 0 }.encode_to_vec(), 500),
    ] {
        let calls = calls(path, &message, count);
        for window in [0, 1] {
            let mut peers = Vec::new();
            for _ in 0..4 {
                peers.push(unread(gateway, window, &calls).await);
            }
            attacked.assert_serves_others().await;
            // A caller that reads gets its response, at the latest once the slow readers have lost their connections.
            let expected = if path == SEND { "InvalidArgument INVALID_FIELDS" } else { "OK" };
            eventually("other callers get their responses", async || {
                let address = &gateway.address;
                let outcome =
                    call(address, head(address, path), grpc_frame(0, message.len(), &message)).await.to_string();
                ensure(outcome == expected, format!("{path} {window}: {outcome}"))
            })
            .await;
            peers.iter().for_each(JoinHandle::abort);
            // The calls of these peers count until the gateway has closed their connections.
            eventually("the calls of the slow readers have ended", async || {
                let open = metric(gateway, "msg_gateway_open_calls").await?;
                ensure(open == 0.0, format!("{open} open calls"))
            })
            .await;
        }
    }
    attacked.assert_serves_others().await;
    attacked.assert_unharmed(16 + 2000 * 32 / 1024 + SLACK).await;
    eventually("no response is buffered any more", async || {
        let buffered = metric(gateway, "msg_gateway_unread_response_bytes").await?;
        ensure(buffered == 0.0, format!("{buffered} bytes"))
    })
    .await;
}

/// A connection of the h2 library that sends without limit, and has a small receive window.
async fn connect_with_small_window(gateway: &Gateway) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let tcp = TcpStream::connect(&gateway.address).await.unwrap();
    let (requests, connection) =
        h2::client::Builder::new().initial_window_size(100).handshake::<_, Bytes>(tcp).await.unwrap();
    (requests, tokio::spawn(async { drop(connection.await) }))
}

#[tokio::test]
async fn reflection_echoes_no_large_request_and_has_a_stream_limit() {
    let attacked = Attacked::new("hostile_reflection", |spec| spec).await;
    let gateway = &attacked.gateway;
    // `host`, which the response repeats twice, and `list_services`.
    let mut message = vec![1 << 3 | 2];
    prost::encode_length_delimiter(4 << 20, &mut message).unwrap();
    message.extend(vec![b'x'; 4 << 20]);
    message.extend([7 << 3 | 2, 0]);
    let body = Bytes::from(grpc_frame(0, message.len(), &message));
    let (mut connections, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (requests, connection) = connect_with_small_window(gateway).await;
        connections.push(connection);
        for _ in 0..40 {
            let mut requests = requests.clone().ready().await.unwrap();
            let request = head(&gateway.address, REFLECT).body(()).unwrap();
            let (response, mut stream) = requests.send_request(request, false).unwrap();
            stream.send_data(body.clone(), true).unwrap();
            streams.push((response, stream));
        }
    }
    // Each request gets a response or is reset while it is sent. No response is read.
    let responses = streams.into_iter().map(|(response, stream)| async {
        let _ = response.await;
        stream
    });
    let _streams = tokio::time::timeout(crate::support::WAIT_TIMEOUT, join_all(responses))
        .await
        .expect("each request gets a response");
    attacked.assert_unharmed(SLACK).await;
    connections.iter().for_each(JoinHandle::abort);

    // Streams that stay open.
    let listing = grpc_frame(0, 2, &[7 << 3 | 2, 0]);
    let (requests, connection) = connect_with_small_window(gateway).await;
    let open = (0..100).map(|_| async {
        let mut requests = requests.clone().ready().await.unwrap();
        let request = head(&gateway.address, REFLECT).body(()).unwrap();
        let (response, mut stream) = requests.send_request(request, false).unwrap();
        stream.send_data(listing.clone().into(), false).unwrap();
        let code = response.await.unwrap().headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned());
        (code, stream)
    });
    let open = join_all(open).await;
    let rejected = open.iter().filter(|(code, _)| code.as_deref() == Some("8")).count();
    assert_eq!(rejected, 100 - 32, "RESOURCE_EXHAUSTED above the limit");
    attacked.assert_serves_others().await;
    connection.abort();
    attacked.assert_unharmed(SLACK).await;
}

#[tokio::test]
async fn reflection_can_be_switched_off() {
    let attacked = Attacked::new("no_reflection", |spec| spec.env("REFLECTION", "false")).await;
    let address = &attacked.gateway.address;
    let outcome = call(address, head(address, REFLECT), grpc_frame(0, 2, &[7 << 3 | 2, 0])).await;
    assert_eq!(outcome, Outcome::Grpc(Code::Unimplemented, None));
}

#[tokio::test]
async fn open_calls_have_a_limit_over_all_connections() {
    const LIMIT: usize = 2000;
    let attacked = Attacked::new("hostile_health", |spec| spec.env("MAX_OPEN_CALLS", LIMIT)).await;
    let gateway = &attacked.gateway;
    let watches = calls("/grpc.health.v1.Health/Watch", &[], 1000);
    let mut peers = Vec::new();
    // Fewer rejections than may wait unread: otherwise a connection would be closed, and its open calls with it.
    for window in [0, 1, 65_535, 0, 1, 65_535] {
        peers.push(unread(gateway, window, &watches).await);
    }
    eventually("the limit of open calls is reached", async || {
        let open = metric(gateway, "msg_gateway_open_calls").await?;
        let rejected = metric(gateway, "msg_gateway_calls_rejected_total").await?;
        ensure(
            open == LIMIT as f64 && rejected >= (peers.len() * 1000 - LIMIT) as f64,
            format!("{open} are open, {rejected} were rejected"),
        )
    })
    .await;
    assert_not_sent(send(&attacked.bystander, &ordinary_msg()).await, Code::ResourceExhausted);
    for _ in 0..4 {
        peers.push(unread(gateway, 0, &watches).await);
    }
    eventually("a caller that does not read its rejections is disconnected", async || {
        ensure(peers.iter().any(JoinHandle::is_finished), "all are connected")
    })
    .await;
    peers.iter().for_each(JoinHandle::abort);
    eventually("capacity is free again", async || Ok(send(&attacked.bystander, &ordinary_msg()).await?)).await;
    attacked.assert_unharmed(LIMIT as u64 * 32 / 1024 + SLACK).await;
}
