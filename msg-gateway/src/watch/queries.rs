//! Every query on behalf of waiters and watchers. None reads a whole inbox: each reads one or a few entries of an
//! index.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{try_join_all, try_join3};
use metrics::{Counter, counter};
use msg_common::config::SettingError;
use msg_common::postgres::{DatabaseOptions, Purpose, TableIdentity};
use msg_common::proto::{MsgRecord, StoredMsg};
use msg_common::table::{self, Digest};
use prost::Message as _;
use tokio::sync::OnceCell;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::budget::{Budget, Permit};
use crate::metrics::WATCH_QUERIES;
use crate::read::database::{Connection, Database, failure};
use crate::read::max_seqs;
use crate::read::pull::{Query, get, page, stored_msg, unreadable};
use crate::status::Failure;
use crate::watch::message_key::MessageKey;

/// The settings of each session. For a small table without statistics, the planner would choose a sequential scan, and the
/// prepared statement would keep that plan. Citus passes settings of a transaction on to its workers' sessions
/// (`propagate_set_commands`); PostgreSQL without Citus accepts that name and ignores it.
pub(crate) const SESSION: &str = "SET default_transaction_read_only = on; SET enable_seqscan = off; SET enable_hashjoin = off; \
     SET enable_mergejoin = off; SET citus.propagate_set_commands = 'local'";

/// The feed reader and the lookups for waiters have one connection each.
pub(crate) const SHARED_TASKS: usize = 2;

/// For how long after a query its table counts as the one that is read. After a failover, hints about the previous
/// primary's table must not be used for longer.
const TABLE_KNOWN_FOR: Duration = Duration::from_secs(10);

/// The settings of each transaction. On Citus the workers plan the query, and only a transaction's settings reach them.
/// Citus passes on the whole text that contains a SET LOCAL, so there each one is sent by itself.
const BEGIN: [&str; 5] = [
    "BEGIN READ ONLY",
    "SET LOCAL enable_seqscan = off",
    "SET LOCAL enable_hashjoin = off",
    "SET LOCAL enable_mergejoin = off",
    "SET LOCAL enable_material = off",
];
/// PostgreSQL without Citus gets them as one text.
static BEGIN_AS_ONE: LazyLock<String> = LazyLock::new(|| BEGIN.join("; "));

/// On Citus, up to this many inboxes are also named in a condition of their own. Then Citus queries only the shards
/// that hold them (measured for one inbox: 1 task instead of 32, 2.7 ms instead of 9.0). Never without Citus:
/// PostgreSQL compares each named inbox with each index entry (1,000 inboxes: 336 ms instead of 4), and before it has
/// statistics it may read a whole inbox by that condition.
const MAX_NAMED_INBOXES: usize = 8;

const PRESENT: &str = "
SELECT t.idx, m.stored_time < now() - interval '1 second' AS old
FROM unnest($1::integer[], $2::text[], $3::bigint[]) AS t (idx, recv_id, seq)
JOIN messages m ON m.recv_id = t.recv_id AND m.seq = t.seq {few}";

// $1 indexes, $2 inboxes, $3 their last known seqs, $4 maximum rows of an inbox, $5 maximum rows, $6 maximum bytes.
static AFTER: LazyLock<String> = LazyLock::new(|| {
    const CONTENT: &str = "m.content";
    let (msg, msg_names, msg_bytes) = (table::select_msg(CONTENT), table::msg_names(), table::msg_bytes(CONTENT));
    format!(
        "
SELECT idx, seq, msg_id, {msg_names}, send_time, stored_time, found
FROM (
    SELECT page.*, count(*) OVER () AS found, row_number() OVER (ORDER BY idx, seq) AS number,
        sum(bytes) OVER (ORDER BY idx, seq ROWS UNBOUNDED PRECEDING) AS bytes_so_far
    FROM (
        SELECT t.idx, m.seq, m.msg_id, {msg}, m.send_time, m.stored_time, {msg_bytes} AS bytes
        FROM unnest($1::integer[], $2::text[], $3::bigint[]) AS t (idx, recv_id, seq)
        JOIN messages m ON m.recv_id = t.recv_id AND m.seq > t.seq AND m.seq <= t.seq + $4 {{few}}
        ORDER BY t.idx, m.seq
        LIMIT $5
    ) page
) counted
WHERE number = 1 OR bytes_so_far <= $6
ORDER BY idx, seq"
    )
});

const ROWS: &str = "
SELECT t.idx, m.seq, m.stored_time, m.send_time, m.kafka_partition, m.kafka_offset
FROM unnest($1::integer[], $2::text[], $3::uuid[]) AS t (idx, recv_id, msg_id)
JOIN messages m ON m.recv_id = t.recv_id AND m.msg_id = t.msg_id {few}";

