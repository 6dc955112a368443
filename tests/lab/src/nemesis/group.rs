//! Injects faults of the consumer group: another program joins that cannot share partitions with the transfers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use msg_stack::service::READY_WITHIN;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::injection::FaultInjection;
use crate::error::LabError;
use crate::topology::{GROUP, TOPIC};

/// How long the consumer may need until it is the group's only member.
const JOINED_WITHIN: Duration = Duration::from_secs(30);

/// Stops the transfers and lets a consumer with the range assignor join. The transfers, which are cooperative, cannot
/// join while it is a member.
pub(super) async fn foreign_consumer(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let world = injection.world;
    let transfers = world.running_transfers();
    injection.target(format!("{GROUP}, {} transfers", transfers.len()));
    futures_util::future::join_all(transfers.iter().map(|transfer| transfer.stop())).await;
    let foreign = ClientConfig::new()
        .set("bootstrap.servers", world.stack.kafka().bootstrap())
        .set("group.id", GROUP)
        .set("partition.assignment.strategy", "range")
        .set("enable.auto.commit", "false")
        .create::<BaseConsumer>()?;
    foreign.subscribe(&[TOPIC])?;
    let (joined, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let flags = (joined.clone(), over.clone());
    let member = tokio::task::spawn_blocking(move || {
        while !flags.1.load(Ordering::Relaxed) {
            // The consumer drops what it reads, and commits no offset.
            let _ = foreign.poll(Duration::from_millis(100));
            let assigned = foreign.assignment().is_ok_and(|list| list.count() > 0);
            flags.0.store(assigned, Ordering::Relaxed);
        }
    });
    let joining = async {
        while !joined.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let result = tokio::time::timeout(JOINED_WITHIN, joining).await;
    for transfer in transfers {
        transfer.launch()?;
    }
    if result.is_ok() {
        injection.hold().await;
    }
    over.store(true, Ordering::Relaxed);
    member.await.map_err(|_| LabError::Stuck("the other consumer ended in a panic".to_owned()))?;
    result.map_err(|_| LabError::Stuck("the other consumer does not become a member".to_owned()))?;
    for transfer in transfers {
        transfer.service().wait_ready(READY_WITHIN).await?;
    }
    Ok(())
}
