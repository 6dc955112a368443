//! Every question to the table on behalf of those who wait. No inbox is read as a whole: each is one or a few entries of
//! an index.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::try_join_all;
use metrics::{Counter, counter};
use msg_common::proto::{MsgRecord, StoredMsg};
use prost::Message as _;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::metrics::TABLE_LOOKS;
use crate::read::database::{Connection, Database, failure};
use crate::read::max_seqs;
use crate::read::pull::{Query, attributes, get, page, stored_msg};
use crate::status::Failure;

/// What a live session sets: with few rows in a fresh table the planner would rather read all of it, and keep that plan.
pub const SESSION: &str = "SET default_transaction_read_only = on; SET enable_seqscan = off; SET enable_hashjoin = off; \
     SET enable_mergejoin = off";

const PRESENT: &str = "
SELECT t.place, m.stored_time < now() - interval '1 second' AS old
FROM unnest($1::integer[], $2::text[], $3::bigint[]) AS t (place, recv_id, seq)
JOIN messages m ON m.recv_id = t.recv_id AND m.seq = t.seq";

// $1 places, $2 inboxes, $3 their last known seqs, $4 most rows of an inbox, $5 most rows, $6 most bytes.
const AFTER: &str = "
SELECT place, seq, msg_id, send_id, client_msg_id, session_type, content_type, content, attributes, send_time, stored_time,
    found
FROM (
    SELECT page.*, count(*) OVER () AS found, row_number() OVER (ORDER BY place, seq) AS number,
        sum(bytes) OVER (ORDER BY place, seq ROWS UNBOUNDED PRECEDING) AS bytes_so_far
    FROM (
        SELECT t.place, m.seq, m.msg_id, m.send_id, m.client_msg_id, m.session_type, m.content_type, m.send_time,
            m.stored_time, m.content, m.attributes::text AS attributes,
            octet_length(m.recv_id) + octet_length(m.send_id) + octet_length(m.client_msg_id)
                + octet_length(m.content_type) + octet_length(m.content)
                + coalesce(octet_length(m.attributes::text), 0) AS bytes
        FROM unnest($1::integer[], $2::text[], $3::bigint[]) AS t (place, recv_id, seq)
        JOIN messages m ON m.recv_id = t.recv_id AND m.seq > t.seq AND m.seq <= t.seq + $4
        ORDER BY t.place, m.seq
        LIMIT $5
    ) page
) counted
WHERE number = 1 OR bytes_so_far <= $6
ORDER BY place, seq";

const SETTLED: &str = "
SELECT t.place, m.seq, m.stored_time, m.send_time, m.kafka_partition, m.kafka_offset
FROM unnest($1::integer[], $2::text[], $3::uuid[]) AS t (place, recv_id, msg_id)
JOIN messages m ON m.recv_id = t.recv_id AND m.msg_id = t.msg_id";

const CONTENTS: &str = "
SELECT t.place, m.send_id, m.client_msg_id, m.session_type, m.content_type, sha256(m.content) AS content,
    m.attributes::text AS attributes
FROM unnest($1::integer[], $2::text[], $3::uuid[]) AS t (place, recv_id, msg_id)
JOIN messages m ON m.recv_id = t.recv_id AND m.msg_id = t.msg_id";

const DEAD: &str = "
SELECT t.place, d.reason
FROM unnest($1::integer[], $2::text[], $3::uuid[], $4::integer[], $5::bigint[])
     AS t (place, recv_id, msg_id, kafka_partition, kafka_offset)
JOIN dead_letters d ON d.recv_id = t.recv_id AND d.msg_id = t.msg_id
     AND d.kafka_partition = t.kafka_partition AND d.kafka_offset = t.kafka_offset";

/// Of records whose offset is not known: their bytes say which send they are of.
const DEAD_BYTES: &str = "
SELECT t.place, d.reason, d.value
FROM unnest($1::integer[], $2::text[], $3::uuid[], $4::integer[], $5::bigint[])
     AS t (place, recv_id, msg_id, kafka_partition, kafka_offset)
JOIN dead_letters d ON d.recv_id = t.recv_id AND d.msg_id = t.msg_id
     AND d.kafka_partition = t.kafka_partition AND t.kafka_offset IS NULL";

/// Asks the table.
pub struct Looker {
    database: Database,
    asked: Counter,
}

