//! The gateway replaces its reader of hints when their topic has changed.

use msg_common::proto::{HintedInbox, StoredHint};
use prost::Message;

use super::super::calls::{client, metric};
use super::{Watcher, request};
use crate::support::kafka::{RawRecord, RecordWriter};
use crate::support::stack::stack;
use crate::support::world::{Gateway, World};
use crate::support::{admin, ensure, eventually};

async fn wait_until_read(gateway: &Gateway, writer: &RecordWriter, partition: i32) {
    let read = async || metric(gateway, r#"msg_gateway_hints_total{outcome="READ"}"#).await;
    let before = read().await.unwrap();
    let inbox = HintedInbox { recv_id: "unwatched".into(), seq: 1, ..HintedInbox::default() };
    let hint = StoredHint { inboxes: vec![inbox], rows: None };
    let record = RawRecord { key: None, value: Some(hint.encode_to_vec()), version: None };
    eventually(&format!("a hint of partition {partition} is read"), async || {
        writer.put_to(partition, &record);
        writer.flush();
        let now = read().await?;
        ensure(now > before, format!("{now} hints were read, as before"))
    })
    .await;
}

#[tokio::test]
async fn hints_are_read_when_their_topic_grows_or_is_recreated() {
    let world = World::new("hints_topic").await;
    // No transfer runs, because its hints would be read too.
    let gateway = {
        world.running_transfer().await.stop().await.unwrap();
        world.running_gateway().await
    };
    let _watcher = Watcher::open(&client(&gateway).await, request([("bob", None)])).await.unwrap();
    let kafka = stack().await.kafka();
    let topic = format!("{}-hints", world.topic());
    let partitions = kafka.partitions(&topic).await.unwrap().expect("the hints topic exists");
    wait_until_read(&gateway, &RecordWriter::new(world.brokers(), &topic, partitions), 0).await;
    admin::set_partition_count(world.brokers(), &topic, usize::try_from(partitions).unwrap() + 1).await;
    wait_until_read(&gateway, &RecordWriter::new(world.brokers(), &topic, partitions + 1), partitions).await;
    kafka.delete_topic(&topic).await.unwrap();
    kafka.create(&kafka.hints_topic(world.topic())).await.unwrap();
    wait_until_read(&gateway, &RecordWriter::new(world.brokers(), &topic, partitions), 0).await;
    let replaced = metric(&gateway, "msg_gateway_hint_readers_replaced_total").await.unwrap();
    assert!(replaced >= 2.0, "{replaced} readers were replaced");
}
