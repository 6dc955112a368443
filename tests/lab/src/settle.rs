//! Waits until the transfers have stored every record in Kafka.

use std::time::{Duration, Instant};

use msg_stack::Offsets;
use tokio_postgres::Client;

use super::error::LabError;
use super::world::World;

/// If no record was stored for this long, the transfers are stalled.
const STUCK_AFTER: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// Returns the next offset to store of each partition of the lab's topic.
pub(crate) async fn progress(world: &World) -> Result<Vec<i64>, LabError> {
    let partitions = world.partitions.load(std::sync::atomic::Ordering::Relaxed);
    progress_rows(&world.database().await?, usize::try_from(partitions).expect("it is positive")).await
}

/// Returns the next offset to store of each partition, of the current topic; 0 for a partition without a progress row.
pub async fn progress_rows(database: &Client, partitions: usize) -> Result<Vec<i64>, LabError> {
    // A recreated topic has progress rows of its own.
    const NEWEST: &str = "
        SELECT DISTINCT ON (kafka_partition) kafka_partition, next_offset FROM progress
        ORDER BY kafka_partition, updated_at DESC";
    let mut next = vec![0; partitions];
    for row in database.query(NEWEST, &[]).await? {
        let slot = usize::try_from(row.get::<_, i32>(0)).ok().and_then(|partition| next.get_mut(partition));
        if let Some(slot) = slot {
            *slot = row.get(1);
        }
    }
    Ok(next)
}

/// Waits until the group has committed everything. The checker then checks that committed records are stored.
pub async fn until_stored(offsets: &Offsets) -> Result<(), LabError> {
    let (mut best, mut since) = (i64::MAX, Instant::now());
    loop {
        if let (Ok(ends), Ok(committed)) = (offsets.ends().await, offsets.committed().await) {
            // A partition that is ahead does not make up for another; the checker reports it.
            let left: i64 = ends.iter().zip(&committed).map(|(end, next)| (end - next).max(0)).sum();
            if left == 0 {
                return Ok(());
            }
            if left < best {
                (best, since) = (left, Instant::now());
            }
        }
        if since.elapsed() > STUCK_AFTER {
            return Err(LabError::Stuck(format!(
                "{best} records are not stored, and none was for {} s",
                STUCK_AFTER.as_secs()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}
