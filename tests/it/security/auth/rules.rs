//! What a caller may do with its own messages and inbox, with those of others, and with a scope.

use msg_common::proto::{
    BatchSendMsgRequest, DESCRIPTORS, GetMaxSeqsRequest, GetMsgStatusRequest, InboxCursor, Msg, MsgState,
    PullMsgsRequest, SendMsgRequest, StreamSendEntry, StreamSendMsgRequest, WaitFor, WatchMsgsRequest,
};
use prost::Message;
use prost_types::FileDescriptorSet;
use serde_json::json;
use tonic::{Code, Request, Status};

use super::{KeyFile, send_as};
use crate::gateway::calls::{Client, assert_failed, channel, client, health, metric, reason, result, unary};
use crate::support::eventually;
use crate::support::issuer::{AUDIENCE, ISSUER, SigningKey, authorized};
use crate::support::kafka::{msg, msg_id_of};
use crate::support::world::World;

/// Adds a token, if there is one.
fn with<T>(token: Option<&str>, message: T) -> Request<T> {
    match token {
        Some(token) => authorized(token, message),
        None => Request::new(message),
    }
}

fn inbox(recv_id: &str) -> InboxCursor {
    InboxCursor { recv_id: recv_id.into(), after_seq: None }
}

/// Calls a method of the contract for carol's messages and inbox, and for one of the caller's own where several can
/// be given. Returns the error, or that of carol's entry. A new method needs a call here.
async fn call(client: &Client, method: &str, token: Option<&str>) -> Result<(), Status> {
    let mut client = client.clone();
    let carols = msg("carol", "bob", "1", "x");
    match method {
        "SendMsg" => {
            let request = SendMsgRequest { msg: Some(carols), wait_for: 0 };
            client.send_msg(with(token, request)).await.map(drop)
        }
        "BatchSendMsg" => {
            let msgs = vec![msg("mallory", "bob", "1", "x"), carols];
            let response = client.batch_send_msg(with(token, BatchSendMsgRequest { msgs, wait_for: 0 })).await?;
            let results = response.into_inner().results;
            assert!(result(&results[0]).is_ok(), "the caller's own entry: {results:?}");
            result(&results[1]).map(drop)
        }
        "StreamSendMsg" => {
            let own = StreamSendEntry { correlation_id: 1, msg: Some(msg("mallory", "bob", "2", "x")) };
            let entries = vec![own, StreamSendEntry { correlation_id: 2, msg: Some(carols) }];
            let requests = tokio_stream::iter([StreamSendMsgRequest { entries, wait_for: 0 }]);
            let mut responses = client.stream_send_msg(with(token, requests)).await?.into_inner();
            let mut foreign = None;
            while let Some(response) = responses.message().await? {
                for one in response.results {
                    let outcome = result(one.result.as_ref().expect("a result is set"));
                    match one.correlation_id {
                        1 => assert!(outcome.is_ok(), "the caller's own entry: {outcome:?}"),
                        _ => foreign = Some(outcome),
                    }
                }
            }
            foreign.expect("each entry has a result").map(drop)
        }
        "PullMsgs" => {
            let request = PullMsgsRequest { recv_id: "carol".into(), ..PullMsgsRequest::default() };
            client.pull_msgs(with(token, request)).await.map(drop)
        }
        "GetMaxSeqs" => {
            let request = GetMaxSeqsRequest { recv_ids: vec!["mallory".into(), "carol".into()] };
            client.get_max_seqs(with(token, request)).await.map(drop)
        }
        "GetMsgStatus" => client.get_msg_status(with(token, status_of(&carols))).await.map(drop),
        "WatchMsgs" => {
            let inboxes = vec![inbox("mallory"), inbox("carol")];
            client.watch_msgs(with(token, WatchMsgsRequest { inboxes, omit_content: false })).await.map(drop)
        }
        other => panic!("{other} is a new method: call it here for another caller's messages or inbox"),
    }
}

/// A request for the state of a message, as its sender makes it.
fn status_of(msg: &Msg) -> GetMsgStatusRequest {
    GetMsgStatusRequest {
        recv_id: msg.recv_id.clone(),
        msg_id: msg_id_of(msg).to_string(),
        send_id: msg.send_id.clone(),
        client_msg_id: msg.client_msg_id.clone(),
        ..GetMsgStatusRequest::default()
    }
}

