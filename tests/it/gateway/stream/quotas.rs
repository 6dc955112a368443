//! Streams and quotas: an entry above a quota does not let later ones overtake it, and open streams are limited.

use msg_common::proto::Msg;
use tonic::Code;

use super::{open, request, try_open};
use crate::gateway::calls::{assert_failed, client, metric};
use crate::gateway::quotas::{assert_quota, rejections};
use crate::support::kafka::msg;
use crate::support::world::World;
use crate::support::{ensure, eventually};

#[tokio::test]
async fn entry_above_a_quota_blocks_its_inbox_until_resent() {
    const BURST: usize = 20;
    let world = World::new("quota_stream").await;
    let gateway = world.gateway("gateway", |spec| spec.env("QUOTA_SENDER_MSGS", 5).env("QUOTA_BURST", "4s"));
    gateway.service.start().await.unwrap();
    let mut stream = open(&client(&gateway).await).await;
    let alices: Vec<Msg> = (0..30).map(|id| msg("alice", "bob", &id.to_string(), "x")).collect();
    let results = stream.send_and_read(request(0, alices.clone())).await;
    let results: Vec<_> = results.into_values().collect();
    let accepted = results.iter().take_while(|entry| entry.is_ok()).count();
    assert!((BURST..30).contains(&accepted), "{accepted} of 30 are accepted");
    assert_quota(results[accepted].clone(), "sender_msgs");
    for after in &results[accepted + 1..] {
        assert_failed(after.clone(), Code::Aborted, "PREDECESSOR_FAILED");
    }
    // Another sender is not limited. But to bob its message would overtake alice's.
    let dave = |to: &str| msg("dave", to, "40", "x");
    let results = stream.send_and_read(request(50, [dave("carol"), dave("bob")])).await;
    results[&50].as_ref().expect("another inbox is not blocked");
    assert_failed(results[&51].clone(), Code::Aborted, "PREDECESSOR_FAILED");
    let mut left = alices[accepted..].to_vec();
    left.push(dave("bob"));
    let mut next = 100;
    eventually("the rest is accepted", async || {
        let results = stream.send_and_read(request(next, left.clone())).await;
        next += 100;
        let mut failed = results.values().map(Result::is_err);
        left.retain(|_| failed.next().unwrap());
        ensure(left.is_empty(), format!("{} are left", left.len()))
    })
    .await;
    assert!(stream.finish().await.1.is_ok());
    let _transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    let rows: Vec<_> = world.rows().await.into_iter().filter(|row| row.recv_id == "bob").collect();
    let found: Vec<usize> = rows.iter().map(|row| row.client_msg_id.parse().unwrap()).collect();
    assert!(found.len() == 31 && found.is_sorted(), "P2, P3: {found:?}");
    let counted = "msg_gateway_messages_total{method=\"StreamSendMsg\",outcome=\"QUOTA_EXCEEDED\"}";
    assert_eq!(metric(&gateway, counted).await.unwrap(), rejections(&gateway, "sender_msgs").await);
}

#[tokio::test]
async fn open_streams_of_a_caller_are_limited() {
    let world = World::new("quota_streams").await;
    let gateway = world.gateway("gateway", |spec| spec.env("QUOTA_CALLER_STREAMS", 2));
    gateway.service.start().await.unwrap();
    let (one, other) = (client(&gateway).await, client(&gateway).await);
    let (first, second) = (open(&one).await, open(&one).await);
    assert_quota(try_open(&one, None).await.map(drop), "caller_streams");
    // Without credentials, a caller is a connection.
    let mut others = open(&other).await;
    others.send_and_read(request(0, [msg("alice", "bob", "1", "x")])).await[&0].as_ref().unwrap();
    assert!(first.finish().await.1.is_ok());
    eventually("the caller may open a stream again", async || Ok(try_open(&one, None).await.map(drop)?)).await;
    assert!(second.finish().await.1.is_ok());
}

/// The stream of a caller that has its share in flight waits: its entries are accepted later, and none is rejected.
#[tokio::test]
async fn stream_above_its_share_waits_and_loses_nothing() {
    const EACH: u64 = 5000;
    let world = World::new("share_stream").await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_INFLIGHT_MSGS", 100).env("CALLER_SHARE", 5));
    gateway.service.start().await.unwrap();
    let streams = [client(&gateway).await, client(&gateway).await].map(async |client| {
        let mut stream = open(&client).await;
        let entry = |id: u64| msg("alice", &format!("inbox-{}", id % 8), &id.to_string(), "x");
        for first in (0..EACH).step_by(500) {
            let results = stream.send_and_read(request(first, (first..first + 500).map(entry))).await;
            assert!(results.values().all(Result::is_ok), "{results:?}");
        }
        assert!(stream.finish().await.1.is_ok());
    });
    futures_util::future::join_all(streams).await;
    assert_eq!(rejections(&gateway, "caller_share").await, 0.0);
}