/// A message that is looked for.
#[derive(Clone, Debug)]
pub struct Sought {
    /// Its inbox.
    pub recv_id: String,
    /// Its id.
    pub msg_id: Uuid,
    /// When the gateway accepted it.
    pub send_time: SystemTime,
    /// Where its record is.
    pub partition: i32,
    /// Where in it; `None` if Kafka confirmed the record without its offset.
    pub offset: Option<i64>,
}

/// A row with the id of a message that is looked for.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which one, among those that were asked for.
    pub place: usize,
    /// Its seq.
    pub seq: i64,
    /// When it was stored.
    pub stored_time: SystemTime,
    /// When the gateway took it.
    pub send_time: SystemTime,
    /// Where its record was.
    pub partition: i32,
    /// Where in it.
    pub offset: i64,
}

/// What a row holds, its content only as a hash.
#[derive(Debug)]
pub struct Contents {
    /// Which one, among those that were asked for.
    pub place: usize,
    /// As stored.
    pub send_id: String,
    /// As stored.
    pub client_msg_id: String,
    /// As stored.
    pub session_type: i32,
    /// As stored.
    pub content_type: String,
    /// SHA-256 of the content.
    pub content_hash: Vec<u8>,
    /// As stored; empty where there are none.
    pub attributes: BTreeMap<String, String>,
}

impl Looker {
    /// Asks through connections of its own: whoever waits must not wait for a page of somebody else's.
    pub fn new(database: Database) -> Self {
        Looker { database, asked: counter!(TABLE_LOOKS) }
    }

    /// The last seq of each inbox; 0 where there is none.
    pub async fn last_seqs(&self, recv_ids: &[Arc<str>]) -> Result<Vec<i64>, Failure> {
        let connection = self.connection().await?;
        let asked = async {
            let statement = connection.prepare_cached(max_seqs::LAST).await?;
            try_join_all(recv_ids.iter().map(|recv_id| max_seqs::probe(&connection, &statement, recv_id))).await
        };
        let seqs = asked.await.map_err(|error| failure(&error))?;
        connection.done();
        Ok(seqs)
    }

    /// Which of these are stored: their places in `rows`, and whether that was more than a second ago.
    pub async fn present(&self, rows: &[(Arc<str>, i64)]) -> Result<Vec<(usize, bool)>, Failure> {
        let recv_ids: Vec<&str> = rows.iter().map(|(recv_id, _)| &**recv_id).collect();
        let seqs: Vec<i64> = rows.iter().map(|(_, seq)| *seq).collect();
        let found = self.query(PRESENT, &[&places(rows.len()), &recv_ids, &seqs]).await?;
        found.iter().map(|row| Ok((place(row)?, get(row, "old")?))).collect()
    }

    /// What comes after these in their inboxes, with the place of each: up to `per_inbox` of each, and `bytes` in all, but for
    /// one row. And whether that is not all of it.
    pub async fn after(
        &self,
        inboxes: &[(Arc<str>, i64)],
        per_inbox: i64,
        rows: i64,
        bytes: i64,
    ) -> Result<(Vec<(usize, StoredMsg)>, bool), Failure> {
        let recv_ids: Vec<&str> = inboxes.iter().map(|(recv_id, _)| &**recv_id).collect();
        let seqs: Vec<i64> = inboxes.iter().map(|(_, seq)| *seq).collect();
        let places = places(inboxes.len());
        let found = self.query(AFTER, &[&places, &recv_ids, &seqs, &per_inbox, &rows, &bytes]).await?;
        let read = |row: &Row| {
            let place = place(row)?;
            Ok((place, stored_msg(row, recv_ids[place])?))
        };
        let count: i64 = found.first().map_or(Ok(0), |row| get(row, "found"))?;
        let cut = count >= rows || usize::try_from(count).is_ok_and(|count| count > found.len());
        Ok((found.iter().map(read).collect::<Result<_, _>>()?, cut))
    }

    /// A page of one inbox, and whether there is more.
    pub async fn page(&self, query: &Query, bytes: i64) -> Result<(Vec<StoredMsg>, bool), Failure> {
        let connection = self.connection().await?;
        let page = page(&connection, query, bytes).await?;
        connection.done();
        Ok(page)
    }

