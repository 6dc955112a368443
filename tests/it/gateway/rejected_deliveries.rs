//! Deliveries that Kafka rejects: the outcomes for callers, and the reports for operators.

use msg_common::proto::{BatchSendMsgRequest, Msg};
use tonic::Code;

use super::calls::{
    assert_failed, assert_not_sent, client, metric, reason, result, send, wait_gateway_not_ready, without,
};
use crate::support::admin::alter_topic;
use crate::support::kafka::msg;
use crate::support::transfer::logged;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// The broker rejects each timestamp that is older than its own clock.
#[tokio::test]
async fn repeated_rejections_end_readiness_and_are_logged_rarely() {
    let world = World::with_topic("rejecting", &[("message.timestamp.before.max.ms", "0")]).await;
    let gateway = world.gateway("gateway", |spec| spec.env("LINGER", "20ms"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let mut not_sent = 0;
    for i in 0..20 {
        let result = send(&client, &msg("alice", "bob", &i.to_string(), "x")).await;
        // Some outcomes are unknown, like that of the first record, which waits for the producer's ID and is rejected
        // as late as a retry would be: ADR 32.
        if result.as_ref().is_err_and(|status| reason(status).as_deref() == Some("OUTCOME_UNKNOWN")) {
            continue;
        }
        assert_not_sent(result, Code::Unavailable);
        not_sent += 1;
    }
    assert!(not_sent > 0, "every outcome is unknown");
    wait_gateway_not_ready(&gateway, &["deliveries: Kafka rejects every record", "InvalidTimestamp", "clock"]).await;
    let counted = metric(&gateway, "msg_gateway_delivery_failures_total{code=\"InvalidTimestamp\"}").await.unwrap();
    assert_eq!(counted, 20.0);
    let lines = logged(&gateway.service, "deliveries fail");
    assert!((1..=3).contains(&lines), "{lines} lines for 20 rejections");
    assert_eq!(world.end_offsets().await, [0; 4], "P6: NOT_SENT and a record");
    // Sends continue although the gateway is not ready, so the next success makes it ready.
    alter_topic(world.brokers(), world.topic(), &[("max.message.bytes", "2097152")]).await;
    eventually("the message is accepted", async || Ok(send(&client, &msg("alice", "bob", "good", "x")).await?)).await;
    gateway.service.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(gateway.service.stop().await.unwrap().success());
}

/// Kafka rejects a batch as a whole. TOO_LARGE, which docs/errors.md says not to retry, is only for a record that is
/// too large by itself.
#[tokio::test]
async fn small_neighbors_of_large_records_are_not_too_large() {
    let world = World::with_topic("neighbors", &[]).await;
    let gateway = world.gateway("gateway", |spec| spec.env("LINGER", "100ms"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "before", "x")).await.unwrap();
    // Random bytes, so that the body is large after compression too.
    let body: Vec<u8> =
        (0..20_000_u64).flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).to_be_bytes()).collect();
    let message = |round: usize, i: usize| {
        let large = i % 73 == 5;
        msg("alice", "bob", &format!("{round}-{i}"), if large { body.clone() } else { vec![7; 900] })
    };
    alter_topic(world.brokers(), world.topic(), &[("max.message.bytes", "100000")]).await;
    // Repeated until the broker has its new limit.
    let mut round = 0;
    let (small, large) = eventually("the batch is rejected", async || {
        round += 1;
        let msgs: Vec<Msg> = (0..146).map(|i| message(round, i)).collect();
        let request = BatchSendMsgRequest { msgs: msgs.clone(), wait_for: 0 };
        let results = client.clone().batch_send_msg(request).await?.into_inner().results;
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for (msg, entry) in msgs.iter().zip(&results) {
            let of = if msg.content.len() > 1000 { &mut large } else { &mut small };
            of.push(result(entry).err().and_then(|status| reason(&status)));
        }
        ensure(large.iter().all(Option::is_some), "the large ones were accepted")?;
        Ok((small, large))
    })
    .await;
    assert!(large.iter().all(|reason| reason.as_deref() == Some("TOO_LARGE")), "{large:?}");
    assert_eq!(large.len(), 2);
    let of = |expected: Option<&str>| small.iter().filter(|reason| reason.as_deref() == expected).count();
    assert!(of(Some("NOT_SENT")) > 0, "{small:?}");
    // Messages of another batch may have been accepted.
    assert_eq!(of(Some("NOT_SENT")) + of(None) + of(Some("PREDECESSOR_FAILED")), small.len(), "{small:?}");
    // Messages that fit are still accepted, and the operator is notified.
    send(&client, &msg("alice", "bob", "after", "x")).await.expect("a small message fits");
    wait_gateway_not_ready(&gateway, &["max.message.bytes is 100000", "from 1000000 to 62240"]).await;
    send(&client, &msg("alice", "bob", "later", "x")).await.expect("a small message fits");
    assert_failed(send(&client, &message(0, 5)).await, Code::InvalidArgument, "TOO_LARGE");
    assert!(gateway.service.stop().await.unwrap().success());
}

