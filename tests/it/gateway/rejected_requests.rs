//! Requests that the gateway rejects before anything is sent, with every reason.

use std::time::Duration;

use msg_common::proto::{GetMaxSeqsRequest, Msg, PullMsgsRequest, SendMsgRequest};
use tonic::{Code, Request};

use super::calls::{assert_failed, channel, client, fields, request, send, send_within, unary};
use crate::support::kafka::msg;
use crate::support::world::World;

#[tokio::test]
async fn invalid_fields_of_a_message_are_all_named() {
    let world = World::new("bad_fields").await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let good = || msg("alice", "bob", "1", "x");
    let everything = Msg {
        recv_id: String::new(),
        send_id: "a\0".into(),
        client_msg_id: "x".repeat(257),
        session_type: 9,
        content_type: String::new(),
        content: vec![0; 1_000_001].into(),
        attributes: [("lang".to_owned(), "\0".to_owned()), (String::new(), "v".repeat(4097))].into(),
    };
    let large = |count: usize| (0..count).map(|i| (format!("{i:0>8}"), "v".repeat(4000))).collect();
    let cases = [
        (
            everything,
            &[
                "msg.recv_id",
                "msg.send_id",
                "msg.client_msg_id",
                "msg.session_type",
                "msg.content_type",
                "msg.content",
                "msg.attributes.keys[0]",
                "msg.attributes.values[0]",
                "msg.attributes.values[1]",
            ][..],
        ),
        (Msg { recv_id: "bo\0b".into(), ..good() }, &["msg.recv_id"]),
        (Msg { recv_id: "é".repeat(129), ..good() }, &["msg.recv_id"]),
        (Msg { send_id: String::new(), ..good() }, &["msg.send_id"]),
        (Msg { client_msg_id: "\0".into(), ..good() }, &["msg.client_msg_id"]),
        (Msg { session_type: 0, ..good() }, &["msg.session_type"]),
        (Msg { content_type: "x".repeat(129), ..good() }, &["msg.content_type"]),
        (Msg { content: vec![0; 1_000_001].into(), ..good() }, &["msg.content"]),
        (Msg { attributes: (0..65).map(|i| (i.to_string(), String::new())).collect(), ..good() }, &["msg.attributes"]),
        (Msg { attributes: large(5), ..good() }, &["msg.attributes"]),
    ];
    for (bad, expected) in cases {
        let details = assert_failed(send(&client, &bad).await, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&details), expected);
    }
    let empty = client.clone().send_msg(SendMsgRequest { msg: None, wait_for: 7 }).await;
    let details = assert_failed(empty, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&details), ["msg", "wait_for"]);
    assert_eq!(world.end_offsets().await, [0; 4], "something was sent");
}

#[tokio::test]
async fn hundreds_of_violations_are_abbreviated() {
    let world = World::new("many_bad_fields").await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let attributes = (0..500).map(|i| (format!("\0{i}"), "\0".to_owned())).collect();
    let bad = Msg { attributes, ..msg("alice", "bob", "1", "x") };
    let inboxes = GetMaxSeqsRequest { recv_ids: vec!["\0".into(); 900] };
    let send_details = assert_failed(send(&client, &bad).await, Code::InvalidArgument, "INVALID_FIELDS");
    let read_details =
        assert_failed(client.clone().get_max_seqs(inboxes).await, Code::InvalidArgument, "INVALID_FIELDS");
    // 1,000 violations of keys and values, and one more: there are too many attributes.
    for (details, count) in [(send_details, 1001), (read_details, 900)] {
        let violations = &details.bad_request().unwrap().field_violations;
        assert!(violations.len() > 10);
        let left = count - (violations.len() - 1);
        assert_eq!(violations.last().unwrap().description, format!("and {left} more"));
    }
}

#[tokio::test]
async fn invalid_fields_of_a_read_are_all_named() {
    let world = World::new("bad_reads").await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let bad = PullMsgsRequest {
        recv_id: "x".repeat(257),
        from_seq: -1,
        to_seq: -2,
        order: 5,
        page_size: -1,
        page_token: "?".into(),
        omit_content: false,
    };
    let details = assert_failed(client.clone().pull_msgs(bad).await, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&details), ["recv_id", "from_seq", "to_seq", "page_size", "order", "page_token"]);
    let upside_down = PullMsgsRequest { recv_id: "bob".into(), from_seq: 5, to_seq: 4, ..PullMsgsRequest::default() };
    let details = assert_failed(client.clone().pull_msgs(upside_down).await, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&details), ["to_seq"]);
}

/// An error without a reason would mean "unknown", so an error that the transport makes has one too.
#[tokio::test]
async fn transport_errors_have_a_reason() {
    let world = World::new("transport").await;
    let gateway = world.running_gateway().await;
    let (channel, mut client) = (channel(&gateway).await, client(&gateway).await);
    let too_large = request(&msg("alice", "bob", "1", vec![0; 5 << 20]));
    assert_failed(client.send_msg(too_large).await, Code::ResourceExhausted, "TOO_LARGE");
    for path in ["/msg.v1.MsgGateway/SendMessage", "/msg.v2.MsgGateway/SendMsg", "/msg.v1.MsgGatewayX/SendMsg", "/x"] {
        let result = unary::<_, PullMsgsRequest>(&channel, path, PullMsgsRequest::default()).await;
        assert_failed(result, Code::Unimplemented, "BAD_REQUEST");
    }
    // Bytes that are no SendMsgRequest: a wrong wire type, and text that is not UTF-8.
    #[derive(Clone, PartialEq, prost::Message)]
    struct WrongWireType {
        #[prost(int64, tag = "1")]
        msg: i64,
    }
    let path = "/msg.v1.MsgGateway/SendMsg";
    let result = unary::<_, SendMsgRequest>(&channel, path, WrongWireType { msg: 7 }).await;
    assert_failed(result, Code::Internal, "BAD_REQUEST");
    let mut compressed = Request::new(request(&msg("alice", "bob", "2", "x")));
    compressed.metadata_mut().insert("grpc-encoding", "br".parse().unwrap());
    let result = client.send_msg(compressed).await;
    assert_failed(result, Code::Unimplemented, "BAD_REQUEST");
    // The same connection is still served.
    assert_eq!(world.end_offsets().await, [0; 4], "something was sent");
    send(&client, &msg("alice", "bob", "3", "x")).await.unwrap();
}

#[tokio::test]
async fn too_short_deadline_is_rejected_before_anything_is_sent() {
    let world = World::new("too_short").await;
    // The margin is so long that the response arrives before the caller's own timer ends the call.
    let gateway = world.gateway("gateway", |spec| spec.env("DEADLINE_MARGIN", "10s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let message = msg("alice", "bob", "1", "x");
    let rejected = send_within(&client, &message, Duration::from_secs(9)).await;
    assert_failed(rejected, Code::DeadlineExceeded, "DEADLINE_TOO_SHORT");
    let mut read = Request::new(PullMsgsRequest { recv_id: "bob".into(), ..PullMsgsRequest::default() });
    read.set_timeout(Duration::from_secs(9));
    assert_failed(client.clone().pull_msgs(read).await, Code::DeadlineExceeded, "DEADLINE_TOO_SHORT");
    assert_eq!(world.end_offsets().await, [0; 4], "the rejected message was sent");
    send_within(&client, &message, Duration::from_secs(30)).await.unwrap();
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 1);
}
