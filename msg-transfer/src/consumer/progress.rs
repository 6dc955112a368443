//! Writes the progress rows: how far each partition is stored, said by the database itself.

use std::time::Duration;

use deadpool_postgres::Pool;
use msg_common::partition::Partition;
use uuid::Uuid;

use crate::failure;
use crate::lane::sql;
use crate::machine::offset::NextOffset;

/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Writes them in one statement.
pub async fn save(pool: &Pool, rows: Vec<(Uuid, Partition, NextOffset)>) -> Result<(), String> {
    let topic_ids: Vec<Uuid> = rows.iter().map(|(topic_id, _, _)| *topic_id).collect();
    let partitions: Vec<Partition> = rows.iter().map(|(_, partition, _)| *partition).collect();
    let offsets: Vec<i64> = rows.iter().map(|(_, _, next)| next.0).collect();
    let saved = async {
        let client = pool.get().await.map_err(|error| error.to_string())?;
        let statement = client.prepare_cached(sql::SAVE_PROGRESS).await.map_err(|error| failure::describe(&error))?;
        let saved = client.execute(&statement, &[&topic_ids, &partitions, &offsets]).await;
        saved.map_err(|error| failure::describe(&error))?;
        Ok(())
    };
    tokio::time::timeout(TIMEOUT, saved).await.map_err(|_| "the database did not answer in time".to_owned())?
}
