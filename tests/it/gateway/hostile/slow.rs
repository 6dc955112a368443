//! Callers that send a few bytes at intervals and never complete a handshake, a head or a request.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::Attacked;
use super::peer::{
    END_HEADERS, Outcome, PREFACE, Peer, SEND, frame, grpc_frame, head, headers_block, kind, start_call,
};

const PAUSE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn unfinished_handshake_is_closed_at_its_timeout() {
    let attacked = Attacked::new("hostile_handshake", |spec| spec.env("HANDSHAKE_TIMEOUT", "1s")).await;
    let address = &attacked.gateway.address;
    let unfinished = [PREFACE, &frame(kind::SETTINGS, 0, 0, &[])[..8]].concat();
    let byte_by_byte = |bytes: &[u8]| bytes.iter().map(|byte| vec![*byte]).collect::<Vec<_>>();
    let cases = [
        ("nothing", vec![]),
        ("half a preface", vec![PREFACE[..10].to_vec()]),
        ("a preface", vec![PREFACE.to_vec()]),
        ("a preface and half a frame", vec![unfinished.clone()]),
        ("a preface, byte by byte", byte_by_byte(&unfinished)),
    ];
    let ended = join_all(cases.into_iter().map(|(case, chunks)| async move {
        let started = Instant::now();
        let mut peer = Peer::without_preface(address).await;
        peer.send_slowly(chunks, PAUSE).await;
        (case, started.elapsed())
    }))
    .await;
    for (case, after) in ended {
        assert!(after >= Duration::from_millis(900), "{case}: closed early, after {after:?}");
        assert!(after < Duration::from_secs(10), "{case}: closed late, after {after:?}");
    }
    // Another protocol: the gateway may close the connection immediately.
    let mut http1 = Peer::without_preface(address).await;
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    http1.send_slowly(vec![request], PAUSE).await;
    attacked.assert_unharmed(50).await;
}

#[tokio::test]
async fn unfinished_headers_end_the_connection() {
    let settings = [("KEEPALIVE_INTERVAL", "1s"), ("KEEPALIVE_TIMEOUT", "1s")];
    let attacked =
        Attacked::new("hostile_heads", |spec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value)))
            .await;
    let address = &attacked.gateway.address;
    let headers_block = headers_block(SEND);
    let first = frame(kind::HEADERS, 0, 1, &headers_block);
    let one = |byte: &u8| frame(kind::CONTINUATION, 0, 1, &[*byte]);
    let frames = std::iter::once(first.clone()).chain(headers_block.iter().map(one)).collect::<Vec<_>>();
    let long = frame(kind::CONTINUATION, END_HEADERS, 1, &[0; 10_000]);
    let bytes = std::iter::once(first).chain(long.iter().map(|byte| vec![*byte])).collect::<Vec<_>>();
    let cases =
        [("a byte a frame", frames, "GOAWAY ENHANCE_YOUR_CALM"), ("a byte at a time", bytes, "GOAWAY NO_ERROR")];
    let ended = join_all(cases.into_iter().map(|(case, chunks, expected)| async move {
        let mut peer = Peer::with_preface(address, &[]).await;
        (case, peer.send_slowly(chunks, PAUSE).await, expected)
    }))
    .await;
    for (case, ending, expected) in ended {
        assert_eq!(ending, expected, "{case}");
    }
    attacked.assert_unharmed(50).await;
}

/// A body that does not end, with different parts of it sent.
#[tokio::test]
async fn unfinished_request_fails_with_not_sent() {
    let attacked = Attacked::new("hostile_trickle", |spec| spec.env("REQUEST_RECEIVE_TIMEOUT", "1s")).await;
    let address = &attacked.gateway.address;
    let ended =
        join_all([&[][..], &[0], &grpc_frame(0, 1 << 20, b"x"), &grpc_frame(0, 0, b"")].map(|bytes| async move {
            let (connection, mut stream, response) = start_call(address, head(address, SEND)).await;
            stream.send_data(bytes.to_vec().into(), false).unwrap();
            let started = Instant::now();
            let outcome = Outcome::of(response).await;
            connection.abort();
            (outcome.to_string(), started.elapsed())
        }))
        .await;
    for (outcome, after) in ended {
        assert_eq!(outcome, "Unavailable NOT_SENT");
        assert!(after < Duration::from_secs(10), "responded late, after {after:?}");
    }
    attacked.assert_unharmed(50).await;
}

/// Only bytes that were sent may need memory, not the announced length.
#[tokio::test]
async fn announced_message_lengths_need_no_memory() {
    const CONNECTIONS: u32 = 10;
    const CALLS: u32 = 1000;
    let attacked = Attacked::new("hostile_lengths", |spec| spec.env("REQUEST_RECEIVE_TIMEOUT", "20s")).await;
    let prefix = grpc_frame(0, 1 << 20, b"");
    let call = |stream| {
        [frame(kind::HEADERS, END_HEADERS, stream, &headers_block(SEND)), frame(kind::DATA, 0, stream, &prefix)]
    };
    let calls = (0..CALLS).flat_map(|i| call(2 * i + 1)).flatten().collect::<Vec<u8>>();
    let mut peers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut peer = Peer::with_preface(&attacked.gateway.address, &[]).await;
        assert_eq!(peer.flood(&calls).await, "responded");
        peers.push(peer);
    }
    // An open call needs 20 KiB; the announced lengths are 10 GiB in total.
    attacked.assert_unharmed(400).await;
}