#[tokio::test]
async fn kafkas_default_message_limit_fits_the_largest_message() {
    let world = World::with_topic("default_limit", &[("max.message.bytes", "1048588")]).await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    // The largest message that the limits allow, with bytes that hardly compress.
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let content: Vec<u8> = (0..1_000_000).map(|_| byte()).collect();
    let mut text = |length: usize| (0..length).map(|_| char::from(b'a' + byte() % 26)).collect::<String>();
    let attributes = (0..64).map(|i| (format!("{i:02}{}", text(120)), text(134))).collect();
    let largest = Msg {
        recv_id: text(256),
        send_id: text(256),
        client_msg_id: text(256),
        content_type: text(128),
        attributes,
        ..msg("", "", "", content)
    };
    send(&client, &largest).await.unwrap();
    let over = Msg { content: vec![0; 1_000_001].into(), ..largest };
    assert_failed(send(&client, &over).await, Code::InvalidArgument, "INVALID_FIELDS");
}

/// While a topic is rejected, it is checked every second.
#[tokio::test]
async fn unchanged_preflight_warning_is_logged_once() {
    let world = World::with_topic("standing", &[("max.message.bytes", "500000")]).await;
    let gateway = world.gateway("gateway", |spec| spec.env("TOPIC_PARTITIONS", 2));
    gateway.service.launch().unwrap();
    eventually("the topic was checked several times", async || {
        let checks = metric(&gateway, "msg_gateway_preflight_checks_total{outcome=\"REJECTED\"}").await?;
        ensure(checks >= 4.0, checks)
    })
    .await;
    assert_eq!(logged(&gateway.service, "the topic has 4 partitions, and the first 2 are used"), 1);
    assert_eq!(logged(&gateway.service, "not ready"), 1);
    assert!(gateway.service.stop().await.unwrap().success());
}

/// A gateway's clock must not decide when Kafka deletes messages.
#[tokio::test]
async fn topic_that_trusts_the_gateways_clock_is_unsafe() {
    let texts = ["message.timestamp.type is CreateTime", "message.timestamp.type=LogAppendTime"];
    let trusting = World::with_topic("create_time", &[]).await;
    let gateway = trusting.gateway("gateway", |spec| without(spec, "ALLOW_UNSAFE_TOPIC"));
    gateway.service.launch().unwrap();
    wait_gateway_not_ready(&gateway, &texts).await;
    assert!(gateway.service.stop().await.unwrap().success());
    for (name, setting) in [
        ("append_time", ("message.timestamp.type", "LogAppendTime")),
        ("bounded_time", ("message.timestamp.before.max.ms", "86400000")),
    ] {
        let world = World::with_topic(name, &[setting]).await;
        let gateway = world.gateway("gateway", |spec| without(spec, "ALLOW_UNSAFE_TOPIC"));
        gateway.service.launch().unwrap();
        // A topic on a single broker is unsafe for other reasons.
        wait_gateway_not_ready(&gateway, &["replication factor"]).await;
        assert_eq!(logged(&gateway.service, "CreateTime: if a gateway's clock is behind"), 0, "{name}");
        assert!(gateway.service.stop().await.unwrap().success());
    }
}
