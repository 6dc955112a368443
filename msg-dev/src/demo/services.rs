//! Owns the two services of the demo: their start, and the kill of the transfer midway.

use std::time::{Duration, Instant, SystemTime};

use msg_stack::service::READY_WITHIN;
use msg_stack::{Memory, Offsets, Services, Stack};

use super::error::DemoError;

pub(crate) const TOPIC: &str = "msgs";
pub(crate) const PARTITIONS: i32 = 16;
pub(crate) const GROUP: &str = "msg-transfer";
const DATABASE: &str = "msg";
/// Settings of both services; the gateway ignores them. The transfer is a static member of the group: after its crash
/// the restarted process gets its partitions without waiting for the session timeout.
const SETTINGS: [(&str, &str); 2] = [("GROUP_ID", GROUP), ("GROUP_INSTANCE_ID", "msg-transfer-1")];

/// The measurements of the kill of the transfer.
#[derive(Debug)]
pub(crate) struct Crash {
    /// When the killed process had ended and the next one was not started yet.
    pub(crate) at: SystemTime,
    /// The group's committed offsets at that time, by partition.
    pub(crate) committed: Vec<i64>,
    /// From the crash until the restarted transfer was ready.
    pub(crate) ready: Duration,
    /// The memory of the killed process just before.
    pub(crate) memory: Memory,
}

/// Creates the topic and the database, and starts both services. Returns them with the database's URL.
pub(crate) async fn start(stack: &Stack) -> Result<(Services, String), DemoError> {
    let (database_url, ()) = tokio::try_join!(
        stack.postgres().ensure_database(DATABASE),
        stack.kafka().create_topic(TOPIC, PARTITIONS, &[])
    )?;
    let services = stack.pipe(TOPIC, PARTITIONS, &database_url).start(stack.logs(), &SETTINGS).await?;
    Ok((services, database_url))
}

/// Kills the transfer, reads its committed offsets, and starts it again.
pub(crate) async fn crash(services: &Services, offsets: &Offsets) -> Result<Crash, DemoError> {
    let transfer = &services.transfer;
    let memory = transfer.memory();
    transfer.kill().await;
    let (at, clock) = (SystemTime::now(), Instant::now());
    // No transfer runs now, so the killed one committed these offsets.
    let committed = offsets.committed().await?;
    transfer.launch()?;
    transfer.wait_ready(READY_WITHIN).await?;
    Ok(Crash { at, committed, ready: clock.elapsed(), memory })
}
