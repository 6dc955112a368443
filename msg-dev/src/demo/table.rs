//! Owns the reading of the database: all rows, all dead letters, and how far each partition is stored.

use std::collections::BTreeMap;
use std::time::SystemTime;

use futures_util::TryStreamExt;
use msg_common::record;
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
    pub(crate) recv_id: String,
    pub(crate) seq: i64,
    pub(crate) msg_id: Uuid,
    pub(crate) send_id: String,
    pub(crate) client_msg_id: String,
    pub(crate) session_type: i16,
    pub(crate) content_type: String,
    pub(crate) content: Vec<u8>,
    pub(crate) attributes: BTreeMap<String, String>,
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
    const ALL: &str = "
        SELECT recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content, attributes::text,
               send_time, stored_time, kafka_partition, kafka_offset
        FROM messages";
    let answer = database.query_raw(ALL, [] as [i32; 0]).await?;
    let mut answer = std::pin::pin!(answer);
    let mut rows = Vec::new();
    while let Some(row) = answer.try_next().await? {
        let attributes = match row.get::<_, Option<&str>>(8) {
            Some(json) => serde_json::from_str(json)
                .map_err(|error| DemoError::Answer(format!("a row's attributes are no object of strings: {error}")))?,
            None => BTreeMap::new(),
        };
        rows.push(Row {
            recv_id: row.get(0),
            seq: row.get(1),
            msg_id: row.get(2),
            send_id: row.get(3),
            client_msg_id: row.get(4),
            session_type: row.get(5),
            content_type: row.get(6),
            content: row.get(7),
            attributes,
            send_time: row.get(9),
            stored_time: row.get(10),
            place: Place { partition: row.get(11), offset: row.get(12) },
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
