//! The store of one lane: a batch becomes rows in one transaction, each message once, with the next `seq` of its inbox.

use std::num::NonZeroUsize;
use std::time::{Duration, SystemTime};

use deadpool_postgres::{Object, Pool, PoolError};
use futures_util::future::try_join_all;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::batch::{Batch, DeadLetter, Row, RowState};
use super::cache::SeqCache;
use super::item::Item;
use super::sql;
use crate::consumer::progress::{Generation, ProgressKeeper};
use crate::failure::{self, Class};
use crate::machine::Epoch;

/// What one batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// New rows.
    pub stored: usize,
    /// Messages that were there already.
    pub duplicates: usize,
    /// Records kept aside.
    pub dead_letters: usize,
}

/// Why a batch is not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection.
    #[error("no connection: {0}")]
    Pool(#[from] PoolError),
    /// A statement failed.
    #[error("{}", failure::describe(.0))]
    Statement(#[from] tokio_postgres::Error),
    /// An assignment of the batch ended before the COMMIT.
    #[error("the partition was given back meanwhile")]
    Fenced,
    /// The database may not be the one any more that the starts were read from.
    #[error("the database may have lost what it had, starting again from what it has")]
    Stale,
    /// Rows were refused as duplicates and are not in the table: somebody deletes at this moment.
    #[error("rows that were there are gone")]
    Vanished,
}

impl StoreError {
    /// What follows from it.
    pub fn class(&self) -> Class {
        match self {
            StoreError::Statement(error) | StoreError::Pool(PoolError::Backend(error)) => failure::classify(error),
            StoreError::Pool(_) | StoreError::Fenced | StoreError::Stale | StoreError::Vanished => Class::Transient,
        }
    }
}

/// A lane's connection and what it knows of the table.
#[derive(Debug)]
pub struct Store {
    pool: Pool,
    progress: ProgressKeeper,
    /// With the generation of the keeper's connection that outlived the making of it.
    connection: Option<(Object, Generation)>,
    cache: SeqCache,
    topic: String,
}

/// A row and the `seq` that it is to have.
struct Placed<'a> {
    row: &'a Row,
    seq: i64,
}

impl Store {
    /// Connects when first used.
    pub fn new(pool: Pool, progress: ProgressKeeper, topic: String, cached_inboxes: NonZeroUsize) -> Self {
        Store { pool, progress, connection: None, cache: SeqCache::new(cached_inboxes), topic }
    }

    /// Stores the batch, or nothing of it. After an error it is not known which: call `reset`, then try again.
    pub async fn store(&mut self, items: &[Item], batch: &mut Batch) -> Result<Outcome, StoreError> {
        let generation = generation_of(items);
        let connection = match self.connection.take().filter(|(_, made_under)| *made_under == generation) {
            Some((connection, _)) => Connection(Some(connection)),
            None => self.connect(generation).await?,
        };
        // Held here meanwhile, and only kept after a success: a connection in an unknown state is never used again.
        let outcome = self.store_on(connection.get(), items, batch).await?;
        self.connection = connection.keep().map(|connection| (connection, generation));
        Ok(outcome)
    }

    /// A new connection to the server that the starts were read from. Another one may lack messages that came before:
    /// stored over it, later ones would pass them.
    async fn connect(&mut self, generation: Generation) -> Result<Connection, StoreError> {
        self.cache.clear();
        let connection = Connection(Some(self.pool.get().await?));
        if !self.progress.is_alive(generation).await {
            return Err(StoreError::Stale);
        }
        Ok(connection)
    }

    /// Forgets what it knew of the table: after an error, what was sent may or may not have been committed.
    pub fn reset(&mut self) {
        self.connection = None;
        self.cache.clear();
    }

    async fn store_on(&mut self, client: &Object, items: &[Item], batch: &mut Batch) -> Result<Outcome, StoreError> {
        loop {
            let placed = self.place(client, items, &batch.rows).await?;
            client.batch_execute(sql::BEGIN).await?;
            if insert_messages(client, items, &placed).await? < placed.len() {
                // Some are there already, and would leave holes in `seq`: without them, again. Each turn finds one at least.
                client.batch_execute("ROLLBACK").await?;
                let rows: Vec<&Row> = placed.iter().map(|placed| placed.row).collect();
                let found = find_stored(client, &rows).await?;
                if found.is_empty() {
                    return Err(StoreError::Vanished);
                }
                settle_states(batch, &found);
                continue;
            }
            let last: Vec<(usize, i64)> = last_of_each_inbox(&placed);
            let stored = placed.len();
            let repeats: Vec<&Row> = batch.rows.iter().filter(|row| row.state == RowState::Repeat).collect();
            if !repeats.is_empty() {
                // In the same transaction: what they repeat is in the table by now.
                let found = find_stored(client, &repeats).await?;
                if found.len() < repeats.len() {
                    return Err(StoreError::Vanished);
                }
                settle_states(batch, &found);
            }
            let dead_letters = batch.dead_letters();
            if !dead_letters.is_empty() {
                insert_dead_letters(client, &self.topic, items, &dead_letters).await?;
            }
            if items.iter().any(|item| item.assignment.is_fenced()) {
                client.batch_execute("ROLLBACK").await?;
                return Err(StoreError::Fenced);
            }
            client.batch_execute("COMMIT").await?;
            // Only now: a cache that runs ahead of the table makes gaps that no key catches.
            for (place, seq) in last {
                let row = &batch.rows[place];
                self.cache.put(&row.record.msg.recv_id, epoch_of(items, row), seq);
            }
            let duplicates = batch.rows.iter().filter(|row| row.state == RowState::Duplicate).count();
            return Ok(Outcome { stored, duplicates, dead_letters: dead_letters.len() });
        }
    }

