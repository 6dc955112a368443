//! The limits of connections hold over TLS too.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use h2::client::Builder;
use msg_common::proto::PullMsgsRequest;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::codegen::Bytes;
use tonic::codegen::http::Request;

use super::{client, ensure_sum, server_files, sum, tls_gateway};
use crate::gateway::calls::send;
use crate::support::certificates::{Ca, LOCAL, caller, connect};
use crate::support::kafka::{msg, record_of};
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

const CONNECTIONS: &str = "msg_gateway_connections ";
const TIMEOUTS: &str = "msg_gateway_handshake_timeouts_total";

/// The first bytes of a ClientHello, which announce more.
const HALF_A_HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

#[tokio::test]
async fn unfinished_handshakes_count_and_time_out() {
    let world = World::new("tls_handshakes").await;
    let ca = Ca::new("ours");
    let files = server_files(&ca.sign(&LOCAL), None);
    let settings = |spec: msg_stack::ServiceSpec| spec.env("MAX_CONNECTIONS", 4).env("HANDSHAKE_TIMEOUT", "10s");
    let gateway = tls_gateway(&world, &files, false, settings).await;
    let caller = caller(&ca.pem(), None);
    let mut waiting = Vec::new();
    for greeting in [&b""[..], HALF_A_HELLO, HALF_A_HELLO] {
        let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
        stream.write_all(greeting).await.unwrap();
        waiting.push(stream);
    }
    // TLS is complete, and HTTP/2 does not start.
    let mut silent = connect(&gateway.address, &caller).await.unwrap();
    eventually("they are counted", async || ensure_sum(&gateway, CONNECTIONS, &[], 4.0).await).await;
    let mut above = TcpStream::connect(&gateway.address).await.unwrap();
    let closed = timeout(Duration::from_secs(2), above.read(&mut [0; 1])).await;
    assert!(closed.expect("it is closed immediately").is_ok_and(|read| read == 0));
    let closing = async {
        let _ = silent.read_to_end(&mut Vec::new()).await;
        for mut stream in waiting {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    };
    timeout(WAIT_TIMEOUT, closing).await.expect("handshakes time out");
    ensure_sum(&gateway, TIMEOUTS, &[], 4.0).await.unwrap();
    eventually("their permits are released", async || ensure_sum(&gateway, CONNECTIONS, &[], 0.0).await).await;
    send(&client(&gateway, &caller), &msg("a", "bob", "1", "x")).await.unwrap();
}

/// Handshakes that wait do not delay the others, though they are many.
#[tokio::test]
async fn accept_does_not_wait_for_handshakes() {
    let world = World::new("tls_accept").await;
    let ca = Ca::new("ours");
    let files = server_files(&ca.sign(&LOCAL), None);
    let gateway = tls_gateway(&world, &files, false, |spec| spec).await;
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
        stream.write_all(HALF_A_HELLO).await.unwrap();
        waiting.push(stream);
    }
    let started = Instant::now();
    send(&client(&gateway, &caller(&ca.pem(), None)), &msg("a", "bob", "1", "x")).await.unwrap();
    // The handshake timeout is 10 s.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// A caller that reads no frame at all, and one that reads frames and opens no window.
#[tokio::test]
async fn slow_reader_loses_its_connection() {
    let world = World::new("tls_slow").await;
    let ca = Ca::new("ours");
    let files = server_files(&ca.sign(&LOCAL), None);
    let gateway = tls_gateway(&world, &files, false, |spec| spec.env("RESPONSE_READ_TIMEOUT", "2s")).await;
    let caller = caller(&ca.pem(), None);
    let _transfer = world.running_transfer().await;
    let writer = world.writer();
    (0..90).for_each(|i| writer.put(&record_of(&msg("alice", "eve", &i.to_string(), vec![b'x'; 40_000]))));
    writer.flush();
    world.wait_for_rows(90).await;
    let pull = PullMsgsRequest { recv_id: "eve".into(), page_size: 1000, ..PullMsgsRequest::default() };
    let message = pull.encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    for (disconnects, window) in [(1.0, 1 << 30), (2.0, 1)] {
        let stream = connect(&gateway.address, &caller).await.unwrap();
        let mut builder = Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(1 << 30);
        let (mut requests, mut connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
        let mut responses = Vec::new();
        for _ in 0..10 {
            let uri = format!("https://{}/msg.v1.MsgGateway/PullMsgs", gateway.address);
            let head = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
            let (response, mut sending) = requests.send_request(head.body(()).unwrap(), false).unwrap();
            sending.send_data(body.clone().into(), true).unwrap();
            responses.push(response);
        }
        // Writes the requests. With the large window, nothing is read afterwards.
        poll_fn(|cx| Poll::Ready(pin!(&mut connection).poll(cx).is_ready())).await;
        let reading = if window == 1 { Ok(tokio::spawn(async { drop(connection.await) })) } else { Err(connection) };
        eventually("the connection is closed", async || {
            ensure_sum(&gateway, "msg_gateway_slow_reader_disconnects_total", &[], disconnects).await?;
            ensure_sum(&gateway, CONNECTIONS, &[], 0.0).await?;
            let unread = sum(&gateway, "msg_gateway_unread_response_bytes", &[]).await?;
            ensure(unread == 0.0, format!("{unread} bytes are counted as unread"))
        })
        .await;
        drop((responses, requests));
        drop(reading);
    }
    send(&client(&gateway, &caller), &msg("a", "bob", "1", "x")).await.unwrap();
}