#[tokio::test]
async fn each_method_is_closed_to_strangers() {
    let world = World::new("auth_methods").await;
    let _transfer = world.running_transfer().await;
    let keys = KeyFile::new();
    let gateway = keys.gateway(&world, |spec| spec).await;
    let client = client(&gateway).await;
    let descriptors = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let services = descriptors.file.iter().filter(|file| file.package() == "msg.v1").flat_map(|file| &file.service);
    let methods: Vec<String> =
        services.flat_map(|service| &service.method).map(|method| method.name().to_owned()).collect();
    assert!(methods.len() >= 7, "{methods:?}");
    let (stranger, entitled) =
        (keys.key.token("mallory", "openid"), keys.key.token("mallory", "msg.send.any msg.read.any"));
    for method in &methods {
        let unknown = call(&client, method, None).await;
        assert_failed(unknown, Code::Unauthenticated, "UNAUTHENTICATED");
        let denied = call(&client, method, Some(&stranger)).await;
        assert_failed(denied, Code::PermissionDenied, "PERMISSION_DENIED");
        if let Err(status) = call(&client, method, Some(&entitled)).await {
            panic!("{method}: {status:?}");
        }
    }
    let denied = "msg_gateway_auth_rejections_total{reason=\"denied\"}";
    assert_eq!(metric(&gateway, denied).await.unwrap(), methods.len() as f64);
    let missing = "msg_gateway_auth_rejections_total{reason=\"missing\"}";
    assert_eq!(metric(&gateway, missing).await.unwrap(), methods.len() as f64);
    // Nothing of carol's was sent before mallory had the scope.
    let rows = || async { world.rows().await.into_iter().filter(|row| row.send_id == "carol").count() };
    world.wait_for_rows(3).await;
    assert_eq!(rows().await, 1, "the three sends with the scope are one message");
}

#[tokio::test]
async fn caller_sends_as_itself_and_reads_its_own_inbox() {
    let world = World::new("auth_own").await;
    let _transfer = world.running_transfer().await;
    let keys = KeyFile::new();
    let gateway = keys.gateway(&world, |spec| spec).await;
    let client = client(&gateway).await;
    let (alice, bob) = (keys.key.token("alice", ""), keys.key.token("bob", "msg.read:group-*"));
    for (to, id) in [("bob", "1"), ("group-1", "2"), ("carol", "3")] {
        send_as(&client, &alice, &msg("alice", to, id, "hello")).await.unwrap();
    }
    world.wait_for_rows(3).await;
    let pull = async |token: &str, recv_id: &str| {
        let request = PullMsgsRequest { recv_id: recv_id.into(), ..PullMsgsRequest::default() };
        Ok::<_, Status>(client.clone().pull_msgs(authorized(token, request)).await?.into_inner().msgs.len())
    };
    assert_eq!(pull(&bob, "bob").await.unwrap(), 1);
    assert_eq!(pull(&bob, "group-1").await.unwrap(), 1);
    assert_failed(pull(&bob, "carol").await, Code::PermissionDenied, "PERMISSION_DENIED");
    assert_failed(pull(&alice, "bob").await, Code::PermissionDenied, "PERMISSION_DENIED");
    let state = async |token: &str, request: GetMsgStatusRequest| {
        client.clone().get_msg_status(authorized(token, request)).await.map(|response| response.into_inner().state())
    };
    let sent = msg("alice", "carol", "3", "hello");
    assert_eq!(state(&alice, status_of(&sent)).await.unwrap(), MsgState::Stored, "the sender");
    assert_failed(state(&bob, status_of(&sent)).await, Code::PermissionDenied, "PERMISSION_DENIED");
    let as_bob = GetMsgStatusRequest { send_id: "bob".into(), ..status_of(&sent) };
    assert_failed(state(&bob, as_bob).await, Code::PermissionDenied, "PERMISSION_DENIED");
}

/// The ID of a message follows from three texts that others may guess. A caller that sends it first would make the
/// message of its real sender a duplicate, or a conflict.
#[tokio::test]
async fn predictable_id_cannot_be_sent_first_by_another_caller() {
    let world = World::new("auth_predictable").await;
    let _transfer = world.running_transfer().await;
    let keys = KeyFile::new();
    let gateway = keys.gateway(&world, |spec| spec).await;
    let client = client(&gateway).await;
    let (alice, mallory) = (keys.key.token("alice", ""), keys.key.token("mallory", "msg.send:bot-*"));
    let forged = msg("alice", "bob", "order-1", "forged");
    assert_failed(send_as(&client, &mallory, &forged).await, Code::PermissionDenied, "PERMISSION_DENIED");
    // The same client_msg_id as herself is another message.
    send_as(&client, &mallory, &msg("mallory", "bob", "order-1", "forged")).await.unwrap();
    let real = SendMsgRequest { msg: Some(msg("alice", "bob", "order-1", "real")), wait_for: WaitFor::Stored.into() };
    let placement = client.clone().send_msg(authorized(&alice, real)).await.unwrap().into_inner().placement.unwrap();
    assert!(!placement.stored.expect("it waited").duplicate, "another caller has sent it first");
    let rows = world.rows().await;
    let of_alice: Vec<_> = rows.iter().filter(|row| row.send_id == "alice").map(|row| row.content.clone()).collect();
    assert_eq!(of_alice, [b"real".to_vec()]);
    assert!(world.dead_letters().await.is_empty());
}

