//! Quotas on a gateway that asks for tokens: those of a tenant, which a claim names, and those of a caller over all its
//! connections.

use msg_common::proto::{
    BatchSendMsgRequest, InboxCursor, Msg, StreamSendMsgRequest, StreamSendMsgResponse, WatchMsgsRequest,
    WatchMsgsResponse,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{KeyFile, send_as};
use crate::gateway::calls::{Client, assert_failed, client, result};
use crate::gateway::quotas::{assert_quota, rejections};
use crate::support::eventually;
use crate::support::issuer::{AUDIENCE, ISSUER, authorized};
use crate::support::kafka::msg;
use crate::support::world::World;

/// A token of a member of a tenant.
fn member(keys: &KeyFile, subject: &str, tenant: &serde_json::Value) -> String {
    let exp = 4_000_000_000_u64;
    keys.key.sign(&json!({ "sub": subject, "iss": ISSUER, "aud": AUDIENCE, "exp": exp, "org": tenant }))
}

/// Sends as two members of a tenant in turn until one is rejected. Returns the number of accepted messages.
async fn exhaust(client: &Client, tokens: [&String; 2], body: usize) -> (usize, Status) {
    for number in 0.. {
        let sender = ["alice", "bob"][number % 2];
        let message = msg(sender, "inbox", &number.to_string(), vec![b'x'; body]);
        if let Err(status) = send_as(client, tokens[number % 2], &message).await {
            return (number, status);
        }
    }
    unreachable!("the numbers do not end")
}

#[tokio::test]
async fn members_of_a_tenant_share_its_rates() {
    let world = World::new("tenant_rates").await;
    let keys = KeyFile::new();
    let gateway = keys
        .gateway(&world, |spec| {
            let spec = spec.env("AUTH_TENANT_CLAIM", "org").env("QUOTA_BURST", "20s");
            spec.env("QUOTA_TENANT_MSGS", 1).env("QUOTA_TENANT_BYTES", "10KiB")
        })
        .await;
    let client = client(&gateway).await;
    let of = |subject: &str, tenant: &str| member(&keys, subject, &json!(tenant));
    let red = [of("alice", "red"), of("bob", "red")];
    let (accepted, rejected) = exhaust(&client, [&red[0], &red[1]], 1).await;
    assert!((20..=60).contains(&accepted), "{accepted} were accepted");
    assert_quota(Err::<(), _>(rejected), "tenant_msgs");
    // The same subjects in another tenant have another quota: messages that are large use up its bytes first.
    let blue = [of("alice", "blue"), of("bob", "blue")];
    let (accepted, rejected) = exhaust(&client, [&blue[0], &blue[1]], 100_000).await;
    assert!((2..=12).contains(&accepted), "{accepted} were accepted");
    assert_quota(Err::<(), _>(rejected), "tenant_bytes");
    // A token without the claim has no tenant. One that cannot be read is rejected.
    let nowhere = keys.key.token("carol", "");
    for number in 0..100 {
        send_as(&client, &nowhere, &msg("carol", "inbox", &number.to_string(), "x")).await.unwrap();
    }
    let unreadable = send_as(&client, &member(&keys, "dave", &json!(7)), &msg("dave", "inbox", "1", "x")).await;
    assert_failed(unreadable, Code::Unauthenticated, "UNAUTHENTICATED");
    // Entries of a batch count for the tenant of its caller too.
    let msgs: Vec<Msg> = (0..30).map(|id| msg("eve", &format!("inbox-{id}"), &id.to_string(), "x")).collect();
    let request = authorized(&of("eve", "green"), BatchSendMsgRequest { msgs, wait_for: 0 });
    let results = client.clone().batch_send_msg(request).await.unwrap().into_inner().results;
    let accepted = results.iter().take_while(|entry| result(entry).is_ok()).count();
    assert!((20..30).contains(&accepted), "{accepted} were accepted");
    assert_quota(result(&results[accepted]), "tenant_msgs");
    assert!(rejections(&gateway, "tenant_msgs").await >= 2.0 && rejections(&gateway, "tenant_bytes").await >= 1.0);
}

/// The side of a stream that sends. The stream ends when it is dropped.
type Requests = mpsc::Sender<StreamSendMsgRequest>;

async fn open_stream(client: &Client, token: &str) -> Result<(Requests, Streaming<StreamSendMsgResponse>), Status> {
    let (requests, receiver) = mpsc::channel(1);
    let request = authorized(token, ReceiverStream::new(receiver));
    Ok((requests, client.clone().stream_send_msg(request).await?.into_inner()))
}

async fn open_watch(client: &Client, token: &str, recv_id: &str) -> Result<Streaming<WatchMsgsResponse>, Status> {
    let inboxes = vec![InboxCursor { recv_id: recv_id.into(), after_seq: None }];
    let request = authorized(token, WatchMsgsRequest { inboxes, omit_content: false });
    Ok(client.clone().watch_msgs(request).await?.into_inner())
}

#[tokio::test]
async fn streams_and_watches_of_tenants_and_callers_are_limited() {
    let world = World::new("tenant_opens").await;
    let _transfer = world.running_transfer().await;
    let keys = KeyFile::new();
    let gateway = keys
        .gateway(&world, |spec| {
            let spec =
                spec.env("AUTH_TENANT_CLAIM", "org").env("QUOTA_CALLER_STREAMS", 1).env("QUOTA_CALLER_WATCHES", 1);
            spec.env("QUOTA_TENANT_STREAMS", 2).env("QUOTA_TENANT_WATCHES", 2)
        })
        .await;
    let (one, other) = (client(&gateway).await, client(&gateway).await);
    let of = |subject: &str, tenant: &str| member(&keys, subject, &json!(tenant));
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|subject| of(subject, "red"));
    let blue = of("dave", "blue");
    let streams = (open_stream(&one, &alice).await.unwrap(), open_stream(&one, &bob).await.unwrap());
    // With credentials, a caller is its subject, on whatever connection.
    assert_quota(open_stream(&other, &alice).await.map(drop), "caller_streams");
    assert_quota(open_stream(&one, &carol).await.map(drop), "tenant_streams");
    let others = open_stream(&one, &blue).await.unwrap();
    let watches = (open_watch(&one, &alice, "alice").await.unwrap(), open_watch(&one, &bob, "bob").await.unwrap());
    assert_quota(open_watch(&other, &alice, "alice").await.map(drop), "caller_watches");
    assert_quota(open_watch(&one, &carol, "carol").await.map(drop), "tenant_watches");
    let other_watch = open_watch(&one, &blue, "dave").await.unwrap();
    // A stream that ends makes room for another member.
    drop((streams.0, watches.0));
    let streams_of = async || Ok(open_stream(&one, &carol).await?);
    let _carols = eventually("another member may open a stream", streams_of).await;
    let watches_of = async || Ok(open_watch(&one, &carol, "carol").await?);
    let _watch = eventually("another member may watch", watches_of).await;
    drop((streams.1, watches.1, others, other_watch));
}