    /// Gives each new row the next `seq` of its inbox; sorted by inbox and `seq`, as the index wants them.
    async fn place<'a>(
        &mut self,
        client: &Object,
        items: &[Item],
        rows: &'a [Row],
    ) -> Result<Vec<Placed<'a>>, StoreError> {
        let mut new: Vec<&Row> = rows.iter().filter(|row| row.state == RowState::New).collect();
        // Stable: within an inbox the order received stays.
        new.sort_by(|a, b| a.record.msg.recv_id.cmp(&b.record.msg.recv_id));
        let inboxes: Vec<&[&Row]> = new.chunk_by(|a, b| a.record.msg.recv_id == b.record.msg.recv_id).collect();
        let known: Vec<Option<i64>> =
            inboxes.iter().map(|rows| self.cache.get(&rows[0].record.msg.recv_id, epoch_of(items, rows[0]))).collect();
        let unknown = inboxes.iter().zip(&known).filter(|(_, known)| known.is_none());
        let asked: Vec<&str> = unknown.map(|(rows, _)| rows[0].record.msg.recv_id.as_str()).collect();
        let mut answers = last_seqs(client, &asked).await?.into_iter();
        let mut placed = Vec::with_capacity(new.len());
        for (rows, known) in inboxes.iter().zip(known) {
            let last = known.or_else(|| answers.next()).expect("each unknown inbox was asked for");
            placed.extend(rows.iter().zip(last + 1..).map(|(row, seq)| Placed { row, seq }));
        }
        Ok(placed)
    }
}

/// A connection that leaves the pool unless it is kept.
struct Connection(Option<Object>);

impl Connection {
    fn get(&self) -> &Object {
        self.0.as_ref().expect("it is there until it is kept")
    }

    fn keep(mut self) -> Option<Object> {
        self.0.take()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            // Out of the pool, and closed.
            drop(Object::take(object));
        }
    }
}

/// The newest: what is of an older one is fenced by whoever made the newer, or is about to be.
fn generation_of(items: &[Item]) -> Generation {
    items.iter().filter_map(|item| item.assignment.generation()).max().unwrap_or_default()
}

fn epoch_of(items: &[Item], row: &Row) -> Epoch {
    items[row.item].assignment.epoch
}

/// For each inbox, the place in the batch of one of its rows, and its last `seq`.
fn last_of_each_inbox(placed: &[Placed<'_>]) -> Vec<(usize, i64)> {
    let inboxes = placed.chunk_by(|a, b| a.row.record.msg.recv_id == b.row.record.msg.recv_id);
    inboxes.filter_map(|rows| rows.last()).map(|last| (last.row.place, last.seq)).collect()
}

fn settle_states(batch: &mut Batch, found: &[(usize, bool)]) {
    for (place, same) in found {
        batch.rows[*place].state = if *same { RowState::Duplicate } else { RowState::Conflict };
    }
}

/// The last `seq` of each inbox, 0 for an empty one.
async fn last_seqs(client: &Object, inboxes: &[&str]) -> Result<Vec<i64>, StoreError> {
    if inboxes.is_empty() {
        return Ok(Vec::new());
    }
    let statement = client.prepare_cached(sql::LAST_SEQ).await?;
    let statement = &statement;
    // All sent before the first answer is awaited.
    let asked = inboxes.iter().map(|inbox| async move {
        let row = client.query_opt(statement, &[inbox]).await?;
        Ok::<i64, tokio_postgres::Error>(row.map_or(0, |row| row.get(0)))
    });
    Ok(try_join_all(asked).await?)
}

/// What the sender wrote, in columns. Borrowed: a batch can be megabytes.
struct Columns<'a> {
    recv_id: Vec<&'a str>,
    msg_id: Vec<Uuid>,
    send_id: Vec<&'a str>,
    client_msg_id: Vec<&'a str>,
    session_type: Vec<i16>,
    content_type: Vec<&'a str>,
    content: Vec<&'a [u8]>,
    attributes: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn of(rows: impl Iterator<Item = &'a Row> + Clone) -> Self {
        let msgs = rows.clone().map(|row| &row.record.msg);
        Columns {
            recv_id: msgs.clone().map(|msg| msg.recv_id.as_str()).collect(),
            msg_id: rows.clone().map(|row| row.record.msg_id).collect(),
            send_id: msgs.clone().map(|msg| msg.send_id.as_str()).collect(),
            client_msg_id: msgs.clone().map(|msg| msg.client_msg_id.as_str()).collect(),
            session_type: msgs
                .clone()
                .map(|msg| i16::try_from(msg.session_type).expect("checked when decoded"))
                .collect(),
            content_type: msgs.clone().map(|msg| msg.content_type.as_str()).collect(),
            content: msgs.map(|msg| msg.content.as_ref()).collect(),
            attributes: rows.map(|row| row.attributes.as_deref()).collect(),
        }
    }
}

