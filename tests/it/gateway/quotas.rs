//! Quotas of senders and callers on a gateway that does not ask who its callers are: what is rejected and what is not.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use msg_common::proto::{BatchSendMsgRequest, Msg};
use tonic::{Code, Status};

use super::calls::{Client, assert_failed, assert_not_sent, client, metric, reason, result, send};
use super::watch;
use crate::support::kafka::msg;
use crate::support::world::{Gateway, World};
use crate::support::{ensure, eventually};

const QUOTAS: [&str; 9] = [
    "sender_msgs",
    "sender_bytes",
    "tenant_msgs",
    "tenant_bytes",
    "caller_streams",
    "tenant_streams",
    "caller_watches",
    "tenant_watches",
    "caller_share",
];

/// The number of calls and messages that this quota has rejected.
pub(crate) async fn rejections(gateway: &Gateway, quota: &str) -> f64 {
    metric(gateway, &format!("msg_gateway_quota_rejections_total{{quota=\"{quota}\"}}")).await.unwrap()
}

/// Checks that an error is that of a quota, and says that nothing was sent. Returns the delay before a retry.
#[track_caller]
pub(crate) fn assert_quota<T>(result: Result<T, Status>, quota: &str) -> Duration {
    let details = assert_failed(result, Code::ResourceExhausted, "NOT_SENT");
    assert_eq!(details.error_info().unwrap().metadata.get("quota").map(String::as_str), Some(quota));
    details.retry_info().and_then(|info| info.retry_delay).expect("it has a retry delay")
}

fn numbered(from: &str, to: &str, ids: std::ops::Range<usize>) -> Vec<Msg> {
    ids.map(|id| msg(from, to, &id.to_string(), "x")).collect()
}

#[tokio::test]
async fn sender_above_its_rate_is_rejected_until_its_delay() {
    const RATE: usize = 5;
    const BURST: usize = 50;
    let world = World::new("quota_msgs").await;
    let gateway = world.gateway("gateway", |spec| spec.env("QUOTA_SENDER_MSGS", RATE).env("QUOTA_BURST", "10s"));
    gateway.service.start().await.unwrap();
    for quota in QUOTAS {
        assert_eq!(rejections(&gateway, quota).await, 0.0, "{quota} does not start at 0");
    }
    let client = client(&gateway).await;
    let start = Instant::now();
    let mut accepted = 0;
    let rejected = loop {
        match send(&client, &msg("alice", "bob", &accepted.to_string(), "x")).await {
            Ok(_) => accepted += 1,
            Err(status) => break status,
        }
    };
    let refilled = RATE * (start.elapsed().as_secs() as usize + 1);
    assert!((BURST..=BURST + refilled).contains(&accepted), "{accepted} were accepted");
    assert_not_sent(Err::<(), _>(rejected.clone()), Code::ResourceExhausted);
    let delay = assert_quota(Err::<(), _>(rejected), "sender_msgs");
    // A message needs 200 ms, and a part of that has passed.
    assert!((100..300).contains(&delay.as_millis()), "{delay:?}");
    // No other sender is limited, and an invalid message costs nothing.
    for sender in ["carol", "dave"] {
        send(&client, &msg(sender, "bob", "1", "x")).await.unwrap();
    }
    send(&client, &msg("alice", "", "1", "x")).await.unwrap_err();
    let again = async || Ok(send(&client, &msg("alice", "bob", "again", "x")).await?);
    eventually("the sender may send again", again).await;
    // What was rejected is not in Kafka.
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), accepted as i64 + 3);
    let rejected = "msg_gateway_requests_total{method=\"SendMsg\",outcome=\"QUOTA_EXCEEDED\"}";
    assert_eq!(metric(&gateway, rejected).await.unwrap(), rejections(&gateway, "sender_msgs").await);
    let metrics = gateway.service.metrics().await.unwrap();
    assert!(!metrics.contains("alice"), "a metric names a sender");
}