#[tokio::test]
async fn token_that_is_wrong_in_any_way_is_rejected() {
    let world = World::new("auth_wrong").await;
    let keys = KeyFile::new();
    let gateway = keys.gateway(&world, |spec| spec).await;
    let client = client(&gateway).await;
    let stranger = SigningKey::new("first");
    let claims = |iss: &str, aud: &str, exp: u64| json!({ "sub": "alice", "iss": iss, "aud": aud, "exp": exp });
    let (iss, aud) = (ISSUER, AUDIENCE);
    let without_exp = json!({ "sub": "alice", "iss": iss, "aud": aud });
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.";
    for (label, token) in [
        ("malformed", unsigned.to_owned()),
        ("malformed", "x".to_owned()),
        ("signature", stranger.token("alice", "")),
        ("unknown_key", SigningKey::new("second").token("alice", "")),
        ("issuer", keys.key.sign(&claims("https://evil.example.org", aud, u64::MAX))),
        ("audience", keys.key.sign(&claims(iss, "another", u64::MAX))),
        ("expired", keys.key.sign(&claims(iss, aud, 1))),
        ("claims", keys.key.sign(&without_exp)),
        ("too_large", "x".repeat(9000)),
    ] {
        let line = format!("msg_gateway_auth_rejections_total{{reason=\"{label}\"}}");
        let before = metric(&gateway, &line).await.unwrap();
        let rejected = send_as(&client, &token, &msg("alice", "bob", "1", "x")).await;
        let status = rejected.as_ref().expect_err(label);
        assert!(!status.message().contains("alice") && !status.message().contains("evil"), "{status:?}");
        assert_failed(rejected, Code::Unauthenticated, "UNAUTHENTICATED");
        assert_eq!(metric(&gateway, &line).await.unwrap(), before + 1.0, "{label}");
    }
    assert_eq!(world.end_offsets().await, [0; 4], "a message was sent");
}

/// What callers without credentials leave open takes nothing away from known callers, and little from each other.
#[tokio::test]
async fn strangers_cannot_use_up_the_calls_of_known_callers() {
    let world = World::new("auth_strangers").await;
    let keys = KeyFile::new();
    let gateway = keys.gateway(&world, |spec| spec.env("MAX_OPEN_CALLS", 8)).await;
    let stranger = channel(&gateway).await;
    let mut watches = Vec::new();
    for _ in 0..16 {
        let mut watch = health::watch(&stranger).await;
        assert_eq!(watch.message().await.unwrap().unwrap().status, health::SERVING);
        watches.push(watch);
    }
    let above = health::try_watch(&stranger).await.map(drop).unwrap_err();
    assert_eq!((above.code(), reason(&above).as_deref()), (Code::ResourceExhausted, Some("NOT_SENT")));
    let token = keys.key.token("alice", "");
    send_as(&client(&gateway).await, &token, &msg("alice", "bob", "1", "hello")).await.unwrap();
    assert_eq!(health::check(&channel(&gateway).await).await, health::SERVING, "others check the health");
    drop(watches);
    eventually("the health may be watched again", async || Ok(health::try_watch(&stranger).await.map(drop)?)).await;
}

#[tokio::test]
async fn health_is_open_and_reflection_is_not() {
    const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let world = World::new("auth_health").await;
    let keys = KeyFile::new();
    let gateway = keys.gateway(&world, |spec| spec).await;
    let open = channel(&gateway).await;
    assert_eq!(health::check(&open).await, health::SERVING);
    let rejected: Result<(), Status> = unary(&open, REFLECTION, ()).await;
    assert_eq!(reason(&rejected.unwrap_err()).as_deref(), Some("UNAUTHENTICATED"));
    let token = keys.key.token("alice", "");
    let reflect = async |channel| {
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static(REFLECTION);
        grpc.unary(authorized(&token, ()), path, tonic_prost::ProstCodec::<(), ()>::default()).await.map(drop)
    };
    let off = reflect(open).await.unwrap_err();
    assert_eq!(off.code(), Code::Unimplemented, "{off:?}");
    let described = world.gateway("described", |spec| {
        let file = keys.path();
        super::asks_for_tokens(spec).env("AUTH_JWKS_FILE", file.display()).env("REFLECTION", "true")
    });
    described.service.start().await.unwrap();
    let open = channel(&described).await;
    let rejected: Result<(), Status> = unary(&open, REFLECTION, ()).await;
    assert_eq!(reason(&rejected.unwrap_err()).as_deref(), Some("UNAUTHENTICATED"));
    // An empty request has no answer, but it is served.
    let served = reflect(open).await;
    assert!(
        served.as_ref().is_err_and(|status| status.code() != Code::Unimplemented && reason(status).is_none()),
        "{served:?}"
    );
}
