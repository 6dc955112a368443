//! Injects full disks.

use super::broker;
use super::injection::FaultInjection;
use crate::disk::Disk;
use crate::error::LabError;
use crate::topology::BROKERS;

pub(super) async fn fill_postgres(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    injection.target("postgresql");
    let disk = fillable(injection.world.postgres_disk.as_ref())?;
    disk.fill()?;
    injection.hold().await;
    disk.free()?;
    // If the disk was too full for its log, the server has ended.
    injection.world.stack.postgres().start().await?;
    super::database::responds(injection).await
}

/// A broker ends if its only disk fails.
pub(super) async fn fill_broker(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    injection.target(format!("broker-{BROKERS}"));
    let disk = fillable(injection.world.broker_disk.as_ref())?;
    disk.fill()?;
    injection.hold().await;
    disk.free()?;
    let kafka = injection.world.stack.kafka();
    // Restart the broker: if its open segments still had capacity, it runs, perhaps with some failed partitions.
    kafka.stop_broker(BROKERS).await?;
    kafka.start_broker(BROKERS).await?;
    broker::in_sync(injection.world).await
}

fn fillable(disk: Option<&Disk>) -> Result<&Disk, LabError> {
    disk.ok_or_else(|| LabError::Setting("the stack was started without disks that can be filled".into()))
}
