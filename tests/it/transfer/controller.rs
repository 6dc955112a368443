//! A dead broker that a client considers to be the controller.

use std::time::Duration;

use msg_common::kafka::raw::topic_id;
use msg_stack::{Stack, StackOptions};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::support::eventually;

/// A partition is not fetched before the topic's ID is known. With KRaft a client chooses any broker as the
/// controller, and without our help waits for it: while that broker was dead, no partition that was assigned
/// meanwhile was fetched.
#[tokio::test]
async fn dead_broker_does_not_hide_the_topic_id() {
    let folder = tempfile::Builder::new().prefix("msg-it-controller-").tempdir().unwrap();
    let mut options = StackOptions::new(folder.path());
    options.brokers = 3;
    let stack = Stack::reserve(options).await.unwrap();
    stack.kafka().start().await.unwrap();
    stack.kafka().create_topic_without_hints("controller", 3, &[]).await.unwrap();
    let config =
        ClientConfig::new().set("bootstrap.servers", stack.kafka().bootstrap()).set("group.id", "controller").clone();
    let client = std::sync::Arc::new(config.create::<BaseConsumer>().unwrap());
    let read_id = async || {
        let client = client.clone();
        let request = move || topic_id(client.client(), "controller", Duration::from_secs(5));
        Ok(tokio::task::spawn_blocking(request).await.unwrap()?)
    };
    let id = eventually("the topic's ID is read", read_id).await;
    // One of the three is the one that the client chose as the controller.
    for broker in 1..=3 {
        stack.kafka().kill_broker(broker).await.unwrap();
        assert_eq!(eventually(&format!("the topic's id is read without broker {broker}"), read_id).await, id);
        stack.kafka().start_broker(broker).await.unwrap();
    }
}
