//! Frames that are cheap to send and dear to answer, as many as the connection takes.

use super::peer::{ACK, END_HEADERS, END_STREAM, Peer, SEND, block, frame, framed, kind};
use super::{Attacked, innocent};
use msg_common::proto::SendMsgRequest;
use prost::Message;

const COUNT: u32 = 100_000;

/// A frame that nobody else sends any more.
const PRIORITY: u8 = 2;

const CANCEL: &[u8] = &8_u32.to_be_bytes();

/// The ids of so many calls.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|i| 2 * i + 1)
}

/// CVE-2023-44487: calls that are taken back at once do not count among those that run.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let attacked = Attacked::new("hostile_resets", |spec| spec).await;
    let head = block(SEND);
    let message = SendMsgRequest { msg: Some(innocent()), wait_for: 0 }.encode_to_vec();
    let body = framed(0, message.len(), &message);
    let begun = |stream| frame(kind::HEADERS, END_HEADERS, stream, &head);
    let whole = |stream| [begun(stream), frame(kind::DATA, END_STREAM, stream, &body)].concat();
    let reset = |stream| frame(kind::RST_STREAM, 0, stream, CANCEL);
    let begun_and_reset: Vec<u8> = streams(COUNT).flat_map(|stream| [begun(stream), reset(stream)].concat()).collect();
    let sent_and_reset: Vec<u8> = streams(COUNT).flat_map(|stream| [whole(stream), reset(stream)].concat()).collect();
    for bytes in [begun_and_reset, sent_and_reset] {
        let mut peer = Peer::greeted(&attacked.gateway.address, &[]).await;
        let (said, ()) = tokio::join!(peer.flood(&bytes), attacked.serves_others());
        assert_eq!(said, "GOAWAY ENHANCE_YOUR_CALM");
    }
    attacked.is_unharmed(100).await;
}

/// CVE-2025-8671, the same the other way round: frames that make the server take the call back.
#[tokio::test]
async fn resets_that_the_server_is_made_to_send_end_the_connection() {
    let attacked = Attacked::new("hostile_made_resets", |spec| spec).await;
    let head = block(SEND);
    let begun = |stream| frame(kind::HEADERS, END_HEADERS, stream, &head);
    let ended = |stream| frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head);
    let too_large = |stream| frame(kind::WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes());
    let too_late = |stream| frame(kind::DATA, 0, stream, b"x");
    let of_itself = |stream: u32| frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[0]].concat());
    let calm = "GOAWAY ENHANCE_YOUR_CALM";
    let flood = |call: &dyn Fn(u32) -> Vec<u8>| streams(COUNT).flat_map(call).collect::<Vec<u8>>();
    let cases = [
        ("a window that grows too large", flood(&|stream| [begun(stream), too_large(stream)].concat()), calm),
        ("DATA after the end", flood(&|stream| [ended(stream), too_late(stream)].concat()), "GOAWAY PROTOCOL_ERROR"),
        ("a stream that waits for itself", flood(&|stream| [begun(stream), of_itself(stream)].concat()), calm),
    ];
    for (case, bytes, expected) in cases {
        let mut peer = Peer::greeted(&attacked.gateway.address, &[]).await;
        let (said, ()) = tokio::join!(peer.flood(&bytes), attacked.serves_others());
        assert_eq!(said, expected, "{case}");
    }
    attacked.is_unharmed(100).await;
}

#[tokio::test]
async fn floods_of_small_frames_are_borne_or_ended() {
    let attacked = Attacked::new("hostile_floods", |spec| spec).await;
    let address = &attacked.gateway.address;
    let many = |one: Vec<u8>| one.repeat(COUNT as usize);
    let begun = |then: Vec<u8>| [frame(kind::HEADERS, END_HEADERS, 1, &block(SEND)), then].concat();
    let window = |by: u32| frame(kind::WINDOW_UPDATE, 0, 0, &by.to_be_bytes());
    let cases = [
        ("SETTINGS", many(frame(kind::SETTINGS, 0, 0, &[])), "answered"),
        ("acknowledgements of nothing", many(frame(kind::SETTINGS, ACK, 0, &[])), "GOAWAY PROTOCOL_ERROR"),
        ("PING", many(frame(kind::PING, 0, 0, b"whatever")), "answered"),
        ("windows that grow by one", many(window(1)), "answered"),
        ("a window that grows by nothing", window(0), "GOAWAY PROTOCOL_ERROR"),
        ("a window that grows too large", window(0x7fff_ffff), "GOAWAY FLOW_CONTROL_ERROR"),
        ("empty DATA", begun(many(frame(kind::DATA, 0, 1, &[]))), "GOAWAY ENHANCE_YOUR_CALM"),
        (
            "empty CONTINUATION",
            [frame(kind::HEADERS, 0, 1, &[]), many(frame(kind::CONTINUATION, 0, 1, &[]))].concat(),
            "GOAWAY ENHANCE_YOUR_CALM",
        ),
        ("unknown frames", many(frame(0x77, 0, 0, b"x")), "answered"),
        ("DATA on no stream", frame(kind::DATA, 0, 0, b"x"), "GOAWAY PROTOCOL_ERROR"),
        ("a frame that is too long", frame(kind::DATA, 0, 1, &[0; 20_000]), "GOAWAY FRAME_SIZE_ERROR"),
        ("a head that is no HPACK", frame(kind::HEADERS, END_HEADERS, 1, &[0x80; 50]), "GOAWAY PROTOCOL_ERROR"),
        ("an even stream", frame(kind::HEADERS, END_HEADERS, 2, &block(SEND)), "GOAWAY PROTOCOL_ERROR"),
    ];
    for (case, bytes, expected) in cases {
        let mut peer = Peer::greeted(address, &[]).await;
        let (said, ()) = tokio::join!(peer.flood(&bytes), attacked.serves_others());
        assert_eq!(said, expected, "{case}");
    }
    attacked.is_unharmed(100).await;
}
