//! Request headers.

use tonic::codegen::http::HeaderValue;

use msg_common::proto::SendMsgRequest;
use prost::Message;

use super::peer::{Peer, SEND, call, frame, grpc_frame, head, headers_block, kind};
use super::{Attacked, ordinary_msg};

#[tokio::test]
async fn malformed_headers_are_rejected_or_ignored() {
    let attacked = Attacked::new("hostile_headers", |spec| spec).await;
    let address = &attacked.gateway.address;
    let message = SendMsgRequest { msg: Some(ordinary_msg()), wait_for: 0 }.encode_to_vec();
    let good = grpc_frame(0, message.len(), &message);
    for (path, expected) in [
        ("/msg.v1.MsgGateway/Nothing", "Unimplemented BAD_REQUEST"),
        ("/msg.v1.MsgGateway/", "Unimplemented BAD_REQUEST"),
        ("/msg.v9.MsgGateway/SendMsg", "Unimplemented BAD_REQUEST"),
        ("/", "Unimplemented BAD_REQUEST"),
        ("//msg.v1.MsgGateway/SendMsg", "Unimplemented BAD_REQUEST"),
        ("/msg.v1.MsgGateway/SendMsg/", "Unimplemented BAD_REQUEST"),
        ("/msg.v1.MsgGateway/SendMsg?x=1", "OK"),
        ("/msg.v1.MsgGateway/%53endMsg", "Unimplemented BAD_REQUEST"),
        (&format!("/{}", "x".repeat(8 << 10)), "Unimplemented BAD_REQUEST"),
        (&format!("/{}", "x".repeat(60 << 10)), "HTTP 431"),
    ] {
        assert_eq!(
            call(address, head(address, path), good.clone()).await.to_string(),
            expected,
            "{}",
            &path[..20.min(path.len())]
        );
    }
    for (name, value, expected) in [
        ("x-text", b"\xff\xfe not ASCII \x80".as_slice(), "OK"),
        ("grpc-timeout", b"soon", "OK"),
        ("grpc-timeout", b"-1S", "OK"),
        ("grpc-timeout", b"\xff", "OK"),
        ("grpc-timeout", b"99999999H", "OK"),
        ("grpc-timeout", b"123456789S", "OK"),
        ("grpc-timeout", b"0n", "DeadlineExceeded DEADLINE_TOO_SHORT"),
        ("traceparent", b"00-zz-\xff", "OK"),
        ("traceparent", &[b'0'; 5000], "OK"),
        ("x-long", &[b'x'; 20_000], "HTTP 431"),
    ] {
        let value = HeaderValue::from_bytes(value).unwrap();
        let outcome = call(address, head(address, SEND).header(name, value), good.clone()).await;
        assert_eq!(outcome.to_string(), expected, "{name}");
    }
    for kind in ["text/plain", "application/json", "application/grpc-web", ""] {
        let mut request = head(address, SEND);
        request.headers_mut().unwrap().insert("content-type", kind.parse().unwrap());
        assert_eq!(call(address, request, good.clone()).await.to_string(), "HTTP 415", "{kind}");
    }
    for method in ["GET", "DELETE", "PUT"] {
        let request = head(address, SEND).method(method);
        assert_eq!(call(address, request, good.clone()).await.to_string(), "HTTP 405", "{method}");
    }
    // More headers than a library would send, so these frames are made by hand, as large as allowed.
    let mut heads = headers_block(SEND);
    (0..10_000).for_each(|i| heads.extend([&[0, 7][..], format!("x-{i:05}").as_bytes(), &[1, b'x']].concat()));
    let mut frames = Vec::new();
    for (i, chunk) in heads.chunks(16_384).enumerate() {
        frames.extend(frame(if i == 0 { kind::HEADERS } else { kind::CONTINUATION }, 0, 1, chunk));
    }
    let mut peer = Peer::with_preface(address, &[]).await;
    assert_eq!(peer.flood(&frames).await, "GOAWAY COMPRESSION_ERROR");
    attacked.assert_unharmed(50).await;
}
