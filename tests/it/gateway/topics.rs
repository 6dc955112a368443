//! Unsafe and unusable topics: the gateway is not ready, reports why, and sends nothing.

use msg_common::partition::partition_for;
use msg_common::proto::{BatchSendMsgRequest, WaitFor};
use msg_stack::ServiceSpec;
use tonic::Code;

use super::calls::{
    assert_failed, assert_not_sent, client, metric, send, wait_gateway_not_ready, wait_in_flight, without,
};
use crate::support::admin::alter_topic;
use crate::support::kafka::msg;
use crate::support::stack::stack;
use crate::support::world::World;
use crate::support::{ensure, eventually};

/// Checks that a gateway with these settings reports all of these texts on `/readyz`, and sends nothing.
async fn assert_topic_not_used(world: &World, change: impl FnOnce(ServiceSpec) -> ServiceSpec, texts: &[&str]) {
    let gateway = world.gateway("rejecting", change);
    gateway.service.launch().unwrap();
    let client = client(&gateway).await;
    wait_gateway_not_ready(&gateway, texts).await;
    assert_not_sent(send(&client, &msg("alice", "bob", "1", "x")).await, Code::Unavailable);
    assert_eq!(world.end_offsets().await, [0; 4], "the message was sent");
    assert!(gateway.service.stop().await.unwrap().success());
}

#[tokio::test]
async fn unsafe_topic_is_not_used_unless_allowed() {
    let world = World::with_topic("unsafe", &[("retention.ms", "60000"), ("cleanup.policy", "compact,delete")]).await;
    let texts = [
        "replication factor is 1, required 3",
        "min.insync.replicas is 1, required 2",
        "cleanup.policy is compact,delete, required delete",
        "retention.ms is 1m, required 3days",
    ];
    assert_topic_not_used(&world, |spec| without(spec, "ALLOW_UNSAFE_TOPIC"), &texts).await;
    let accepting = world.running_gateway().await;
    send(&client(&accepting).await, &msg("alice", "bob", "1", "x")).await.unwrap();
}

#[tokio::test]
async fn topic_with_fewer_partitions_than_pinned_is_not_used() {
    let world = World::with_topic("narrow", &[]).await;
    let text = "the topic has 4 partitions, fewer than --topic-partitions 5";
    assert_topic_not_used(&world, |spec| spec.env("TOPIC_PARTITIONS", 5), &[text]).await;
}

/// If a topic has grown, only the pinned partitions are used, so each inbox stays in its partition.
#[tokio::test]
async fn partitions_above_the_pinned_count_are_not_used() {
    let world = World::with_topic("wide", &[]).await;
    let gateway = world.gateway("gateway", |spec| spec.env("TOPIC_PARTITIONS", 2));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    for i in 0..40 {
        let inbox = format!("inbox-{i}");
        let placement = send(&client, &msg("alice", &inbox, "1", "x")).await.unwrap();
        assert_eq!(placement.partition, partition_for(inbox.as_bytes(), 2));
    }
    assert_eq!(world.end_offsets().await[2..], [0, 0]);
}

#[tokio::test]
async fn topic_that_rejects_the_largest_message_is_not_used() {
    let world = World::with_topic("tight", &[("max.message.bytes", "500000")]).await;
    assert_topic_not_used(&world, |spec| spec, &["max.message.bytes is 500000", "--max-content-bytes"]).await;
    let modest = world.gateway("modest", |spec| spec.env("MAX_CONTENT_BYTES", "256KiB"));
    modest.service.start().await.unwrap();
    send(&client(&modest).await, &msg("alice", "bob", "1", vec![7; 256 << 10])).await.unwrap();
}

/// The topic's limit is lowered while the gateway runs. Then the broker rejects the record, and that is the caller's
/// error.
#[tokio::test]
async fn record_too_large_for_the_broker_is_the_callers_error() {
    let world = World::new("shrunk").await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    // Random bytes, so that the body is large after compression too.
    let body: Vec<u8> =
        (0..200_000_u64).flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).to_be_bytes()).collect();
    let large = msg("alice", "bob", "large", body[..500_000].to_vec());
    alter_topic(world.brokers(), world.topic(), &[("max.message.bytes", "100000")]).await;
    let rejected = eventually("the broker has its new limit", async || match send(&client, &large).await {
        Ok(placement) => Err(format!("accepted at {:?}", placement.offset).into()),
        Err(status) => Ok(status),
    })
    .await;
    assert_failed::<()>(Err(rejected), Code::InvalidArgument, "TOO_LARGE");
    send(&client, &msg("alice", "bob", "small", "x")).await.expect("small messages are still accepted");
    // In a batch that waits for STORED, a rejected message does not wait with the others, which no transfer stores.
    // The other message is in another partition, because the broker rejects all records of a packed batch.
    let partition = |recv_id: &str| partition_for(recv_id.as_bytes(), world.partitions);
    let other = (0..).map(|n| format!("carol-{n}")).find(|recv_id| partition(recv_id) != partition("bob")).unwrap();
    let msgs = vec![large, msg("alice", &other, "waits", "x")];
    let request = BatchSendMsgRequest { msgs, wait_for: WaitFor::Stored.into() };
    let batch = tokio::spawn(async move { client.clone().batch_send_msg(request).await });
    eventually("only the accepted message waits", async || {
        let waiting = metric(&gateway, "msg_gateway_stored_waiters").await?;
        ensure(waiting == 1.0, format!("{waiting} wait"))
    })
    .await;
    assert!(!batch.is_finished());
    batch.abort();
}

/// Records in flight to a deleted topic can stay in librdkafka indefinitely and block all later ones, so the gateway
/// replaces its producer.
#[tokio::test]
async fn topic_recreated_under_load_accepts_messages_again() {
    let world = World::with_topic("recreated_load", &[]).await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_SEND_WAIT", "3s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "0", "x")).await.unwrap();
    let senders: Vec<_> = (0..16)
        .map(|sender| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for number in 0.. {
                    let id = |entry: usize| format!("{number}/{entry}");
                    let to = |entry: usize| format!("inbox-{sender}-{}", entry % 20);
                    let msgs = (0..200).map(|entry| msg("alice", &to(entry), &id(entry), "some body")).collect();
                    // Most of these fail while the topic does not exist.
                    let request = BatchSendMsgRequest { msgs, wait_for: WaitFor::Accepted.into() };
                    let _ = client.batch_send_msg(request).await;
                }
            })
        })
        .collect();
    let kafka = stack().await.kafka();
    kafka.delete_topic(world.topic()).await.unwrap();
    wait_gateway_not_ready(&gateway, &["topic recreated_load does not exist"]).await;
    eventually("the topic is recreated", async || {
        kafka.create_topic(world.topic(), world.partitions, &[]).await.map_err(Into::into)
    })
    .await;
    for inbox in 0..16 {
        let again = msg("alice", &format!("later-{inbox}"), "1", "x");
        eventually("the message is accepted", async || Ok(send(&client, &again).await?)).await;
    }
    senders.iter().for_each(tokio::task::JoinHandle::abort);
    wait_in_flight(&gateway, 0).await;
    let replaced = metric(&gateway, "msg_gateway_producers_replaced_total").await.unwrap();
    assert!(replaced >= 1.0, "the producer of the old topic was not replaced");
    assert!(gateway.service.stop().await.unwrap().success());
}