static DIGESTS: LazyLock<String> = LazyLock::new(|| {
    let msg = Digest::select();
    format!(
        "
SELECT t.idx, {msg}
FROM unnest($1::integer[], $2::text[], $3::uuid[]) AS t (idx, recv_id, msg_id)
JOIN messages m ON m.recv_id = t.recv_id AND m.msg_id = t.msg_id {{few}}"
    )
});

const DEAD: &str = "
SELECT t.idx, d.reason
FROM unnest($1::integer[], $2::text[], $3::uuid[], $4::integer[], $5::bigint[])
     AS t (idx, recv_id, msg_id, kafka_partition, kafka_offset)
JOIN dead_letters d ON d.recv_id = t.recv_id AND d.msg_id = t.msg_id
     AND d.kafka_partition = t.kafka_partition AND d.kafka_offset = t.kafka_offset";

/// Finds the dead letters of records whose offset is not known: the bytes of a dead letter say which send it belongs to.
const DEAD_BYTES: &str = "
SELECT t.idx, d.reason, d.value
FROM unnest($1::integer[], $2::text[], $3::uuid[], $4::integer[], $5::bigint[])
     AS t (idx, recv_id, msg_id, kafka_partition, kafka_offset)
JOIN dead_letters d ON d.recv_id = t.recv_id AND d.msg_id = t.msg_id
     AND d.kafka_partition = t.kafka_partition AND t.kafka_offset IS NULL";

/// The queries of waiters and watchers.
pub(crate) struct WatchQueries {
    /// The connections of the feed reader and the lookups, which never wait for one.
    shared: Database,
    /// The connections of watches that open or catch up.
    catch_up: Database,
    catch_ups: Arc<Budget>,
    /// How long a watch that opens waits for a connection.
    catch_up_timeout: Duration,
    /// Whether the database has the Citus extension, once that is known.
    citus: OnceCell<bool>,
    /// The table that the last query has read, and when.
    table: Mutex<Option<(Instant, TableIdentity)>>,
    queries: Counter,
}

