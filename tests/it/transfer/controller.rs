//! A broker that is gone, and that a client has taken for the controller.

use std::time::Duration;

use msg_common::kafka::raw::topic_id;
use msg_dev::stack::{Stack, StackOptions};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::support::eventually;

/// A partition does not start before the topic's id is known. With KRaft a client takes any broker for the controller and, left
/// to itself, waits for that one: as long as it was dead, partitions that were assigned meanwhile stood still.
#[tokio::test]
async fn a_dead_broker_does_not_keep_the_topics_id_from_being_known() {
    let folder = tempfile::Builder::new().prefix("msg-it-controller-").tempdir().unwrap();
    let mut options = StackOptions::new(folder.path());
    options.brokers = 3;
    let stack = Stack::reserve(options).await.unwrap();
    stack.kafka().start().await.unwrap();
    stack.kafka().create_topic_without_hints("controller", 3, &[]).await.unwrap();
    let config =
        ClientConfig::new().set("bootstrap.servers", stack.kafka().bootstrap()).set("group.id", "controller").clone();
    let client = std::sync::Arc::new(config.create::<BaseConsumer>().unwrap());
    let ask = async || {
        let client = client.clone();
        let asked = move || topic_id(client.client(), "controller", Duration::from_secs(5));
        Ok(tokio::task::spawn_blocking(asked).await.unwrap()?)
    };
    let id = eventually("the topic's id is told", ask).await;
    // One of the three is the one that the client takes for the controller.
    for broker in 1..=3 {
        stack.kafka().kill_broker(broker).await.unwrap();
        assert_eq!(eventually(&format!("the topic's id is told without broker {broker}"), ask).await, id);
        stack.kafka().start_broker(broker).await.unwrap();
    }
}
