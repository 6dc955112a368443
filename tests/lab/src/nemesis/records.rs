//! Injects faults of the topic: poison records, more partitions, and a topic that is recreated.

use std::sync::atomic::Ordering;
use std::time::Duration;

use msg_common::record;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;

use super::injection::FaultInjection;
use crate::error::LabError;
use crate::evidence::NewTopic;
use crate::history::now;
use crate::message::message;
use crate::settle::{progress, until_stored};
use crate::topology::{PARTITIONS, TOPIC};

/// Below the dead-letter limit: no transfer halts a partition.
const POISON: usize = 24;
/// The number of partitions to add.
const MORE: i32 = 4;
const WITHIN: Duration = Duration::from_secs(30);

/// Writes records that are not decodable, whose key is not the receiver, and that have neither key nor value.
pub(super) async fn poison(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    injection.target(format!("{POISON} records"));
    injection.fault.broken = now();
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", injection.world.stack.kafka().bootstrap())
        .set("enable.idempotence", "true")
        .create()?;
    let version = record::VERSION.to_string();
    // A sender that the load does not have: the record must never become a row.
    let wrong = record::encode(message(u32::MAX, 0, 0), uuid::Uuid::from_u128(7), 1_700_000_000_000);
    for number in 0..POISON {
        let partition = i32::try_from(number).expect("few") % PARTITIONS;
        let headers = OwnedHeaders::new().insert(Header { key: record::VERSION_HEADER, value: Some(version.as_str()) });
        let base = FutureRecord::<[u8], [u8]>::to(TOPIC).partition(partition).headers(headers);
        let key = format!("inbox-{number}");
        let sent = match number % 4 {
            0 => base.key(key.as_bytes()).payload(b"\xff\xff no record \x00".as_slice()),
            1 => base.key(key.as_bytes()).payload(wrong.as_slice()),
            2 => base.key(b"\xff\xfe".as_slice()).payload(wrong.as_slice()),
            _ => base,
        };
        let delivered = producer.send(sent, Timeout::Never).await.map_err(|(error, _)| error)?;
        injection.seen.poison.push((delivered.partition, delivered.offset));
    }
    injection.fault.over = now();
    Ok(())
}

/// First only adds partitions. Then, as the documentation says, stops the gateways, waits until everything is stored,
/// and starts them with the new number.
pub(super) async fn grow(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let world = injection.world;
    let count = world.partitions.load(Ordering::Relaxed) + MORE;
    injection.target(format!("to {count} partitions"));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", world.stack.kafka().bootstrap()).create()?;
    let wanted = usize::try_from(count).expect("it is positive");
    let options = AdminOptions::new().request_timeout(Some(WITHIN));
    let results = admin.create_partitions([&NewPartitions::new(TOPIC, wanted)], &options).await?;
    if let Some(Err((_, code))) = results.into_iter().next() {
        return Err(LabError::Setting(format!("the topic does not grow: {code}")));
    }
    world.partitions.store(count, Ordering::Relaxed);
    world.offsets.set_partitions(count);
    injection.hold().await;
    futures_util::future::join_all(world.gateways.iter().map(|gateway| gateway.stop())).await;
    until_stored(&world.offsets).await?;
    injection.seen.growth = Some((now(), count));
    for gateway in &world.gateways {
        gateway.set("TOPIC_PARTITIONS", count)?;
    }
    futures_util::future::try_join_all(world.gateways.iter().map(|gateway| gateway.start())).await?;
    Ok(())
}

/// Deletes and recreates the topic. Only records that were not stored before may be lost.
pub(super) async fn recreate(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (world, kafka) = (injection.world, injection.world.stack.kafka());
    let count = world.partitions.load(Ordering::Relaxed);
    injection.target(TOPIC);
    let (deleted, progress) = (now(), progress(world).await?);
    kafka.delete_topic(TOPIC).await?;
    injection.hold().await;
    kafka.create_topic(TOPIC, count, &[]).await?;
    injection.seen.topic = Some(NewTopic { deleted, progress, made: now() });
    Ok(())
}
