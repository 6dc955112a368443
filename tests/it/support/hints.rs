//! Hints that a test reads or writes.

use std::time::{Duration, SystemTime};

use msg_common::hint::hinted_rows;
use msg_common::kafka::raw::topic_id;
use msg_common::postgres::{Connector, DatabaseOptions, Purpose, TableIdentity, UrlFlags};
use msg_common::proto::HintedRows;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use uuid::Uuid;

use super::world::World;
use super::{WAIT_TIMEOUT, eventually};

/// What the rows of a world have in common if they were stored at this time, as its transfer describes them.
pub(crate) async fn rows_of(world: &World, stored_time_us: i64) -> HintedRows {
    hinted_rows(id_of_topic(world).await, stored_time_us, table_of(world).await)
}

async fn id_of_topic(world: &World) -> Uuid {
    let mut config = ClientConfig::new();
    let config = config.set("bootstrap.servers", world.brokers()).set("group.id", "none");
    let client = std::sync::Arc::new(config.create::<BaseConsumer>().unwrap());
    let topic = world.topic().to_owned();
    let id = eventually("the topic's ID is read", async || {
        let (client, topic) = (client.clone(), topic.clone());
        let request = move || topic_id(client.client(), &topic, Duration::from_secs(5));
        Ok(tokio::task::spawn_blocking(request).await.unwrap()?)
    })
    .await;
    id.expect("the brokers return IDs")
}

async fn table_of(world: &World) -> TableIdentity {
    let options = DatabaseOptions {
        database_url: Some(world.database_url().into()),
        database_url_file: None,
        database_password_file: None,
        database_connect_timeout: Duration::from_secs(10),
        database_statement_timeout: Duration::from_secs(10),
        flags: UrlFlags::default(),
    };
    let connection =
        Connector::new(options, "test", "SET lock_timeout = 0", Purpose::Inspect).unwrap().connect().await.unwrap();
    connection.server().table().expect("the transfer has created the table")
}

/// The timestamp of the record at this position, which its row has too.
pub(crate) fn send_time(world: &World, partition: i32, offset: i64) -> SystemTime {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", world.brokers()).set("group.id", "none").create().unwrap();
    let mut position = TopicPartitionList::new();
    position.add_partition_offset(world.topic(), partition, Offset::Offset(offset)).unwrap();
    consumer.assign(&position).unwrap();
    let record = consumer.poll(WAIT_TIMEOUT).expect("the record exists").unwrap();
    let millis = record.timestamp().to_millis().unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap())
}
