//! Floods of frames that are cheap to send and expensive to process.

use super::peer::{ACK, END_HEADERS, END_STREAM, Peer, SEND, frame, grpc_frame, headers_block, kind};
use super::{Attacked, ordinary_msg};
use msg_common::proto::SendMsgRequest;
use prost::Message;

const COUNT: u32 = 100_000;

/// A frame type that clients no longer send.
const PRIORITY: u8 = 2;

const CANCEL: &[u8] = &8_u32.to_be_bytes();

fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|i| 2 * i + 1)
}

/// CVE-2023-44487: calls that are reset immediately do not count as concurrent streams.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let attacked = Attacked::new("hostile_resets", |spec| spec).await;
    let head = headers_block(SEND);
    let message = SendMsgRequest { msg: Some(ordinary_msg()), wait_for: 0 }.encode_to_vec();
    let body = grpc_frame(0, message.len(), &message);
    let opened = |stream| frame(kind::HEADERS, END_HEADERS, stream, &head);
    let whole = |stream| [opened(stream), frame(kind::DATA, END_STREAM, stream, &body)].concat();
    let reset = |stream| frame(kind::RST_STREAM, 0, stream, CANCEL);
    let opened_and_reset: Vec<u8> =
        streams(COUNT).flat_map(|stream| [opened(stream), reset(stream)].concat()).collect();
    let sent_and_reset: Vec<u8> = streams(COUNT).flat_map(|stream| [whole(stream), reset(stream)].concat()).collect();
    for bytes in [opened_and_reset, sent_and_reset] {
        let mut peer = Peer::with_preface(&attacked.gateway.address, &[]).await;
        let (ending, ()) = tokio::join!(peer.flood(&bytes), attacked.assert_serves_others());
        assert_eq!(ending, "GOAWAY ENHANCE_YOUR_CALM");
    }
    attacked.assert_unharmed(100).await;
}

/// CVE-2025-8671: the caller sends frames that make the server reset the stream.
#[tokio::test]
async fn provoked_server_resets_end_the_connection() {
    let attacked = Attacked::new("hostile_made_resets", |spec| spec).await;
    let head = headers_block(SEND);
    let opened = |stream| frame(kind::HEADERS, END_HEADERS, stream, &head);
    let half_closed = |stream| frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head);
    let too_large = |stream| frame(kind::WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes());
    let after_end = |stream| frame(kind::DATA, 0, stream, b"x");
    let depends_on_itself = |stream: u32| frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[0]].concat());
    let calm = "GOAWAY ENHANCE_YOUR_CALM";
    let flood = |call: &dyn Fn(u32) -> Vec<u8>| streams(COUNT).flat_map(call).collect::<Vec<u8>>();
    let cases = [
        ("a window that grows too large", flood(&|stream| [opened(stream), too_large(stream)].concat()), calm),
        (
            "DATA after the end",
            flood(&|stream| [half_closed(stream), after_end(stream)].concat()),
            "GOAWAY PROTOCOL_ERROR",
        ),
        (
            "a stream that depends on itself",
            flood(&|stream| [opened(stream), depends_on_itself(stream)].concat()),
            calm,
        ),
    ];
    for (case, bytes, expected) in cases {
        let mut peer = Peer::with_preface(&attacked.gateway.address, &[]).await;
        let (ending, ()) = tokio::join!(peer.flood(&bytes), attacked.assert_serves_others());
        assert_eq!(ending, expected, "{case}");
    }
    attacked.assert_unharmed(100).await;
}

#[tokio::test]
async fn small_frame_floods_are_served_or_end_the_connection() {
    let attacked = Attacked::new("hostile_floods", |spec| spec).await;
    let address = &attacked.gateway.address;
    let many = |one: Vec<u8>| one.repeat(COUNT as usize);
    let opened = |then: Vec<u8>| [frame(kind::HEADERS, END_HEADERS, 1, &headers_block(SEND)), then].concat();
    let window = |by: u32| frame(kind::WINDOW_UPDATE, 0, 0, &by.to_be_bytes());
    let cases = [
        ("SETTINGS", many(frame(kind::SETTINGS, 0, 0, &[])), "responded"),
        ("acknowledgements of nothing", many(frame(kind::SETTINGS, ACK, 0, &[])), "GOAWAY PROTOCOL_ERROR"),
        ("PING", many(frame(kind::PING, 0, 0, b"whatever")), "responded"),
        ("windows that grow by one", many(window(1)), "responded"),
        ("a window that grows by nothing", window(0), "GOAWAY PROTOCOL_ERROR"),
        ("a window that grows too large", window(0x7fff_ffff), "GOAWAY FLOW_CONTROL_ERROR"),
        ("empty DATA", opened(many(frame(kind::DATA, 0, 1, &[]))), "GOAWAY ENHANCE_YOUR_CALM"),
        (
            "empty CONTINUATION",
            [frame(kind::HEADERS, 0, 1, &[]), many(frame(kind::CONTINUATION, 0, 1, &[]))].concat(),
            "GOAWAY ENHANCE_YOUR_CALM",
        ),
        ("unknown frames", many(frame(0x77, 0, 0, b"x")), "responded"),
        ("DATA on no stream", frame(kind::DATA, 0, 0, b"x"), "GOAWAY PROTOCOL_ERROR"),
        ("a frame that is too long", frame(kind::DATA, 0, 1, &[0; 20_000]), "GOAWAY FRAME_SIZE_ERROR"),
        ("a head that is no HPACK", frame(kind::HEADERS, END_HEADERS, 1, &[0x80; 50]), "GOAWAY PROTOCOL_ERROR"),
        ("an even stream", frame(kind::HEADERS, END_HEADERS, 2, &headers_block(SEND)), "GOAWAY PROTOCOL_ERROR"),
    ];
    for (case, bytes, expected) in cases {
        let mut peer = Peer::with_preface(address, &[]).await;
        let (ending, ()) = tokio::join!(peer.flood(&bytes), attacked.assert_serves_others());
        assert_eq!(ending, expected, "{case}");
    }
    attacked.assert_unharmed(100).await;
}