#[tokio::test]
async fn large_message_of_a_sender_is_paid_for_afterwards() {
    let world = World::new("quota_bytes").await;
    let gateway = world.gateway("gateway", |spec| spec.env("QUOTA_SENDER_BYTES", "10KiB"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    // It is far above what the bucket holds, and would otherwise be rejected on every retry.
    send(&client, &msg("alice", "bob", "large", vec![b'x'; 300_000])).await.unwrap();
    let delay = assert_quota(send(&client, &msg("alice", "bob", "small", "x")).await, "sender_bytes");
    assert!((15..45).contains(&delay.as_secs()), "{delay:?} for 300 kB at 10 KiB/s");
    send(&client, &msg("carol", "bob", "small", "x")).await.expect("another sender is not limited");
    assert_eq!(rejections(&gateway, "sender_bytes").await, 1.0);
}

/// A batch of two senders: one is above its quota.
#[tokio::test]
async fn batch_entry_above_a_quota_fails_alone_and_keeps_order() {
    const BURST: usize = 20;
    let world = World::new("quota_batch").await;
    let gateway = world.gateway("gateway", |spec| spec.env("QUOTA_SENDER_MSGS", 5).env("QUOTA_BURST", "4s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let batch = async |msgs: &[Msg]| {
        let request = BatchSendMsgRequest { msgs: msgs.to_vec(), wait_for: 0 };
        let results = client.clone().batch_send_msg(request).await.unwrap().into_inner().results;
        results.iter().map(result).collect::<Vec<_>>()
    };
    let mut msgs = numbered("alice", "bob", 0..30);
    msgs.extend(numbered("dave", "carol", 30..40));
    msgs.push(msg("dave", "bob", "40", "x"));
    let results = batch(&msgs).await;
    let accepted = results.iter().take_while(|entry| entry.is_ok()).count();
    assert!((BURST..30).contains(&accepted), "{accepted} of 30 are accepted");
    assert_quota(results[accepted].clone(), "sender_msgs");
    for after in results[accepted + 1..30].iter().chain(&results[40..]) {
        assert_failed(after.clone(), Code::Aborted, "PREDECESSOR_FAILED");
    }
    assert!(results[30..40].iter().all(Result::is_ok), "the other sender is limited");
    // Sent again in their order, all are stored in it.
    let mut left: Vec<Msg> = msgs.drain(accepted..30).chain([msg("dave", "bob", "40", "x")]).collect();
    eventually("the rest is accepted", async || {
        let results = batch(&left).await;
        let mut failed = results.iter().map(Result::is_err);
        left.retain(|_| failed.next().unwrap());
        ensure(left.is_empty(), format!("{} are left", left.len()))
    })
    .await;
    assert_stored_in_order(&world, 31).await;
}

/// Waits until all is stored, and checks that the inbox "bob" has `count` messages in the order of their numbers.
async fn assert_stored_in_order(world: &World, count: usize) {
    let _transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    let rows: Vec<_> = world.rows().await.into_iter().filter(|row| row.recv_id == "bob").collect();
    let found: Vec<usize> = rows.iter().map(|row| row.client_msg_id.parse().unwrap()).collect();
    assert!(found.len() == count && found.is_sorted(), "P2, P3: {found:?}");
    world.assert_ordered_without_gaps().await;
}

#[tokio::test]
async fn watches_of_a_caller_are_limited() {
    let world = World::new("quota_watches").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("QUOTA_CALLER_WATCHES", 2));
    gateway.service.start().await.unwrap();
    let (one, other) = (client(&gateway).await, client(&gateway).await);
    let open = async |client: &Client| watch::Watcher::open(client, watch::request([("bob", None)])).await;
    let watchers = [open(&one).await.unwrap(), open(&one).await.unwrap()];
    assert_quota(open(&one).await.map(drop), "caller_watches");
    // Without credentials, a caller is a connection.
    let others = open(&other).await.unwrap();
    drop(watchers);
    eventually("the caller may watch again", async || Ok(open(&one).await.map(drop)?)).await;
    assert!(rejections(&gateway, "caller_watches").await >= 1.0);
    drop(others);
}

/// One caller sends batches and entries of a stream as fast as it can, while others send one message at a time.
#[tokio::test]
async fn greedy_caller_is_limited_and_no_other_is_rejected() {
    const POLITE: usize = 4;
    const EACH: usize = 200;
    const GREEDY: usize = 20;
    let world = World::new("caller_share").await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_INFLIGHT_MSGS", 200).env("CALLER_SHARE", 10));
    gateway.service.start().await.unwrap();
    let (stop, rejected, accepted) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let greedy = client(&gateway).await;
    let be_greedy = async |caller: usize| {
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            let ids = round * 100..(round + 1) * 100;
            let msgs = numbered(&format!("greedy-{caller}"), &format!("inbox-{caller}"), ids);
            match greedy.clone().batch_send_msg(BatchSendMsgRequest { msgs, wait_for: 0 }).await {
                Ok(response) => {
                    assert!(response.into_inner().results.iter().all(|entry| result(entry).is_ok()));
                    accepted.fetch_add(1, Ordering::Relaxed);
                    round += 1;
                }
                Err(status) => {
                    assert_quota(Err::<(), _>(status), "caller_share");
                    rejected.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    let be_polite = async || {
        eventually("the greedy caller is limited", async || {
            ensure(rejected.load(Ordering::Relaxed) > 0, "it never was rejected")
        })
        .await;
        join_all((0..POLITE).map(async |caller| {
            let polite = client(&gateway).await;
            for id in 0..EACH {
                let message = msg(&format!("polite-{caller}"), "bob", &id.to_string(), "x");
                let sent = send(&polite, &message).await;
                assert!(sent.is_ok(), "message {id}: {:?}", sent.map_err(|status| (reason(&status), status)));
            }
        }))
        .await;
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all((0..GREEDY).map(be_greedy)), be_polite());
    let (rejected, accepted) = (rejected.into_inner(), accepted.into_inner());
    assert!(accepted > 0, "the greedy caller starves");
    assert!(rejected >= GREEDY, "{rejected} batches of the greedy caller were rejected");
    assert_eq!(rejections(&gateway, "caller_share").await, rejected as f64);
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), (POLITE * EACH + accepted * 100) as i64);
}
