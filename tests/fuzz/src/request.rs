//! Requests, up to where something would be sent or read: each is accepted or rejected with a clear error. An accepted
//! message can be stored, and is read from the topic unchanged.

use std::fmt::Debug;

use http::{HeaderMap, HeaderValue};
use msg_common::id::msg_id;
use msg_common::limits::{Limits, unstorable};
use msg_common::proto::{
    BatchSendMsgRequest, GetMaxSeqsRequest, GetMsgStatusRequest, Msg, PullMsgsRequest, SendMsgRequest,
    StreamSendMsgRequest, WatchMsgsRequest,
};
use msg_common::record;
use msg_gateway::read::page_token::Scope;
use msg_gateway::read::{max_seqs, pull, status};
use msg_gateway::send::deadline::grpc_timeout;
use msg_gateway::send::trace;
use msg_gateway::status::Failure;
use msg_gateway::watch::stream;
use prost::Message;
use tonic::{Code, Status};

/// Small, so that the fuzzer reaches both sides of them.
const LIMITS: Limits = Limits { max_id_bytes: 16, max_content_bytes: 32 };

/// One request: a byte for its kind, and its bytes.
pub fn run(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 9 {
        0 => with::<SendMsgRequest>(data, |request| request.msg.iter().for_each(send)),
        1 => with::<BatchSendMsgRequest>(data, |request| request.msgs.iter().for_each(send)),
        2 => with::<StreamSendMsgRequest>(data, |request| {
            request.entries.iter().filter_map(|entry| entry.msg.as_ref()).for_each(send)
        }),
        3 => with::<PullMsgsRequest>(data, |request| {
            check_result(pull::Query::of(request.clone(), LIMITS.max_id_bytes));
            token(request);
        }),
        4 => with::<GetMaxSeqsRequest>(data, |request| {
            check_result(max_seqs::check(&request.recv_ids, LIMITS.max_id_bytes));
        }),
        5 => with::<WatchMsgsRequest>(data, |request| {
            check_result(stream::check(request, LIMITS.max_id_bytes));
        }),
        6 => with::<GetMsgStatusRequest>(data, |request| {
            check_result(status::Query::of(request.clone(), LIMITS.max_id_bytes, 16));
        }),
        7 => {
            let request = PullMsgsRequest {
                recv_id: "bob".into(),
                page_token: String::from_utf8_lossy(data).into(),
                ..PullMsgsRequest::default()
            };
            token(&request);
        }
        _ => headers(data),
    }
}

/// Decodes a request, and checks that it is the same after it was encoded and decoded again.
fn with<M: Message + Default + PartialEq + Debug>(data: &[u8], then: impl FnOnce(&M)) {
    let Ok(request) = M::decode(data) else { return };
    assert!(M::decode(request.encode_to_vec().as_slice()).as_ref() == Ok(&request), "{request:?}");
    then(&request);
}

/// Does what SendMsg does with a message before it is sent, and what the transfer does with its record.
fn send(msg: &Msg) {
    let violations = LIMITS.violations("msg", msg);
    if !violations.is_empty() {
        check_result::<()>(Err(Failure::Invalid(violations)));
        return;
    }
    assert!(msg.encoded_len() < LIMITS.max_record_bytes());
    assert_eq!(unstorable(msg, 1), None, "{msg:?}");
    let id = msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id);
    let value = record::encode(msg.clone(), id, 1);
    assert!(value.len() < LIMITS.max_record_bytes());
    let read = record::decode(Some(msg.recv_id.as_bytes()), Some(b"1"), Some(value.into())).expect("it was accepted");
    assert_eq!((&read.msg, read.msg_id, read.send_time_ms), (msg, id, 1));
}

/// Checks that a rejection is the caller's error, and that its details fit into a trailer.
fn check_result<T>(checked: Result<T, Failure>) {
    let Err(failure) = checked else { return };
    let status = Status::from(failure);
    assert!(matches!(status.code(), Code::InvalidArgument | Code::Unimplemented), "{status:?}");
    assert!(status.details().len() < 4096, "the details have {} bytes", status.details().len());
    assert!(!status.message().is_empty());
}

/// Checks that a page token is accepted only for its own request, and is the same when it is created again.
fn token(request: &PullMsgsRequest) {
    let scope = Scope {
        recv_id: &request.recv_id,
        from_seq: request.from_seq.max(1),
        to_seq: if request.to_seq == 0 { i64::MAX } else { request.to_seq },
        descending: request.order == 2,
        omit_content: request.omit_content,
    };
    if let Some(next) = scope.next_seq(&request.page_token) {
        assert_eq!(scope.token(next), request.page_token);
        assert!((scope.from_seq..=scope.to_seq).contains(&next));
    }
}

/// Parses the headers that the gateway reads.
fn headers(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    if trace::is_valid(value.as_bytes()) {
        assert!(value.to_str().is_ok_and(|text| (55..=256).contains(&text.len())), "{value:?}");
    }
    let mut headers = HeaderMap::new();
    headers.insert("grpc-timeout", value);
    if let Some(timeout) = grpc_timeout(&headers) {
        assert!(timeout.as_secs() <= 99_999_999 * 3600);
    }
}
