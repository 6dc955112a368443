//! Owns the reading of the database: all rows, all dead letters, and how far each partition is stored.

use std::time::SystemTime;

use futures_util::TryStreamExt;
use msg_common::proto::Msg;
use msg_common::{record, table};
use tokio_postgres::Client;
use uuid::Uuid;

use super::error::DemoError;
use super::send::Place;

/// What the transfer left.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    /// Every row of `messages`.
    pub(crate) rows: Vec<Row>,
    /// Every row of `dead_letters`.
    pub(crate) dead_letters: Vec<DeadLetter>,
}

/// A row of `messages`.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) msg: Msg,
    pub(crate) seq: i64,
    pub(crate) msg_id: Uuid,
    pub(crate) send_time: SystemTime,
    pub(crate) stored_time: SystemTime,
    pub(crate) place: Place,
}

/// A row of `dead_letters`.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetter {
    pub(crate) place: Place,
    pub(crate) msg_id: Option<Uuid>,
    pub(crate) reason: String,
    pub(crate) first_seen: SystemTime,
    /// The message's content, if its record can be read.
    pub(crate) content: Option<Vec<u8>>,
}

/// Reads all of it.
pub(crate) async fn read(database: &Client) -> Result<Table, DemoError> {
    Ok(Table { rows: read_rows(database).await?, dead_letters: read_dead_letters(database).await? })
}

async fn read_rows(database: &Client) -> Result<Vec<Row>, DemoError> {
    let all = format!(
        "SELECT m.recv_id, m.seq, m.msg_id, m.send_time, m.stored_time, m.kafka_partition, m.kafka_offset, {} \
         FROM messages m",
        table::select_msg("m.content")
    );
    let answer = database.query_raw(&all, [] as [i32; 0]).await?;
    let mut answer = std::pin::pin!(answer);
    let mut rows = Vec::new();
    while let Some(row) = answer.try_next().await? {
        let msg = table::read_msg(&row, row.get(0)).map_err(|error| DemoError::Answer(error.to_string()))?;
        rows.push(Row {
            msg,
            seq: row.get(1),
            msg_id: row.get(2),
            send_time: row.get(3),
            stored_time: row.get(4),
            place: Place { partition: row.get(5), offset: row.get(6) },
        });
    }
    Ok(rows)
}

async fn read_dead_letters(database: &Client) -> Result<Vec<DeadLetter>, DemoError> {
    const ALL: &str = "SELECT kafka_partition, kafka_offset, msg_id, reason, first_seen, key, value FROM dead_letters";
    let answer = database.query(ALL, &[]).await?;
    let letters = answer.iter().map(|row| {
        let (key, value): (Option<&[u8]>, Option<Vec<u8>>) = (row.get(5), row.get(6));
        let version = record::VERSION.to_string();
        let decoded = record::decode(key, Some(version.as_bytes()), value.map(Into::into));
        DeadLetter {
            place: Place { partition: row.get(0), offset: row.get(1) },
            msg_id: row.get(2),
            reason: row.get(3),
            first_seen: row.get(4),
            content: decoded.ok().map(|record| record.msg.content.into()),
        }
    });
    Ok(letters.collect())
}

/// The next offset to store of each partition; 0 where there is no row.
pub(crate) async fn progress(database: &Client, partitions: usize) -> Result<Vec<i64>, DemoError> {
    let mut next = vec![0; partitions];
    for row in database.query("SELECT kafka_partition, next_offset FROM progress", &[]).await? {
        let slot = usize::try_from(row.get::<_, i32>(0)).ok().and_then(|partition| next.get_mut(partition));
        if let Some(slot) = slot {
            *slot = row.get(1);
        }
    }
    Ok(next)
}
