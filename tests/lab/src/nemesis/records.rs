//! Breaks what is in Kafka: records that hold no message, a topic that grows, a topic that is deleted.

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

/// Few enough that no transfer stops a partition over them.
const POISON: usize = 24;
/// How many partitions a topic gets.
const MORE: i32 = 4;
const WITHIN: Duration = Duration::from_secs(30);

/// Bytes that are no record, a key that is not the receiver, nothing at all.
pub(super) async fn poison(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    strike.target(format!("{POISON} records"));
    strike.fault.broken = now();
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", strike.world.stack.kafka().bootstrap())
        .set("enable.idempotence", "true")
        .create()?;
    let version = record::VERSION.to_string();
    // Of a sender that nobody else is: it must never be a row.
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
        strike.seen.poison.push((delivered.partition, delivered.offset));
    }
    strike.fault.over = now();
    Ok(())
}

/// First only the topic grows; then, as the documentation says, the gateways stop, all is stored, and they begin anew with the
/// new number.
pub(super) async fn grow(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let world = strike.world;
    let count = world.partitions.load(Ordering::Relaxed) + MORE;
    strike.target(format!("to {count} partitions"));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", world.stack.kafka().bootstrap()).create()?;
    let wanted = usize::try_from(count).expect("it is positive");
    let options = AdminOptions::new().request_timeout(Some(WITHIN));
    let answers = admin.create_partitions([&NewPartitions::new(TOPIC, wanted)], &options).await?;
    if let Some(Err((_, code))) = answers.into_iter().next() {
        return Err(LabError::Setting(format!("the topic does not grow: {code}")));
    }
    world.partitions.store(count, Ordering::Relaxed);
    world.offsets.grown_to(count);
    strike.hold().await;
    futures_util::future::join_all(world.gateways.iter().map(|gateway| gateway.stop())).await;
    until_stored(&world.offsets).await?;
    strike.seen.growth = Some((now(), count));
    for gateway in &world.gateways {
        gateway.set("TOPIC_PARTITIONS", count)?;
    }
    futures_util::future::try_join_all(world.gateways.iter().map(|gateway| gateway.start())).await?;
    Ok(())
}

/// What was not stored yet is gone with it. What comes after is not.
pub(super) async fn recreate(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (world, kafka) = (strike.world, strike.world.stack.kafka());
    let count = world.partitions.load(Ordering::Relaxed);
    strike.target(TOPIC);
    let (deleted, progress) = (now(), progress(world).await?);
    kafka.delete_topic(TOPIC).await?;
    strike.hold().await;
    kafka.create_topic(TOPIC, count, &[]).await?;
    strike.seen.topic = Some(NewTopic { deleted, progress, made: now() });
    Ok(())
}
