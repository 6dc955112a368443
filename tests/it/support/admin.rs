//! An operator's changes of a topic during a test, and state of a consumer group that clients cannot request.

use std::time::Duration;

use msg_common::partition::Partition;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const TIMEOUT: Duration = Duration::from_secs(30);
/// The stack's brokers are configured with this count.
const OFFSETS_PARTITIONS: u32 = 8;

fn client(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap()
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT))
}

pub(crate) async fn set_partition_count(brokers: &str, topic: &str, partitions: usize) {
    let results = client(brokers).create_partitions([&NewPartitions::new(topic, partitions)], &options()).await;
    results.unwrap().pop().unwrap().unwrap();
}

/// Sets these settings of a topic, and resets all others.
pub(crate) async fn alter_topic(brokers: &str, topic: &str, settings: &[(&str, &str)]) {
    let config = AlterConfig::new(ResourceSpecifier::Topic(topic));
    let config = settings.iter().fold(config, |config, (key, value)| config.set(key, value));
    client(brokers).alter_configs([&config], &options()).await.unwrap().pop().unwrap().unwrap();
}

/// Deletes a partition's records below an offset, as retention would.
pub(crate) async fn delete_records(brokers: &str, topic: &str, partition: Partition, before: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
    let result = client(brokers).delete_records(&list, &options()).await.unwrap();
    result.elements()[0].error().unwrap();
}

/// The group's generation: the number of its rebalances. No request returns it, so it is read from the brokers'
/// internal topic.
pub(crate) async fn group_generation(brokers: &str, group: &str) -> i32 {
    let (brokers, group) = (brokers.to_owned(), group.to_owned());
    tokio::task::spawn_blocking(move || read_generation(&brokers, &group)).await.unwrap()
}

fn read_generation(brokers: &str, group: &str) -> i32 {
    let hash = group.bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let partition = i32::try_from(hash.cast_signed().unsigned_abs() % OFFSETS_PARTITIONS).unwrap();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reads-generations")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let topic = "__consumer_offsets";
    let (low, end) = consumer.fetch_watermarks(topic, partition, TIMEOUT).unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(low)).unwrap();
    consumer.assign(&list).unwrap();
    let mut found = 0;
    loop {
        let record = consumer.poll(TIMEOUT).expect("the internal topic has records up to its end").unwrap();
        if let (Some(key), Some(value)) = (record.key(), record.payload())
            && group_of_key(key) == Some(group.as_bytes())
        {
            found = generation_in(value);
        }
        if record.offset() >= end - 1 {
            return found;
        }
    }
}

/// The group that a record's key is about. Version 2 of a key belongs to a group's metadata: its name, after two
/// bytes of length.
fn group_of_key(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(&[0, 2])?.get(2..)
}

/// The generation in a group's metadata. The version comes first, then the protocol's type as a text with its length,
/// and then the generation.
fn generation_in(value: &[u8]) -> i32 {
    let number = |at: usize| i16::from_be_bytes([value[at], value[at + 1]]);
    let at = 4 + usize::try_from(number(2)).unwrap();
    i32::from_be_bytes(value[at..at + 4].try_into().unwrap())
}

/// The state of the group, by the broker's name for it.
pub(crate) async fn group_state(brokers: &str, group: &str) -> String {
    let (brokers, group) = (brokers.to_owned(), group.to_owned());
    let request = move || {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        let groups = consumer.fetch_group_list(Some(&group), TIMEOUT).unwrap();
        groups.groups().first().map(|group| group.state().to_owned()).unwrap_or_default()
    };
    tokio::task::spawn_blocking(request).await.unwrap()
}
