//! Breaks brokers.

use std::time::Duration;

use msg_stack::Signal;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};

use super::injection::FaultInjection;
use crate::error::LabError;
use crate::history::now;
use crate::topology::{BROKERS, TOPIC};
use crate::world::World;

/// For the replicas of a broker that came back to have caught up.
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn kill(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let broker = strike.broker();
    kill_this(strike, broker).await
}

pub(super) async fn kill_controller(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let kafka = strike.world.stack.kafka();
    let args = ["--bootstrap-server", kafka.bootstrap(), "describe", "--status"];
    let said = kafka.tool("org.apache.kafka.tools.MetadataQuorumCommand", &args).await?;
    let leader = said.lines().find_map(|line| line.strip_prefix("LeaderId:"));
    let leader = leader.and_then(|id| id.trim().parse().ok());
    let leader = leader.ok_or_else(|| LabError::Setting(format!("no active controller is named in:\n{said}")))?;
    kill_this(strike, leader).await
}

async fn kill_this(strike: &mut FaultInjection<'_>, broker: usize) -> Result<(), LabError> {
    let kafka = strike.world.stack.kafka();
    strike.target(format!("broker-{broker}"));
    kafka.kill_broker(broker).await?;
    strike.fault.kills = 1;
    strike.hold().await;
    kafka.start_broker(broker).await?;
    in_sync(strike.world).await
}

pub(super) async fn freeze(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (kafka, broker) = (strike.world.stack.kafka(), strike.broker());
    strike.target(format!("broker-{broker}"));
    if !kafka.signal_broker(broker, Signal::Stop)? {
        return Err(LabError::Stuck(format!("broker-{broker} does not run")));
    }
    strike.hold().await;
    kafka.signal_broker(broker, Signal::Cont)?;
    in_sync(strike.world).await
}

pub(super) async fn restart(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let kafka = strike.world.stack.kafka();
    strike.target(format!("{BROKERS} one after the other"));
    strike.fault.broken = now();
    for broker in 1..=BROKERS {
        kafka.stop_broker(broker).await?;
        kafka.start_broker(broker).await?;
        in_sync(strike.world).await?;
    }
    strike.fault.over = now();
    Ok(())
}

/// The order of the replicas says who is to lead.
pub(super) async fn move_leaders(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (world, kafka) = (strike.world, strike.world.stack.kafka());
    let partitions = replicas(world).await?;
    strike.target(format!("{} partitions", partitions.len()));
    strike.fault.broken = now();
    let moved = partitions.iter().enumerate().map(|(partition, found)| {
        let mut order = found.replicas.clone();
        order.rotate_left(1);
        json!({ "topic": TOPIC, "partition": partition, "replicas": order })
    });
    let wanted = json!({ "version": 1, "partitions": moved.collect::<Vec<Value>>() });
    let file = world.stack.state().folder().join("reassignment.json");
    std::fs::write(&file, wanted.to_string()).map_err(LabError::io("write", &file))?;
    let (file, bootstrap) = (file.display().to_string(), kafka.bootstrap());
    let args = ["--bootstrap-server", bootstrap, "--execute", "--reassignment-json-file", &file];
    kafka.tool("org.apache.kafka.tools.reassign.ReassignPartitionsCommand", &args).await?;
    let args = ["--bootstrap-server", bootstrap, "--election-type", "PREFERRED", "--all-topic-partitions"];
    kafka.tool("org.apache.kafka.tools.LeaderElectionCommand", &args).await?;
    strike.fault.over = now();
    Ok(())
}

pub(super) async fn lose_min_insync(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (kafka, stays) = (strike.world.stack.kafka(), strike.broker());
    let others: Vec<usize> = (1..=BROKERS).filter(|broker| *broker != stays).collect();
    strike.target(format!("all but broker-{stays}"));
    for broker in &others {
        kafka.kill_broker(*broker).await?;
    }
    strike.fault.kills = 2;
    strike.fault.no_ok = true;
    strike.hold().await;
    futures_util::future::try_join_all(others.iter().map(|broker| kafka.start_broker(*broker))).await?;
    in_sync(strike.world).await
}

/// Waits until every replica of every partition is in sync.
pub(super) async fn in_sync(world: &World) -> Result<(), LabError> {
    let waiting = async {
        loop {
            match replicas(world).await {
                Ok(found) if found.iter().all(|one| one.in_sync == BROKERS) => return,
                Ok(_) | Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    };
    let late = |_| LabError::Stuck(format!("some replicas are out of sync for {} s", IN_SYNC_WITHIN.as_secs()));
    tokio::time::timeout(IN_SYNC_WITHIN, waiting).await.map_err(late)
}

struct Replicas {
    replicas: Vec<i32>,
    in_sync: usize,
}

async fn replicas(world: &World) -> Result<Vec<Replicas>, LabError> {
    let bootstrap = world.stack.kafka().bootstrap().to_owned();
    let ask = move || -> Result<Vec<Replicas>, LabError> {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", bootstrap).set("log_level", "0").create()?;
        let metadata = consumer.fetch_metadata(Some(TOPIC), Duration::from_secs(2))?;
        let topic = metadata.topics().first().ok_or_else(|| LabError::Setting("the topic is gone".into()))?;
        let mut partitions: Vec<_> = topic.partitions().iter().collect();
        partitions.sort_by_key(|partition| partition.id());
        let replicas = |one: &rdkafka::metadata::MetadataPartition| Replicas {
            replicas: one.replicas().to_vec(),
            in_sync: one.isr().len(),
        };
        Ok(partitions.into_iter().map(replicas).collect())
    };
    tokio::task::spawn_blocking(ask).await.expect("asking does not panic")
}
