//! Fills disks.

use super::broker;
use super::injection::FaultInjection;
use crate::disk::Disk;
use crate::error::LabError;
use crate::topology::BROKERS;

pub(super) async fn fill_postgres(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    strike.target("postgresql");
    let disk = given(strike.world.postgres_disk.as_ref())?;
    disk.fill()?;
    strike.hold().await;
    disk.free()?;
    // Where its log had no room the server has ended.
    strike.world.stack.postgres().start().await?;
    super::database::answers(strike).await
}

/// A broker whose only disk fails ends itself.
pub(super) async fn fill_broker(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    strike.target(format!("broker-{BROKERS}"));
    let disk = given(strike.world.broker_disk.as_ref())?;
    disk.fill()?;
    strike.hold().await;
    disk.free()?;
    let kafka = strike.world.stack.kafka();
    // One that had room in its open segments is still there, and may have noticed nothing or something.
    kafka.stop_broker(BROKERS).await?;
    kafka.start_broker(BROKERS).await?;
    broker::in_sync(strike.world).await
}

fn given(disk: Option<&Disk>) -> Result<&Disk, LabError> {
    disk.ok_or_else(|| LabError::Setting("the stack was started without disks that can be filled".into()))
}