    /// The rows of these messages, or of the first ones with their ids.
    pub async fn rows_of(&self, sought: &[Sought]) -> Result<Vec<Found>, Failure> {
        let (recv_ids, msg_ids) = ids(sought);
        let found = self.query(SETTLED, &[&places(sought.len()), &recv_ids, &msg_ids]).await?;
        let read = |row: &Row| {
            Ok(Found {
                place: place(row)?,
                seq: get(row, "seq")?,
                stored_time: get(row, "stored_time")?,
                send_time: get(row, "send_time")?,
                partition: get(row, "kafka_partition")?,
                offset: get(row, "kafka_offset")?,
            })
        };
        found.iter().map(read).collect()
    }

    /// What is stored under the ids of these.
    pub async fn contents_of(&self, sought: &[Sought]) -> Result<Vec<Contents>, Failure> {
        let (recv_ids, msg_ids) = ids(sought);
        let found = self.query(CONTENTS, &[&places(sought.len()), &recv_ids, &msg_ids]).await?;
        let read = |row: &Row| {
            let session_type: i16 = get(row, "session_type")?;
            Ok(Contents {
                place: place(row)?,
                send_id: get(row, "send_id")?,
                client_msg_id: get(row, "client_msg_id")?,
                session_type: session_type.into(),
                content_type: get(row, "content_type")?,
                content_hash: get(row, "content")?,
                attributes: attributes(row)?,
            })
        };
        found.iter().map(read).collect()
    }

    /// Why the records of these were kept aside, where they were.
    pub async fn dead_letters_of(&self, sought: &[Sought]) -> Result<Vec<(usize, String)>, Failure> {
        let (recv_ids, msg_ids) = ids(sought);
        let partitions: Vec<i32> = sought.iter().map(|sought| sought.partition).collect();
        let offsets: Vec<Option<i64>> = sought.iter().map(|sought| sought.offset).collect();
        let asked: [&(dyn ToSql + Sync); 5] = [&places(sought.len()), &recv_ids, &msg_ids, &partitions, &offsets];
        let mut dead = Vec::new();
        for row in self.query(DEAD, &asked).await? {
            dead.push((place(&row)?, get(&row, "reason")?));
        }
        if offsets.iter().all(Option::is_some) {
            return Ok(dead);
        }
        for row in self.query(DEAD_BYTES, &asked).await? {
            let place = place(&row)?;
            if is_of(get(&row, "value")?, sought[place].send_time) {
                dead.push((place, get(&row, "reason")?));
            }
        }
        Ok(dead)
    }

    async fn connection(&self) -> Result<Connection, Failure> {
        self.asked.increment(1);
        self.database.connection().await
    }

    async fn query(&self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Failure> {
        let connection = self.connection().await?;
        let asked = async {
            let statement = connection.prepare_cached(statement).await?;
            connection.query(&statement, parameters).await
        };
        let rows = asked.await.map_err(|error| failure(&error))?;
        connection.done();
        Ok(rows)
    }
}

/// Whether a dead letter's bytes are of the send at `send_time`.
fn is_of(value: Option<&[u8]>, send_time: SystemTime) -> bool {
    let record = value.and_then(|value| MsgRecord::decode(value).ok());
    let sent =
        send_time.duration_since(SystemTime::UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_millis()).ok());
    record.is_some_and(|record| Some(record.send_time_ms) == sent)
}

fn ids(sought: &[Sought]) -> (Vec<&str>, Vec<Uuid>) {
    sought.iter().map(|sought| (sought.recv_id.as_str(), sought.msg_id)).unzip()
}

fn places(count: usize) -> Vec<i32> {
    (0..count).map(|place| i32::try_from(place).expect("a question is short")).collect()
}

fn place(row: &Row) -> Result<usize, Failure> {
    let place: i32 = get(row, "place")?;
    Ok(usize::try_from(place).expect("it came from a usize"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dead_letter_without_offset_matches_by_its_send_time() {
        let value = MsgRecord { send_time_ms: 1_700_000_000_123, ..MsgRecord::default() }.encode_to_vec();
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        assert!(is_of(Some(&value), at(1_700_000_000_123)));
        assert!(!is_of(Some(&value), at(1_700_000_000_124)));
        assert!(!is_of(Some(b"\xff"), at(0)) && !is_of(None, at(0)));
    }
}
