//! Request bodies: frames that are truncated, too long or wrongly marked, and bytes that are no message.

use futures_util::future::join_all;
use msg_common::proto::{Msg, SendMsgRequest};
use prost::Message;

use super::peer::{Outcome, SEND, call, grpc_frame, head, start_call};
use super::{Attacked, ordinary_msg};

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut encoded = vec![number << 3 | 2];
    prost::encode_length_delimiter(bytes.len(), &mut encoded).unwrap();
    encoded.extend(bytes);
    encoded
}

/// Fields nested in each other. The field is unknown, so it is skipped.
fn nested(depth: usize) -> Vec<u8> {
    // Written backwards from the innermost field, because otherwise each level would be copied into the next.
    let mut backwards: Vec<u8> = Vec::new();
    for _ in 0..depth {
        let mut head = vec![15 << 3 | 2];
        prost::encode_length_delimiter(backwards.len(), &mut head).unwrap();
        backwards.extend(head.iter().rev());
    }
    backwards.reverse();
    backwards
}

#[tokio::test]
async fn malformed_bodies_are_rejected_with_a_reason() {
    let attacked = Attacked::new("hostile_bodies", |spec| spec).await;
    let good = SendMsgRequest { msg: Some(ordinary_msg()), wait_for: 0 }.encode_to_vec();
    let whole = |message: &[u8]| grpc_frame(0, message.len(), message);
    // Keys of three letters, so that each entry is short and many fit.
    let letters = || b'A'..=b'z';
    let keys = letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| [a, b, c])));
    let entries: Vec<u8> = keys.take(100_000).flat_map(|key| field(7, &field(1, &key))).collect();
    let many_attributes = Msg { attributes: [].into(), ..ordinary_msg() }.encode_to_vec();
    let many_attributes = field(1, &[many_attributes, entries].concat());
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing wrong", whole(&good), "OK"),
        ("nothing", Vec::new(), "Internal BAD_REQUEST"),
        ("half a prefix", vec![0, 0, 0], "Internal BAD_REQUEST"),
        ("a truncated frame", whole(&good)[..20].to_vec(), "Internal BAD_REQUEST"),
        ("a length of one too many", grpc_frame(0, good.len() + 1, &good), "Internal BAD_REQUEST"),
        ("a length over the limit", grpc_frame(0, 5 << 20, &good), "ResourceExhausted TOO_LARGE"),
        ("the largest length", grpc_frame(0, u32::MAX as usize, &good), "ResourceExhausted TOO_LARGE"),
        ("a message over the limit", whole(&vec![0; 5 << 20]), "ResourceExhausted TOO_LARGE"),
        ("compressed without an encoding", grpc_frame(1, good.len(), &good), "Internal BAD_REQUEST"),
        ("an unknown flag", grpc_frame(7, good.len(), &good), "Internal BAD_REQUEST"),
        ("two messages", whole(&good).repeat(2), "Internal BAD_REQUEST"),
        ("garbage", whole(&[0xff; 100]), "Internal BAD_REQUEST"),
        ("a number instead of a message", whole(&[1 << 3, 7]), "Internal BAD_REQUEST"),
        ("a field without a number", whole(&[2, 0]), "Internal BAD_REQUEST"),
        ("text that is not UTF-8", whole(&field(1, &field(1, b"b\xffb"))), "Internal BAD_REQUEST"),
        ("a million groups in each other", whole(&vec![15 << 3 | 3; 1_000_000]), "Internal BAD_REQUEST"),
        ("a million ends of groups", whole(&vec![15 << 3 | 4; 1_000_000]), "Internal BAD_REQUEST"),
        ("250,000 fields in each other", whole(&nested(250_000)), "InvalidArgument INVALID_FIELDS"),
        ("an empty message", whole(&[]), "InvalidArgument INVALID_FIELDS"),
        ("half a million times the message", whole(&field(1, &[]).repeat(500_000)), "ResourceExhausted TOO_LARGE"),
        ("100,000 attributes", whole(&many_attributes), "InvalidArgument INVALID_FIELDS"),
    ];
    for (case, body, expected) in cases {
        let address = &attacked.gateway.address;
        assert_eq!(call(address, head(address, SEND), body).await.to_string(), expected, "{case}");
    }
    for (encoding, flag) in [("br", 0), ("gzip", 1), ("gzip", 0), ("identity, gzip", 1), ("\u{7f}", 1)] {
        let address = &attacked.gateway.address;
        let Ok(value) = http::HeaderValue::from_bytes(encoding.as_bytes()) else { continue };
        let outcome =
            call(address, head(address, SEND).header("grpc-encoding", value), grpc_frame(flag, 9, b"not gzip!")).await;
        assert_eq!(outcome.to_string(), "Unimplemented BAD_REQUEST", "{encoding} {flag}");
    }
    attacked.assert_unharmed(100).await;
}

/// Two bytes of a request can become a message of more than a hundred bytes in memory.
#[tokio::test]
async fn batch_of_millions_of_messages_is_rejected_before_decoding() {
    let attacked = Attacked::new("hostile_batches", |spec| spec.env("REQUEST_RECEIVE_TIMEOUT", "2s")).await;
    let address = &attacked.gateway.address;
    let message = field(1, &[]).repeat(2_000_000);
    let body = grpc_frame(0, message.len(), &message);
    for path in ["/msg.v1.MsgGateway/BatchSendMsg", "/msg.v1.MsgGateway/StreamSendMsg"] {
        let outcomes = join_all((0..4).map(|_| call(address, head(address, path), body.clone()))).await;
        for outcome in outcomes {
            assert_eq!(outcome.to_string(), "ResourceExhausted TOO_LARGE", "{path}");
        }
    }
    // Attributes are two levels down. They are decoded only once the request is received in full, and are freed
    // immediately.
    let letters = || b'0'..=b'z';
    let keys = letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| [a, b, c])));
    let attributes: Vec<u8> = keys.flat_map(|key| field(7, &field(1, &key))).collect();
    let message = field(1, &attributes);
    let body = grpc_frame(0, message.len(), &message);
    let unfinished = join_all((0..12).map(|_| async {
        let (connection, mut stream, response) =
            start_call(address, head(address, "/msg.v1.MsgGateway/BatchSendMsg")).await;
        stream.send_data(body.clone().into(), false).unwrap();
        let outcome = Outcome::of(response).await;
        connection.abort();
        outcome.to_string()
    }))
    .await;
    assert!(unfinished.iter().all(|outcome| outcome == "Unavailable NOT_SENT"), "{unfinished:?}");
    attacked.assert_unharmed(250).await;
}
