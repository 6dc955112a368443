//! The progress rows: how far each partition is stored, said by the database itself, and read again at each start.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use msg_common::partition::Partition;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::failure;
use crate::lane::sql;
use crate::machine::offset::NextOffset;

/// How long one statement may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One of the keeper's connections; a later one has a higher number.
pub type Generation = u64;

/// Reads and writes the rows, on one connection at a time.
///
/// A database that fails over, or is put back to an earlier point, may lose rows whose COMMIT was answered; it breaks
/// every connection then. While the connection lives that a start was read over, the server is the same, and what was
/// stored since is there. Once it is gone, starts have to be read again before anything more is stored or committed. (A
/// pooler between us and the server would hide that.)
#[derive(Clone, Debug)]
pub struct ProgressKeeper {
    pool: Pool,
    connection: Arc<Mutex<Connection>>,
}

#[derive(Debug, Default)]
struct Connection {
    client: Option<Object>,
    generation: Generation,
    /// It went while a start was read, and those that were read before have not been told.
    lost: bool,
}

impl Connection {
    async fn check(&mut self) -> bool {
        let Some(client) = self.client.take() else { return false };
        match keep_if_ok(client, async |client| client.simple_query("").await).await {
            Ok((client, _)) => self.client = Some(client),
            Err(error) => tracing::warn!(error, "the connection that the starts were read over is gone"),
        }
        self.client.is_some()
    }
}

/// How far a partition is stored.
#[derive(Clone, Copy, Debug)]
pub struct ProgressRow {
    /// Of which topic.
    pub topic_id: Uuid,
    /// Which one.
    pub partition: Partition,
    /// Everything below is stored.
    pub next: NextOffset,
    /// Over which connection its start was read.
    pub generation: Generation,
}

impl ProgressKeeper {
    /// Connects when first asked.
    pub fn new(pool: Pool) -> Self {
        ProgressKeeper { pool, connection: Arc::default() }
    }

    /// The rows of these partitions, and the connection that they were read over.
    pub async fn load(
        &self,
        topic_id: Uuid,
        partitions: &[Partition],
    ) -> Result<(Generation, Vec<(Partition, NextOffset)>), String> {
        let mut connection = self.connection.lock().await;
        let client = match connection.client.take() {
            Some(client) => client,
            None => {
                let client = self.pool.get().await.map_err(|error| error.to_string())?;
                connection.generation += 1;
                client
            }
        };
        connection.lost = true;
        let (client, rows) = keep_if_ok(client, async |client| {
            let statement = client.prepare_cached(sql::LOAD_PROGRESS).await?;
            client.query(&statement, &[&topic_id, &partitions]).await
        })
        .await?;
        connection.lost = false;
        connection.client = Some(client);
        let rows = rows.iter().map(|row| (row.get(0), NextOffset(row.get(1)))).collect();
        Ok((connection.generation, rows))
    }

    /// Whether the connection of this generation still lives, and with it what was stored since starts were read over it.
    pub async fn is_alive(&self, generation: Generation) -> bool {
        let mut connection = self.connection.lock().await;
        connection.generation == generation && connection.check().await
    }

    /// Looks at the connection. False when there was one and it is gone: starts have to be read again.
    pub async fn check(&self) -> bool {
        let mut connection = self.connection.lock().await;
        match connection.client {
            Some(_) => connection.check().await,
            None => !std::mem::take(&mut connection.lost),
        }
    }

    /// Writes the rows in one statement. An error means that starts have to be read again.
    pub async fn save(&self, rows: &[ProgressRow]) -> Result<(), String> {
        let mut connection = self.connection.lock().await;
        if rows.iter().any(|row| row.generation != connection.generation) {
            return Err("the connection that the starts were read over is gone".to_owned());
        }
        let client = connection.client.take().ok_or("the connection that the starts were read over is gone")?;
        let topic_ids: Vec<Uuid> = rows.iter().map(|row| row.topic_id).collect();
        let partitions: Vec<Partition> = rows.iter().map(|row| row.partition).collect();
        let offsets: Vec<i64> = rows.iter().map(|row| row.next.0).collect();
        let (client, _) = keep_if_ok(client, async |client| {
            let statement = client.prepare_cached(sql::SAVE_PROGRESS).await?;
            client.execute(&statement, &[&topic_ids, &partitions, &offsets]).await
        })
        .await?;
        connection.client = Some(client);
        Ok(())
    }
}

/// Gives the connection back with the answer; after an error, or none in time, it is closed and leaves the pool.
async fn keep_if_ok<T>(
    client: Object,
    ask: impl AsyncFnOnce(&Object) -> Result<T, tokio_postgres::Error>,
) -> Result<(Object, T), String> {
    let error = match tokio::time::timeout(TIMEOUT, ask(&client)).await {
        Ok(Ok(answer)) => return Ok((client, answer)),
        Ok(Err(error)) => failure::describe(&error),
        Err(_) => "the database did not answer in time".to_owned(),
    };
    drop(Object::take(client));
    Err(error)
}