/// A permit to use one of the connections for watches that open or catch up.
pub(crate) struct CatchUpPermit(#[expect(dead_code, reason = "it is held")] pub(crate) Permit);

#[derive(Clone, Debug)]
pub(crate) struct StoredRow {
    pub(crate) index: usize,
    pub(crate) seq: i64,
    pub(crate) stored_time: SystemTime,
    pub(crate) send_time: SystemTime,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

impl WatchQueries {
    /// Creates pools of its own, because a waiter must not wait for a page that another caller reads. Watches that
    /// catch up share `catch_up` connections. Waiters, and watchers that have caught up, use the others.
    pub(crate) fn new(
        options: &DatabaseOptions,
        catch_up: usize,
        catch_ups: Arc<Budget>,
    ) -> Result<Self, SettingError> {
        let database = |connections| Database::new(options, connections, SESSION, Purpose::ReadPrimary);
        Ok(WatchQueries {
            shared: database(SHARED_TASKS)?,
            catch_up: database(catch_up)?,
            catch_ups,
            catch_up_timeout: options.database_connect_timeout,
            citus: OnceCell::new(),
            table: Mutex::default(),
            queries: counter!(WATCH_QUERIES),
        })
    }

    /// Returns the table that the queries read, if one of them has read it within `TABLE_KNOWN_FOR`.
    pub(crate) fn table(&self) -> Option<TableIdentity> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.as_ref().filter(|(when, _)| when.elapsed() < TABLE_KNOWN_FOR).map(|(_, table)| table.clone())
    }

    /// Waits for a connection to read for a watch, without limit. Watches are served in order, and each reads one page
    /// per permit.
    pub(crate) async fn acquire_catch_up(&self) -> CatchUpPermit {
        CatchUpPermit(self.catch_ups.acquire(1).await)
    }

    /// Returns the last `seq` of each inbox, or 0 if it is empty.
    pub(crate) async fn last_seqs(&self, recv_ids: &[Arc<str>]) -> Result<Vec<i64>, Failure> {
        let _permit = self.catch_ups.acquire_by(1, Instant::now() + self.catch_up_timeout).await?;
        let connection = self.connection(&self.catch_up).await?;
        let result = async {
            let statement = connection.prepare_cached(table::LAST_SEQ).await?;
            try_join_all(recv_ids.iter().map(|recv_id| max_seqs::probe(&connection, &statement, recv_id))).await
        };
        let seqs = result.await.map_err(|error| failure(&error))?;
        connection.done();
        Ok(seqs)
    }

    /// Returns the indexes of the given rows that exist, and whether each was stored more than a second ago.
    pub(crate) async fn present(&self, rows: &[(Arc<str>, i64)]) -> Result<Vec<(usize, bool)>, Failure> {
        let recv_ids: Vec<&str> = rows.iter().map(|(recv_id, _)| &**recv_id).collect();
        let seqs: Vec<i64> = rows.iter().map(|(_, seq)| *seq).collect();
        let found = self.query(PRESENT, &recv_ids, &[&all_indexes(rows.len()), &recv_ids, &seqs]).await?;
        found.iter().map(|row| Ok((index(row)?, get(row, "old")?))).collect()
    }

    /// Returns the rows after the given ones, each with the index of its inbox: up to `per_inbox` of each inbox, up to
    /// `rows` and `bytes` in all, and at least one. Also returns whether rows were left out.
    pub(crate) async fn after(
        &self,
        inboxes: &[(Arc<str>, i64)],
        per_inbox: i64,
        rows: i64,
        bytes: i64,
    ) -> Result<(Vec<(usize, StoredMsg)>, bool), Failure> {
        let recv_ids: Vec<&str> = inboxes.iter().map(|(recv_id, _)| &**recv_id).collect();
        let seqs: Vec<i64> = inboxes.iter().map(|(_, seq)| *seq).collect();
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&all_indexes(inboxes.len()), &recv_ids, &seqs, &per_inbox, &rows, &bytes];
        let found = self.query(&AFTER, &recv_ids, &parameters).await?;
        let read = |row: &Row| -> Result<(usize, StoredMsg), Failure> {
            let index = index(row)?;
            Ok((index, stored_msg(row, recv_ids[index])?))
        };
        let count: i64 = found.first().map_or(Ok(0), |row| get(row, "found"))?;
        let cut = count >= rows || usize::try_from(count).is_ok_and(|count| count > found.len());
        Ok((found.iter().map(read).collect::<Result<_, Failure>>()?, cut))
    }

    /// Returns a page of one inbox, and whether there are more rows.
    pub(crate) async fn page(
        &self,
        _: &CatchUpPermit,
        query: &Query,
        bytes: i64,
    ) -> Result<(Vec<StoredMsg>, bool), Failure> {
        let connection = self.connection(&self.catch_up).await?;
        let page = page(&connection, query, bytes).await?;
        connection.done();
        Ok(page)
    }

    /// Returns the rows of these messages, or of other records with the same IDs.
    pub(crate) async fn rows(&self, keys: &[(usize, &MessageKey)]) -> Result<Vec<StoredRow>, Failure> {
        let (recv_ids, msg_ids) = ids(keys);
        let found = self.query(ROWS, &recv_ids, &[&indexes(keys), &recv_ids, &msg_ids]).await?;
        let read = |row: &Row| {
            Ok(StoredRow {
                index: index(row)?,
                seq: get(row, "seq")?,
                stored_time: get(row, "stored_time")?,
                send_time: get(row, "send_time")?,
                partition: get(row, "kafka_partition")?,
                offset: get(row, "kafka_offset")?,
            })
        };
        found.iter().map(read).collect()
    }

    /// Returns the digests of the messages in the rows with these IDs, each with its index.
    pub(crate) async fn digests(&self, keys: &[(usize, &MessageKey)]) -> Result<Vec<(usize, Digest)>, Failure> {
        let (recv_ids, msg_ids) = ids(keys);
        let inboxes: BTreeMap<usize, &str> = keys.iter().map(|(at, key)| (*at, key.recv_id.as_str())).collect();
        let read = |row: &Row| {
            let index = index(row)?;
            Ok((index, Digest::of_row(row, inboxes[&index]).map_err(|error| unreadable(&error))?))
        };
        let found = self.query(&DIGESTS, &recv_ids, &[&indexes(keys), &recv_ids, &msg_ids]).await?;
        found.iter().map(read).collect()
    }

    /// Returns the reasons of the records that were dead-lettered, each with its index.
    pub(crate) async fn dead_letters(&self, keys: &[(usize, &MessageKey)]) -> Result<Vec<(usize, String)>, Failure> {
        let (recv_ids, msg_ids) = ids(keys);
        let partitions: Vec<i32> = keys.iter().map(|(_, key)| key.partition).collect();
        let offsets: Vec<Option<i64>> = keys.iter().map(|(_, key)| key.offset).collect();
        let parameters: [&(dyn ToSql + Sync); 5] = [&indexes(keys), &recv_ids, &msg_ids, &partitions, &offsets];
        let mut dead = Vec::new();
        for row in self.query(DEAD, &recv_ids, &parameters).await? {
            dead.push((index(&row)?, get(&row, "reason")?));
        }
        if offsets.iter().all(Option::is_some) {
            return Ok(dead);
        }
        let send_times: BTreeMap<usize, i64> = keys.iter().map(|(at, key)| (*at, key.send_time_ms())).collect();
        for row in self.query(DEAD_BYTES, &recv_ids, &parameters).await? {
            let index = index(&row)?;
            if is_of(get(&row, "value")?, send_times[&index]) {
                dead.push((index, get(&row, "reason")?));
            }
        }
        Ok(dead)
    }

    async fn connection(&self, database: &Database) -> Result<Connection, Failure> {
        self.queries.increment(1);
        database.connection().await
    }

    async fn query(
        &self,
        statement: &str,
        recv_ids: &[&str],
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let connection = self.connection(&self.shared).await?;
        let started = Instant::now();
        let is_citus = self.citus.get_or_try_init(|| is_citus(&connection)).await.map_err(|error| failure(&error))?;
        let few = few(recv_ids).filter(|_| *is_citus && statement.contains("{few}"));
        let condition =
            few.as_ref().map_or(String::new(), |_| format!("AND m.recv_id = ANY(${})", parameters.len() + 1));
        let statement = statement.replace("{few}", &condition);
        let mut parameters = parameters.to_vec();
        parameters.extend(few.as_ref().map(|few| few as &(dyn ToSql + Sync)));
        let result = async {
            let statement = connection.prepare_cached(&statement).await?;
            // The statements are sent without waiting for one another, so the settings need no round trip of their
            // own.
            let whole = [BEGIN_AS_ONE.as_str()];
            let parts = if *is_citus { &BEGIN[..] } else { &whole[..] };
            let begin = try_join_all(parts.iter().map(|part| connection.batch_execute(part)));
            let (query, commit) = (connection.query(&statement, &parameters), connection.batch_execute("COMMIT"));
            let (_, rows, _) = try_join3(begin, query, commit).await?;
            Ok(rows)
        };
        let rows = result.await.map_err(|error: tokio_postgres::Error| failure(&error))?;
        let table = connection.server().table().map(|table| (started, table));
        *self.table.lock().unwrap_or_else(PoisonError::into_inner) = table;
        connection.done();
        Ok(rows)
    }
}

