//! The statements of a lane, each with its parameters as columns. Borrowed: a batch can be megabytes.

use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use machine::lane::{Entry, NumberedEntry};
use msg_common::postgres::Object;
use msg_common::proto::{Msg, SessionType};
use msg_common::record::Record;
use tokio_postgres::Error;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::decoded::DecodedRecord;
use super::sql::{self, ServerKind};

type Entries = [Entry<DecodedRecord>];

/// The last `seq` of the inbox of each of these, 0 for an empty one.
pub async fn last_seqs(client: &Object, entries: &Entries, asked: &[usize]) -> Result<Vec<i64>, Error> {
    let statement = client.prepare_cached(sql::LAST_SEQ).await?;
    let statement = &statement;
    // All sent before the first answer is awaited.
    let asked = asked.iter().map(|index| async move {
        let row = client.query_opt(statement, &[&entries[*index].body.record().msg.recv_id]).await?;
        Ok::<i64, Error>(row.map_or(0, |row| row.get(0)))
    });
    try_join_all(asked).await
}

/// How many of these have their predecessor in the table.
pub async fn count_predecessors(
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

/// What the sender wrote, in columns.
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
    fn of(messages: impl Iterator<Item = (&'a Record, Option<&'a str>)> + Clone) -> Self {
        let records = messages.clone().map(|(record, _)| record);
        let msgs = records.clone().map(|record| &record.msg);
        Columns {
            recv_id: msgs.clone().map(|msg| msg.recv_id.as_str()).collect(),
            msg_id: records.map(|record| record.msg_id).collect(),
            send_id: msgs.clone().map(|msg| msg.send_id.as_str()).collect(),
            client_msg_id: msgs.clone().map(|msg| msg.client_msg_id.as_str()).collect(),
            session_type: msgs
                .clone()
                .map(|msg| i16::try_from(msg.session_type).expect("checked when decoded"))
                .collect(),
            content_type: msgs.clone().map(|msg| msg.content_type.as_str()).collect(),
            content: msgs.map(|msg| msg.content.as_ref()).collect(),
            attributes: messages.map(|(_, attributes)| attributes).collect(),
        }
    }

    fn of_entries(entries: &'a Entries, indices: impl Iterator<Item = usize> + Clone) -> Self {
        Columns::of(indices.map(|index| (entries[index].body.record(), entries[index].body.attributes())))
    }
}

/// How many were inserted.
pub async fn insert_messages(
    client: &Object,
    entries: &Entries,
    numbered: &[NumberedEntry],
    kind: ServerKind,
) -> Result<usize, Error> {
    let columns = Columns::of_entries(entries, numbered.iter().map(|row| row.entry));
    let item = |row: &NumberedEntry| &entries[row.entry].body.item;
    let time = |row: &NumberedEntry| time(entries[row.entry].body.record().send_time_ms);
    let stored = StoredColumns {
        seq: numbered.iter().map(|row| row.seq).collect(),
        send_time: numbered.iter().map(time).collect(),
        partition: numbered.iter().map(|row| item(row).partition).collect(),
        offset: numbered.iter().map(|row| item(row).offset.0).collect(),
    };
    insert(client, &columns, &stored, kind).await
}

/// A row that nothing is wrong with, to be rolled back: in an inbox that is nobody's, or in the inbox and in place of this
/// one.
pub async fn insert_canary(
    client: &Object,
    entries: &Entries,
    beside: Option<NumberedEntry>,
    kind: ServerKind,
) -> Result<usize, Error> {
    let recv_id = match beside {
        Some(row) => entries[row.entry].body.record().msg.recv_id.clone(),
        None => format!("msg-transfer-canary-{}", Uuid::now_v7()),
    };
    let msg = Msg {
        recv_id,
        send_id: "msg-transfer".into(),
        session_type: SessionType::Notification.into(),
        content_type: "text/plain".into(),
        ..Msg::default()
    };
    let record = Record { msg, msg_id: Uuid::now_v7(), send_time_ms: 0 };
    let seq = vec![beside.map_or(1, |row| row.seq)];
    let stored = StoredColumns { seq, send_time: vec![SystemTime::UNIX_EPOCH], partition: vec![0], offset: vec![0] };
    insert(client, &Columns::of(std::iter::once((&record, None))), &stored, kind).await
}

struct StoredColumns {
    seq: Vec<i64>,
    send_time: Vec<SystemTime>,
    partition: Vec<i32>,
    offset: Vec<i64>,
}

async fn insert(
    client: &Object,
    columns: &Columns<'_>,
    stored: &StoredColumns,
    kind: ServerKind,
) -> Result<usize, Error> {
    let statement = match kind {
        ServerKind::Single => sql::INSERT_MESSAGES,
        ServerKind::Citus => sql::INSERT_MESSAGES_RETURNING,
    };
    let statement = client.prepare_cached(statement).await?;
    let parameters: [&(dyn ToSql + Sync); 12] = [
        &columns.recv_id,
        &stored.seq,
        &columns.msg_id,
        &columns.send_id,
        &columns.client_msg_id,
        &columns.session_type,
        &columns.content_type,
        &columns.content,
        &columns.attributes,
        &stored.send_time,
        &stored.partition,
        &stored.offset,
    ];
    match kind {
        ServerKind::Single => {
            let inserted = client.execute(&statement, &parameters).await?;
            Ok(usize::try_from(inserted).expect("no more than were sent"))
        }
        ServerKind::Citus => Ok(client.query(&statement, &parameters).await?.len()),
    }
}

fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).expect("checked when decoded"))
}

/// Which of these are in the table, and whether they are the same there.
pub async fn find_stored(
    client: &Object,
    entries: &Entries,
    asked: &[usize],
    kind: ServerKind,
) -> Result<Vec<(usize, bool)>, Error> {
    let statement = match kind {
        ServerKind::Single => sql::FIND_STORED,
        ServerKind::Citus => sql::FIND_STORED_CITUS,
    };
    let statement = client.prepare_cached(statement).await?;
    let columns = Columns::of_entries(entries, asked.iter().copied());
    let index: Vec<i32> = asked.iter().map(|index| i32::try_from(*index).expect("a batch is small")).collect();
    let parameters: [&(dyn ToSql + Sync); 9] = [
        &index,
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
    let index = |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i32>(0)).expect("it came from a usize");
    Ok(found.iter().map(|row| (index(row), row.get(1))).collect())
}
