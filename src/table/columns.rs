//! Owns the columns of `messages`, with the source of each column's values, and reads a row as a message. A new field of
//! `Msg` changes this file and no other file in this folder.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql};

use super::{Column, OfRecords, OfRows, Source, SqlType, Values};
use crate::proto::Msg;
use crate::record::Record;

/// The columns of `messages`, in the order in which the statements name them.
pub static COLUMNS: [Column; 13] = [
    sender("recv_id", SqlType::Text, |records| column(records, |record| record.msg.recv_id.as_str())),
    transfer("seq", SqlType::Bigint, |rows| column(rows, |row| row.seq)),
    gateway("msg_id", SqlType::Uuid, |records| column(records, |record| record.msg_id)),
    sender("send_id", SqlType::Text, |records| column(records, |record| record.msg.send_id.as_str())),
    sender("client_msg_id", SqlType::Text, |records| column(records, |record| record.msg.client_msg_id.as_str())),
    sender("session_type", SqlType::Smallint, |records| column(records, session_type)),
    sender("content_type", SqlType::Text, |records| column(records, |record| record.msg.content_type.as_str())),
    sender("content", SqlType::Bytea, |records| column(records, |record| record.msg.content.as_ref())),
    sender("attributes", SqlType::Jsonb, |records| column(records, attributes)),
    gateway("send_time", SqlType::Timestamptz, |records| column(records, send_time)),
    Column { name: "stored_time", sql: SqlType::Timestamptz, source: Source::Database },
    transfer("kafka_partition", SqlType::Integer, |rows| column(rows, |row| row.partition)),
    transfer("kafka_offset", SqlType::Bigint, |rows| column(rows, |row| row.offset)),
];

const fn sender(name: &'static str, sql: SqlType, values: OfRecords) -> Column {
    Column { name, sql, source: Source::Sender(values) }
}

const fn gateway(name: &'static str, sql: SqlType, values: OfRecords) -> Column {
    Column { name, sql, source: Source::Gateway(values) }
}

const fn transfer(name: &'static str, sql: SqlType, values: OfRows) -> Column {
    Column { name, sql, source: Source::Transfer(values) }
}

fn column<'a, R: Copy, T: 'a>(rows: &[R], value: impl Fn(R) -> T) -> Values<'a>
where
    Vec<T>: ToSql + Sync + Send + 'a,
{
    Box::new(rows.iter().map(|row| value(*row)).collect::<Vec<T>>())
}

fn session_type(record: &Record) -> i16 {
    i16::try_from(record.msg.session_type).expect("checked when decoded")
}

/// Returns `None`, which is null in the table, if there are no attributes.
fn attributes(record: &Record) -> Option<String> {
    let attributes = &record.msg.attributes;
    (!attributes.is_empty()).then(|| serde_json::to_string(attributes).expect("strings are JSON"))
}

fn send_time(record: &Record) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(record.send_time_ms).expect("checked when decoded"))
}

/// Reads the message of a row of this inbox. If the statement left out the content, it is empty.
pub fn read_msg(row: &Row, recv_id: &str) -> Result<Msg, ReadError> {
    // Do not write `..` here: it would lose a new field.
    Ok(Msg {
        recv_id: recv_id.to_owned(),
        send_id: get(row, "send_id")?,
        client_msg_id: get(row, "client_msg_id")?,
        session_type: get::<i16>(row, "session_type")?.into(),
        content_type: get(row, "content_type")?,
        content: get::<Option<Vec<u8>>>(row, "content")?.unwrap_or_default().into(),
        attributes: read_attributes(row)?,
    })
}

/// A column whose value cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read column {column}: {detail}")]
pub struct ReadError {
    /// The name of the column in `messages`.
    pub column: &'static str,
    /// The error, without the value.
    pub detail: String,
}

fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &'static str) -> Result<T, ReadError> {
    row.try_get(column).map_err(|error| ReadError { column, detail: error.to_string() })
}

fn read_attributes(row: &Row) -> Result<BTreeMap<String, String>, ReadError> {
    let column = "attributes";
    let Some(json) = get::<Option<&str>>(row, column)? else { return Ok(BTreeMap::new()) };
    // The error's own text would repeat stored content.
    let invalid = |error: serde_json::Error| format!("no map of texts at {}:{}", error.line(), error.column());
    serde_json::from_str(json).map_err(|error| ReadError { column, detail: invalid(error) })
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::proto::DESCRIPTORS;

    #[test]
    fn each_field_of_a_message_has_a_column() {
        let files = FileDescriptorSet::decode(DESCRIPTORS).expect("it was encoded by the build");
        let messages = files.file.iter().flat_map(|file| &file.message_type);
        let msg = messages.clone().find(|message| message.name() == "Msg").expect("it is in the contract");
        let fields: Vec<&str> = msg.field.iter().map(|field| field.name()).collect();
        let columns: Vec<&str> = COLUMNS.iter().filter(|column| column.is_sender()).map(|column| column.name).collect();
        assert_eq!(columns, fields);
    }
}
