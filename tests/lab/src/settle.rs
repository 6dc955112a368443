//! Waits until all that Kafka holds is stored.

use std::time::{Duration, Instant};

use msg_stack::Offsets;
use tokio_postgres::Client;

use super::error::LabError;
use super::world::World;

/// No record was stored for this long: the pipe stands still.
const STUCK_AFTER: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// The next offset to store of each partition of the lab's topic.
pub(crate) async fn progress(world: &World) -> Result<Vec<i64>, LabError> {
    let partitions = world.partitions.load(std::sync::atomic::Ordering::Relaxed);
    progress_rows(&world.database().await?, usize::try_from(partitions).expect("it is positive")).await
}

/// The next offset to store of each partition, of the topic that exists now; 0 for a partition without a progress row.
pub async fn progress_rows(database: &Client, partitions: usize) -> Result<Vec<i64>, LabError> {
    // A topic that was made anew has rows of its own.
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

/// Waits until the group has committed everything. Whether that is stored, the checker finds out.
pub async fn until_stored(offsets: &Offsets) -> Result<(), LabError> {
    let (mut best, mut since) = (i64::MAX, Instant::now());
    loop {
        if let (Ok(ends), Ok(committed)) = (offsets.ends().await, offsets.committed().await) {
            // One that is ahead is the checker's to tell, and does not make up for another.
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