/// How many were inserted.
async fn insert_messages(client: &Object, items: &[Item], placed: &[Placed<'_>]) -> Result<usize, StoreError> {
    if placed.is_empty() {
        return Ok(0);
    }
    let statement = client.prepare_cached(sql::INSERT_MESSAGES).await?;
    let columns = Columns::of(placed.iter().map(|placed| placed.row));
    let item = |placed: &Placed<'_>| &items[placed.row.item];
    let seq: Vec<i64> = placed.iter().map(|placed| placed.seq).collect();
    let send_time: Vec<SystemTime> = placed.iter().map(|placed| time(placed.row.record.send_time_ms)).collect();
    let partition: Vec<i32> = placed.iter().map(|placed| item(placed).partition).collect();
    let offset: Vec<i64> = placed.iter().map(|placed| item(placed).offset.0).collect();
    let parameters: [&(dyn ToSql + Sync); 12] = [
        &columns.recv_id,
        &seq,
        &columns.msg_id,
        &columns.send_id,
        &columns.client_msg_id,
        &columns.session_type,
        &columns.content_type,
        &columns.content,
        &columns.attributes,
        &send_time,
        &partition,
        &offset,
    ];
    let inserted = client.execute(&statement, &parameters).await?;
    Ok(usize::try_from(inserted).expect("no more than were sent"))
}

fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).expect("checked when decoded"))
}

/// Of these rows, the places in the batch of those that are in the table, and whether they are the same there.
async fn find_stored(client: &Object, rows: &[&Row]) -> Result<Vec<(usize, bool)>, StoreError> {
    let statement = client.prepare_cached(sql::FIND_STORED).await?;
    let columns = Columns::of(rows.iter().copied());
    let place: Vec<i32> = rows.iter().map(|row| i32::try_from(row.place).expect("a batch is small")).collect();
    let parameters: [&(dyn ToSql + Sync); 9] = [
        &place,
        &columns.recv_id,
        &columns.msg_id,
        &columns.send_id,
        &columns.client_msg_id,
        &columns.session_type,
        &columns.content_type,
        &columns.content,
        &columns.attributes,
    ];
    let found = client.query(&statement, &parameters).await?;
    let place = |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i32>(0)).expect("it came from a usize");
    Ok(found.iter().map(|row| (place(row), row.get(1))).collect())
}

async fn insert_dead_letters(
    client: &Object,
    topic: &str,
    items: &[Item],
    dead: &[DeadLetter],
) -> Result<(), StoreError> {
    let statement = client.prepare_cached(sql::INSERT_DEAD_LETTERS).await?;
    let item = |dead: &DeadLetter| &items[dead.item];
    let known = "a record is received only after the start is known";
    let topic_id: Vec<Uuid> = dead.iter().map(|dead| item(dead).assignment.topic_id().expect(known)).collect();
    let partition: Vec<i32> = dead.iter().map(|dead| item(dead).partition).collect();
    let offset: Vec<i64> = dead.iter().map(|dead| item(dead).offset.0).collect();
    let recv_id: Vec<Option<&str>> = dead.iter().map(|dead| dead.recv_id.as_deref()).collect();
    let msg_id: Vec<Option<Uuid>> = dead.iter().map(|dead| dead.msg_id).collect();
    let key: Vec<Option<&[u8]>> = dead.iter().map(|dead| item(dead).key.as_deref()).collect();
    let value: Vec<Option<&[u8]>> = dead.iter().map(|dead| item(dead).value.as_deref()).collect();
    let headers: Vec<&[u8]> = dead.iter().map(|dead| item(dead).headers.packed()).collect();
    let reason: Vec<&str> = dead.iter().map(DeadLetter::reason_name).collect();
    let detail: Vec<&str> = dead.iter().map(|dead| dead.detail.as_str()).collect();
    let parameters: [&(dyn ToSql + Sync); 11] =
        [&topic, &topic_id, &partition, &offset, &recv_id, &msg_id, &key, &value, &headers, &reason, &detail];
    client.execute(&statement, &parameters).await?;
    Ok(())
}
