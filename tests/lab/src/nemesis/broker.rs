//! Injects faults of brokers.

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

/// How long the replicas of a restarted broker may need until they are in sync.
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn kill(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let broker = injection.broker();
    kill_this(injection, broker).await
}

pub(super) async fn kill_controller(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let kafka = injection.world.stack.kafka();
    let args = ["--bootstrap-server", kafka.bootstrap(), "describe", "--status"];
    let output = kafka.tool("org.apache.kafka.tools.MetadataQuorumCommand", &args).await?;
    let leader = output.lines().find_map(|line| line.strip_prefix("LeaderId:"));
    let leader = leader.and_then(|id| id.trim().parse().ok());
    let leader = leader.ok_or_else(|| LabError::Setting(format!("no active controller is named in:\n{output}")))?;
    kill_this(injection, leader).await
}

async fn kill_this(injection: &mut FaultInjection<'_>, broker: usize) -> Result<(), LabError> {
    let kafka = injection.world.stack.kafka();
    injection.target(format!("broker-{broker}"));
    kafka.kill_broker(broker).await?;
    injection.fault.kills = 1;
    injection.hold().await;
    kafka.start_broker(broker).await?;
    in_sync(injection.world).await
}

pub(super) async fn freeze(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (kafka, broker) = (injection.world.stack.kafka(), injection.broker());
    injection.target(format!("broker-{broker}"));
    if !kafka.signal_broker(broker, Signal::Stop)? {
        return Err(LabError::Stuck(format!("broker-{broker} does not run")));
    }
    injection.hold().await;
    kafka.signal_broker(broker, Signal::Cont)?;
    in_sync(injection.world).await
}

pub(super) async fn restart(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let kafka = injection.world.stack.kafka();
    injection.target(format!("{BROKERS} one after the other"));
    injection.fault.broken = now();
    for broker in 1..=BROKERS {
        kafka.stop_broker(broker).await?;
        kafka.start_broker(broker).await?;
        in_sync(injection.world).await?;
    }
    injection.fault.over = now();
    Ok(())
}

/// Changes the order of the replicas, which decides the preferred leaders.
pub(super) async fn move_leaders(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (world, kafka) = (injection.world, injection.world.stack.kafka());
    let partitions = replicas(world).await?;
    injection.target(format!("{} partitions", partitions.len()));
    injection.fault.broken = now();
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
    injection.fault.over = now();
    Ok(())
}

pub(super) async fn lose_min_insync(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (kafka, stays) = (injection.world.stack.kafka(), injection.broker());
    let others: Vec<usize> = (1..=BROKERS).filter(|broker| *broker != stays).collect();
    injection.target(format!("all but broker-{stays}"));
    for broker in &others {
        kafka.kill_broker(*broker).await?;
    }
    injection.fault.kills = 2;
    injection.fault.no_ok = true;
    injection.hold().await;
    futures_util::future::try_join_all(others.iter().map(|broker| kafka.start_broker(*broker))).await?;
    in_sync(injection.world).await
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
    let request = move || -> Result<Vec<Replicas>, LabError> {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", bootstrap).set("log_level", "0").create()?;
        let metadata = consumer.fetch_metadata(Some(TOPIC), Duration::from_secs(2))?;
        let topic = metadata.topics().first().ok_or_else(|| LabError::Setting("the topic does not exist".into()))?;
        let mut partitions: Vec<_> = topic.partitions().iter().collect();
        partitions.sort_by_key(|partition| partition.id());
        let replicas = |one: &rdkafka::metadata::MetadataPartition| Replicas {
            replicas: one.replicas().to_vec(),
            in_sync: one.isr().len(),
        };
        Ok(partitions.into_iter().map(replicas).collect())
    };
    tokio::task::spawn_blocking(request).await.expect("reading metadata does not panic")
}
