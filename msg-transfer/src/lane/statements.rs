//! Executes the statements of a lane, with their parameters as columns. The parameters borrow from the records, because
//! a batch can have megabytes.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::SinkExt as _;
use futures_util::future::join_all;
use machine::error::ErrorClass;
use machine::lane::{Entry, NumberedEntry, Response};
use msg_common::postgres::Object;
use msg_common::proto::{Msg, SessionType};
use msg_common::record::Record;
use msg_common::table::{self, StoredAt};
use tokio_postgres::Error;
use uuid::Uuid;

use super::decoded::DecodedRecord;
use super::sql::{self, ServerKind};
use crate::db_error;

type Entries = [Entry<DecodedRecord>];

/// Reads the last `seq` of the inbox of each of these entries, 0 for an empty inbox. If only some of them cannot be read
/// (a damaged page of the index), the response names these.
pub(crate) async fn last_seqs(
    client: &Object,
    entries: &Entries,
    wanted: &[usize],
    kind: ServerKind,
) -> Result<Response, Error> {
    let inboxes: Vec<&str> = wanted.iter().map(|index| entries[*index].body.record().msg.recv_id.as_str()).collect();
    if kind == ServerKind::Single {
        match last_seqs_together(client, &inboxes).await {
            Err(error) if db_error::of(&error).class != ErrorClass::Lost => {}
            seqs => return seqs.map(Response::Seqs),
        }
    }
    last_seqs_one_by_one(client, &inboxes, wanted).await
}

/// One statement for a whole batch: most of a statement's cost does not depend on the number of inboxes.
async fn last_seqs_together(client: &Object, inboxes: &[&str]) -> Result<Vec<i64>, Error> {
    let statement = client.prepare_cached(sql::LAST_SEQS).await?;
    let row = client.query_one(&statement, &[&inboxes]).await?;
    row.try_get(0)
}

/// A statement for each inbox: a distributed table needs that, and the result says which inboxes cannot be read.
async fn last_seqs_one_by_one(client: &Object, inboxes: &[&str], wanted: &[usize]) -> Result<Response, Error> {
    let statement = client.prepare_cached(table::LAST_SEQ).await?;
    let statement = &statement;
    // All queries are sent before the first result is awaited.
    let queries = inboxes.iter().map(|inbox| async move {
        let row = client.query_opt(statement, &[inbox]).await?;
        Ok::<i64, Error>(row.map_or(0, |row| row.get(0)))
    });
    let (mut seqs, mut failed) = (Vec::with_capacity(wanted.len()), Vec::new());
    for (index, result) in wanted.iter().zip(join_all(queries).await) {
        match result {
            Ok(seq) => seqs.push(seq),
            Err(error) if db_error::of(&error).class == ErrorClass::Lost => return Err(error),
            Err(error) => failed.push((*index, db_error::of(&error))),
        }
    }
    if failed.is_empty() {
        return Ok(Response::Seqs(seqs));
    }
    if seqs.is_empty() {
        // Without a result, the cause may be the server. Then this query fails, too.
        client.query_opt(statement, &[&canary_inbox()]).await?;
    }
    Ok(Response::FailedFor(failed))
}

/// Returns the name of an inbox that does not exist.
fn canary_inbox() -> String {
    format!("msg-transfer-canary-{}", Uuid::now_v7())
}

/// Counts which of these have their predecessor in the table.
pub(crate) async fn count_predecessors(
    client: &Object,
    entries: &Entries,
    heads: &[NumberedEntry],
    kind: ServerKind,
) -> Result<usize, Error> {
    let statement = match kind {
        ServerKind::Single => sql::COUNT_PRESENT,
        ServerKind::Citus => sql::COUNT_PRESENT_CITUS,
    };
    let statement = client.prepare_cached(statement).await?;
    let inboxes: Vec<&str> = heads.iter().map(|head| entries[head.entry].body.record().msg.recv_id.as_str()).collect();
    let seqs: Vec<i64> = heads.iter().map(|head| head.seq - 1).collect();
    let count: i64 = client.query_one(&statement, &[&inboxes, &seqs]).await?.get(0);
    Ok(usize::try_from(count).expect("a count is not negative"))
}

/// Inserts messages, and returns the number of inserted rows.
pub(crate) async fn insert_messages(
    client: &Object,
    entries: &Entries,
    numbered: &[NumberedEntry],
    kind: ServerKind,
) -> Result<usize, Error> {
    let (records, stored_at) = rows(entries, numbered);
    insert(client, &records, &stored_at, kind).await
}

