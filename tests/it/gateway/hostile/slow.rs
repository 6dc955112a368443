//! Callers that send a little from time to time, so that nothing of theirs is ever whole.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::Attacked;
use super::peer::{Answer, END_HEADERS, PREFACE, Peer, SEND, begin, block, frame, framed, head, kind};

/// From one byte to the next: this attack is a matter of time.
const PAUSE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_handshake_that_does_not_end_is_ended() {
    let attacked = Attacked::new("hostile_handshake", |spec| spec.env("HANDSHAKE_TIMEOUT", "1s")).await;
    let address = &attacked.gateway.address;
    let unfinished = [PREFACE, &frame(kind::SETTINGS, 0, 0, &[])[..8]].concat();
    let slowly = |bytes: &[u8]| bytes.iter().map(|byte| vec![*byte]).collect::<Vec<_>>();
    let cases = [
        ("nothing", vec![]),
        ("half a preface", vec![PREFACE[..10].to_vec()]),
        ("a preface", vec![PREFACE.to_vec()]),
        ("a preface and half a frame", vec![unfinished.clone()]),
        ("a preface, byte by byte", slowly(&unfinished)),
    ];
    let ended = join_all(cases.into_iter().map(|(case, pieces)| async move {
        let begun = Instant::now();
        let mut peer = Peer::silent(address).await;
        peer.trickle(pieces, PAUSE).await;
        (case, begun.elapsed())
    }))
    .await;
    for (case, after) in ended {
        assert!(after >= Duration::from_millis(900), "{case}: already after {after:?}");
        assert!(after < Duration::from_secs(10), "{case}: only after {after:?}");
    }
    // What is another protocol need not be waited for.
    let mut http1 = Peer::silent(address).await;
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    http1.trickle(vec![request], PAUSE).await;
    attacked.is_unharmed(50).await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_ended() {
    let settings = [("KEEPALIVE_INTERVAL", "1s"), ("KEEPALIVE_TIMEOUT", "1s")];
    let attacked =
        Attacked::new("hostile_heads", |spec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value)))
            .await;
    let address = &attacked.gateway.address;
    let block = block(SEND);
    let begin = frame(kind::HEADERS, 0, 1, &block);
    let one = |byte: &u8| frame(kind::CONTINUATION, 0, 1, &[*byte]);
    let frames = std::iter::once(begin.clone()).chain(block.iter().map(one)).collect::<Vec<_>>();
    let long = frame(kind::CONTINUATION, END_HEADERS, 1, &[0; 10_000]);
    let bytes = std::iter::once(begin).chain(long.iter().map(|byte| vec![*byte])).collect::<Vec<_>>();
    let cases =
        [("a byte a frame", frames, "GOAWAY ENHANCE_YOUR_CALM"), ("a byte at a time", bytes, "GOAWAY NO_ERROR")];
    let ended = join_all(cases.into_iter().map(|(case, pieces, expected)| async move {
        let mut peer = Peer::greeted(address, &[]).await;
        (case, peer.trickle(pieces, PAUSE).await, expected)
    }))
    .await;
    for (case, said, expected) in ended {
        assert_eq!(said, expected, "{case}");
    }
    attacked.is_unharmed(50).await;
}

/// A body that does not end, whatever of it is there.
#[tokio::test]
async fn a_request_that_does_not_end_is_answered() {
    let attacked = Attacked::new("hostile_trickle", |spec| spec.env("REQUEST_RECEIVE_TIMEOUT", "1s")).await;
    let address = &attacked.gateway.address;
    let ended = join_all([&[][..], &[0], &framed(0, 1 << 20, b"x"), &framed(0, 0, b"")].map(|bytes| async move {
        let (connection, mut stream, response) = begin(address, head(address, SEND)).await;
        stream.send_data(bytes.to_vec().into(), false).unwrap();
        let begun = Instant::now();
        let answer = Answer::of(response).await;
        connection.abort();
        (answer.to_string(), begun.elapsed())
    }))
    .await;
    for (answer, after) in ended {
        assert_eq!(answer, "Unavailable NOT_SENT");
        assert!(after < Duration::from_secs(10), "only after {after:?}");
    }
    attacked.is_unharmed(50).await;
}

/// What is told costs nothing, only what is sent.
#[tokio::test]
async fn lengths_that_are_told_and_not_sent_cost_no_memory() {
    const CONNECTIONS: u32 = 10;
    const CALLS: u32 = 1000;
    let attacked = Attacked::new("hostile_lengths", |spec| spec.env("REQUEST_RECEIVE_TIMEOUT", "20s")).await;
    let prefix = framed(0, 1 << 20, b"");
    let call =
        |stream| [frame(kind::HEADERS, END_HEADERS, stream, &block(SEND)), frame(kind::DATA, 0, stream, &prefix)];
    let calls = (0..CALLS).flat_map(|i| call(2 * i + 1)).flatten().collect::<Vec<u8>>();
    let mut peers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut peer = Peer::greeted(&attacked.gateway.address, &[]).await;
        assert_eq!(peer.flood(&calls).await, "answered");
        peers.push(peer);
    }
    // An open call has 20 KiB of its own; what was told is 10 GiB.
    attacked.is_unharmed(400).await;
}