/// Returns whether the bytes of a dead letter belong to the send at this time.
fn is_of(value: Option<&[u8]>, send_time_ms: i64) -> bool {
    let record = value.and_then(|value| MsgRecord::decode(value).ok());
    record.is_some_and(|record| record.send_time_ms == send_time_ms)
}

async fn is_citus(connection: &Connection) -> Result<bool, tokio_postgres::Error> {
    let row = connection.query_one("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')", &[]).await?;
    row.try_get(0)
}

/// Returns the distinct inboxes, or `None` if they are more than `MAX_NAMED_INBOXES`.
fn few<'a>(recv_ids: &[&'a str]) -> Option<Vec<&'a str>> {
    let mut few: Vec<&str> = Vec::with_capacity(MAX_NAMED_INBOXES);
    for recv_id in recv_ids {
        if few.contains(recv_id) {
            continue;
        }
        if few.len() == MAX_NAMED_INBOXES {
            return None;
        }
        few.push(recv_id);
    }
    Some(few)
}

fn ids<'a>(keys: &[(usize, &'a MessageKey)]) -> (Vec<&'a str>, Vec<Uuid>) {
    keys.iter().map(|(_, key)| (key.recv_id.as_str(), key.msg_id)).unzip()
}

fn indexes(keys: &[(usize, &MessageKey)]) -> Vec<i32> {
    keys.iter().map(|(index, _)| i32::try_from(*index).expect("a question is short")).collect()
}

fn all_indexes(count: usize) -> Vec<i32> {
    (0..count).map(|index| i32::try_from(index).expect("a question is short")).collect()
}

fn index(row: &Row) -> Result<usize, Failure> {
    let index: i32 = get(row, "idx")?;
    Ok(usize::try_from(index).expect("it came from a usize"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letter_without_offset_matches_by_its_send_time() {
        let value = MsgRecord { send_time_ms: 1_700_000_000_123, ..MsgRecord::default() }.encode_to_vec();
        assert!(is_of(Some(&value), 1_700_000_000_123));
        assert!(!is_of(Some(&value), 1_700_000_000_124));
        assert!(!is_of(Some(b"\xff"), 0) && !is_of(None, 0));
    }

    #[test]
    fn few_inboxes_are_named_once_and_many_are_not_named() {
        assert_eq!(few(&["a", "b", "a", "c", "b"]), Some(vec!["a", "b", "c"]));
        let many: Vec<String> = (0..=MAX_NAMED_INBOXES).map(|i| i.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(few(&many[..MAX_NAMED_INBOXES]).map(|few| few.len()), Some(MAX_NAMED_INBOXES));
        assert_eq!(few(&many), None);
        assert_eq!(few(&["hot"; 1000]), Some(vec!["hot"]));
    }
}