/// The number of rows that are encoded and sent at a time. The server inserts them while the next ones are encoded, and no
/// second copy of the batch is in memory.
const COPIED_ROWS: usize = 100;

/// Copies messages into the table, and returns the number of inserted rows.
pub(crate) async fn copy_messages(
    client: &Object,
    entries: &Entries,
    numbered: &[NumberedEntry],
) -> Result<usize, Error> {
    let statement = client.prepare_cached(&sql::COPY_MESSAGES).await?;
    let mut copy = pin!(client.copy_in::<_, Bytes>(&statement).await?);
    let mut data = BytesMut::from(table::COPY_HEADER);
    for some in numbered.chunks(COPIED_ROWS) {
        let (records, stored_at) = rows(entries, some);
        table::copy_rows(&records, &stored_at, &mut data);
        copy.as_mut().feed(data.split().freeze()).await?;
    }
    copy.as_mut().feed(Bytes::from_static(table::COPY_TRAILER)).await?;
    let inserted = copy.finish().await?;
    Ok(usize::try_from(inserted).expect("no more than were sent"))
}

/// Returns the messages of these rows, and what the transfer adds to each.
fn rows<'a>(entries: &'a Entries, numbered: &[NumberedEntry]) -> (Vec<&'a Record>, Vec<StoredAt>) {
    let stored_at = |row: &NumberedEntry| {
        let record = &entries[row.entry].body.item.record;
        StoredAt { seq: row.seq, partition: record.partition, offset: record.offset.0 }
    };
    (records(entries, numbered.iter().map(|row| row.entry)), numbered.iter().map(stored_at).collect())
}

/// Inserts the canary row: with the inbox and `seq` of this row, or in an inbox of its own. The caller rolls it back.
pub(crate) async fn insert_canary(
    client: &Object,
    entries: &Entries,
    row: Option<NumberedEntry>,
    kind: ServerKind,
) -> Result<usize, Error> {
    let recv_id = match row {
        Some(row) => entries[row.entry].body.record().msg.recv_id.clone(),
        None => canary_inbox(),
    };
    let msg = Msg {
        recv_id,
        send_id: "msg-transfer".into(),
        session_type: SessionType::Notification.into(),
        content_type: "text/plain".into(),
        ..Msg::default()
    };
    let record = Record { msg, msg_id: Uuid::now_v7(), send_time_ms: 0 };
    let stored_at = StoredAt { seq: row.map_or(1, |row| row.seq), partition: 0, offset: 0 };
    insert(client, &[&record], &[stored_at], kind).await
}

async fn insert(
    client: &Object,
    records: &[&Record],
    stored_at: &[StoredAt],
    kind: ServerKind,
) -> Result<usize, Error> {
    let statement: &str = match kind {
        ServerKind::Single => &sql::INSERT_MESSAGES,
        ServerKind::Citus => &sql::INSERT_MESSAGES_RETURNING,
    };
    let statement = client.prepare_cached(statement).await?;
    let values = table::insert_values(records, stored_at);
    let parameters = table::parameters(&values);
    match kind {
        ServerKind::Single => {
            let inserted = client.execute(&statement, &parameters).await?;
            Ok(usize::try_from(inserted).expect("no more than were sent"))
        }
        ServerKind::Citus => Ok(client.query(&statement, &parameters).await?.len()),
    }
}

fn records(entries: &Entries, indices: impl Iterator<Item = usize>) -> Vec<&Record> {
    indices.map(|index| entries[index].body.record()).collect()
}

/// Finds the rows with the IDs of these entries. Returns the index of each, and whether its row holds the same message.
pub(crate) async fn find_stored(
    client: &Object,
    entries: &Entries,
    wanted: &[usize],
    kind: ServerKind,
) -> Result<Vec<(usize, bool)>, Error> {
    let statement: &str = match kind {
        ServerKind::Single => &sql::FIND_STORED,
        ServerKind::Citus => &sql::FIND_STORED_CITUS,
    };
    let statement = client.prepare_cached(statement).await?;
    let index: Vec<i32> = wanted.iter().map(|index| i32::try_from(*index).expect("a batch is small")).collect();
    let values = table::find_stored_values(&records(entries, wanted.iter().copied()));
    let mut parameters = table::parameters(&values);
    parameters.insert(0, &index);
    let found = client.query(&statement, &parameters).await?;
    let index = |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i32>(0)).expect("it came from a usize");
    Ok(found.iter().map(|row| (index(row), row.get(1))).collect())
}
