//! Owns the columns of `messages`: how each is written and read, and which of them decide whether two records hold the same
//! message. The statements that read or write messages are made from this list.
//!
//! Each field of `Msg`, which is what the sender writes, has a column of its own. Two records with the same ID hold the
//! same message if all of these columns are equal. Everything else in a row may differ from one record to the next: its
//! `seq`, its times and its position in Kafka.

mod columns;
mod copy;
mod read;
mod same;
mod write;

use tokio_postgres::types::ToSql;

use crate::record::Record;

pub use columns::{COLUMNS, ReadError, read_msg};
pub use copy::{COPY_HEADER, COPY_TRAILER, copy_rows, copy_sql};
pub use read::{msg_bytes, msg_names, select_msg};
pub use same::{Digest, find_stored_sql, find_stored_values};
pub use write::{insert_sql, insert_values, parameters};

/// The last `seq` of one inbox. One key per statement, many in flight: `max … GROUP BY` would read a hot inbox as a
/// whole, and a distributed table rejects the statements that query many inboxes at a time.
pub const LAST_SEQ: &str = "SELECT seq FROM messages WHERE recv_id = $1 ORDER BY seq DESC LIMIT 1";

/// A column of `messages`, with its type and the source of its values.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The name of the column. A column of a field of `Msg` has the field's name.
    pub name: &'static str,
    /// The type of the column in PostgreSQL.
    pub sql: SqlType,
    /// Where its values come from.
    pub source: Source,
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "PostgreSQL's own names")]
pub enum SqlType {
    Text,
    Bytea,
    /// `jsonb`, which is sent and read as text.
    Jsonb,
    Uuid,
    Smallint,
    Integer,
    Bigint,
    Timestamptz,
}

/// Where the values of a column come from.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// A field of `Msg`. Two records with the same ID hold the same message if all of these are equal.
    Sender(OfRecords),
    /// The gateway, in the record next to `Msg`.
    Gateway(OfRecords),
    /// The transfer, which numbers the message and knows the position of its record.
    Transfer(OfRows),
    /// The default of the column, which the database computes.
    Database,
}

/// The values of a column for several rows, as one parameter.
pub type Values<'a> = Box<dyn ToSql + Sync + Send + 'a>;

/// Returns the values for these records.
pub type OfRecords = for<'a> fn(&[&'a Record]) -> Values<'a>;

/// Returns the values for these rows.
pub type OfRows = fn(&[StoredAt]) -> Values<'static>;

/// The number of a message in its inbox, and the position of its record.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is named as the word that it means")]
pub struct StoredAt {
    pub seq: i64,
    pub partition: i32,
    pub offset: i64,
}

impl SqlType {
    /// Returns its name in PostgreSQL.
    pub fn name(self) -> &'static str {
        match self {
            SqlType::Text => "text",
            SqlType::Bytea => "bytea",
            SqlType::Jsonb => "jsonb",
            SqlType::Uuid => "uuid",
            SqlType::Smallint => "smallint",
            SqlType::Integer => "integer",
            SqlType::Bigint => "bigint",
            SqlType::Timestamptz => "timestamp with time zone",
        }
    }

    /// Returns the type that it has as a parameter and as a result.
    fn on_the_wire(self) -> SqlType {
        if self == SqlType::Jsonb { SqlType::Text } else { self }
    }
}

impl Column {
    /// Returns the expression for a parameter's value of this column, in the table `t` of parameters.
    fn parameter(&self) -> String {
        let cast = if self.sql.on_the_wire() == self.sql { String::new() } else { format!("::{}", self.sql.name()) };
        format!("t.{}{cast}", self.name)
    }

    fn is_sender(&self) -> bool {
        matches!(self.source, Source::Sender(_))
    }
}

fn join<'a>(columns: impl IntoIterator<Item = &'a Column>, by: &str, text: impl Fn(&Column) -> String) -> String {
    columns.into_iter().map(text).collect::<Vec<_>>().join(by)
}

fn name(column: &Column) -> String {
    column.name.to_owned()
}

/// Returns the arrays of these columns as parameters, from `$first` on.
fn arrays<'a>(columns: impl IntoIterator<Item = &'a Column>, first: usize) -> String {
    let array = |(number, column): (usize, &Column)| format!("${number}::{}[]", column.sql.on_the_wire().name());
    (first..).zip(columns).map(array).collect::<Vec<_>>().join(", ")
}
