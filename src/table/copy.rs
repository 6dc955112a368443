//! Writes rows of `messages` with COPY in its binary form. For each row, COPY needs the number of columns, and for each
//! column its length and its bytes. The elements of a binary array have the same form, so the rows are made from the
//! arrays of [`insert_values`], column by column.

use bytes::{Buf, BufMut, BytesMut};
use tokio_postgres::types::Type;

use super::write::written;
use super::{SqlType, StoredAt, Values, insert_values, join, name};
use crate::record::Record;

/// The first bytes of the data: the signature, no flags, and no extension of the header.
pub const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The last bytes of the data, in place of a number of columns.
pub const COPY_TRAILER: &[u8] = &(-1_i16).to_be_bytes();

/// The bytes of an array before its first element: the number of dimensions, whether there are nulls, the type, and the
/// size and the lower bound of the only dimension.
const ARRAY_HEADER: usize = 20;
/// The version that precedes the text of a `jsonb`.
const JSONB_VERSION: u8 = 1;
/// The length that stands for null.
const NULL: i32 = -1;

/// Returns the statement that copies rows. It fails if the message or the `seq` of one is in the table.
pub fn copy_sql() -> String {
    format!("COPY messages ({}) FROM STDIN BINARY", join(written(), ", ", name))
}

/// Appends one row for each record.
pub fn copy_rows(records: &[&Record], rows: &[StoredAt], data: &mut BytesMut) {
    if records.is_empty() {
        return;
    }
    let encode = |(values, sql): (&Values<'_>, SqlType)| {
        let mut array = BytesMut::new();
        values.to_sql_checked(&array_type(sql), &mut array).expect("a batch is far smaller than 2 GiB");
        array.advance(ARRAY_HEADER);
        array
    };
    let values = insert_values(records, rows);
    let mut columns: Vec<(SqlType, BytesMut)> =
        values.iter().zip(written()).map(|(values, column)| (column.sql, encode((values, column.sql)))).collect();
    data.reserve(columns.iter().map(|(_, array)| array.len()).sum::<usize>() + 3 * records.len());
    for _ in records {
        data.put_i16(i16::try_from(columns.len()).expect("few"));
        for (sql, elements) in &mut columns {
            move_element(*sql, elements, data);
        }
    }
}

/// Moves the next element of an array to the end of the data.
fn move_element(sql: SqlType, elements: &mut BytesMut, data: &mut BytesMut) {
    let length = elements.get_i32();
    let Ok(bytes) = usize::try_from(length) else {
        data.put_i32(NULL);
        return;
    };
    if sql == SqlType::Jsonb {
        data.put_i32(length + 1);
        data.put_u8(JSONB_VERSION);
    } else {
        data.put_i32(length);
    }
    data.put_slice(&elements[..bytes]);
    elements.advance(bytes);
}

/// Returns the type of an array of values as they are on the wire.
fn array_type(sql: SqlType) -> Type {
    match sql.on_the_wire() {
        SqlType::Text | SqlType::Jsonb => Type::TEXT_ARRAY,
        SqlType::Bytea => Type::BYTEA_ARRAY,
        SqlType::Uuid => Type::UUID_ARRAY,
        SqlType::Smallint => Type::INT2_ARRAY,
        SqlType::Integer => Type::INT4_ARRAY,
        SqlType::Bigint => Type::INT8_ARRAY,
        SqlType::Timestamptz => Type::TIMESTAMPTZ_ARRAY,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::proto::Msg;

    /// Returns the values of the next row.
    fn row(data: &mut &[u8]) -> Vec<Option<Vec<u8>>> {
        let columns = data.get_i16();
        let value = |data: &mut &[u8]| {
            let bytes = usize::try_from(data.get_i32()).ok()?;
            let (value, rest) = data.split_at(bytes);
            *data = rest;
            Some(value.to_vec())
        };
        (0..columns).map(|_| value(data)).collect()
    }

    #[test]
    fn copied_row_has_each_column_in_its_binary_form() {
        let with = |recv_id: &str, key: Option<&str>| Record {
            msg: Msg {
                recv_id: recv_id.into(),
                send_id: "alice".into(),
                session_type: 2,
                content: b"hello".as_slice().into(),
                attributes: key.map(|key| (key.to_owned(), "v".to_owned())).into_iter().collect(),
                ..Msg::default()
            },
            msg_id: Uuid::from_u128(7),
            send_time_ms: 946_684_800_001,
        };
        let records = [with("bob", None), with("", Some("k"))];
        let at = |seq| StoredAt { seq, partition: 3, offset: 4 };
        let mut data = BytesMut::new();
        copy_rows(&[&records[0], &records[1]], &[at(1), at(2)], &mut data);
        copy_rows(&[], &[], &mut data);
        let mut rest: &[u8] = &data;
        let first = row(&mut rest);
        let names: Vec<&str> = written().map(|column| column.name).collect();
        let value = |row: &[Option<Vec<u8>>], name: &str| {
            row[names.iter().position(|other| *other == name).expect("it is a column")].clone()
        };
        assert_eq!(first.len(), names.len());
        assert_eq!(value(&first, "recv_id"), Some(b"bob".to_vec()));
        assert_eq!(value(&first, "seq"), Some(1_i64.to_be_bytes().to_vec()));
        assert_eq!(value(&first, "msg_id"), Some(7_u128.to_be_bytes().to_vec()));
        assert_eq!(value(&first, "client_msg_id"), Some(Vec::new()));
        assert_eq!(value(&first, "session_type"), Some(2_i16.to_be_bytes().to_vec()));
        assert_eq!(value(&first, "content"), Some(b"hello".to_vec()));
        assert_eq!(value(&first, "attributes"), None);
        assert_eq!(value(&first, "send_time"), Some(1000_i64.to_be_bytes().to_vec()), "microseconds since 2000");
        assert_eq!(value(&first, "kafka_partition"), Some(3_i32.to_be_bytes().to_vec()));
        assert_eq!(value(&first, "kafka_offset"), Some(4_i64.to_be_bytes().to_vec()));
        let second = row(&mut rest);
        assert_eq!(value(&second, "recv_id"), Some(Vec::new()));
        assert_eq!(value(&second, "attributes"), Some(b"\x01{\"k\":\"v\"}".to_vec()));
        assert_eq!(value(&second, "seq"), Some(2_i64.to_be_bytes().to_vec()));
        assert_eq!(rest, b"", "there is nothing else");
    }

    #[test]
    fn copy_statement_names_each_column() {
        let sql = copy_sql();
        assert!(sql.starts_with("COPY messages (recv_id, seq, msg_id, "), "{sql}");
        assert!(sql.ends_with(", kafka_offset) FROM STDIN BINARY") && !sql.contains("stored_time"), "{sql}");
    }
}
