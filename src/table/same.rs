//! Decides whether two records with the same ID hold the same message: all fields of `Msg` have to be equal. The
//! transfer compares in SQL, because rows are large and repeats are few. The gateway keeps a hash of the message that
//! a caller waits for, and compares it with the hash of a row.

use prost::Message;
use sha2::{Digest as _, Sha256};
use tokio_postgres::Row;

use super::{COLUMNS, Column, ReadError, Source, Values, arrays, join, name, read_msg, select_msg};
use crate::proto::Msg;
use crate::record::Record;

/// Returns the statement that selects the rows with the IDs of these records, and whether each row holds the same message.
/// Its parameters are the index of each record (`integer[]`) and [`find_stored_values`]; the inboxes are `$2`.
pub fn find_stored_sql() -> String {
    let same = |column: &Column| format!("m.{} IS NOT DISTINCT FROM {}", column.name, column.parameter());
    let same = join(COLUMNS.iter().filter(|column| column.is_sender()), " AND ", same);
    let (names, arrays) = (join(compared(), ", ", name), arrays(compared(), 2));
    format!(
        "SELECT t.idx, {same} AS same FROM unnest($1::integer[], {arrays}) AS t (idx, {names}) \
         JOIN messages m ON m.recv_id = t.recv_id AND m.msg_id = t.msg_id"
    )
}

/// Returns the parameters of [`find_stored_sql`] after the indexes.
pub fn find_stored_values<'a>(records: &[&'a Record]) -> Vec<Values<'a>> {
    let values = |column: &Column| match column.source {
        Source::Sender(of) | Source::Gateway(of) => of(records),
        Source::Transfer(_) | Source::Database => unreachable!("two records of one message differ in it"),
    };
    compared().map(values).collect()
}

/// The columns that two records of the same message have in common.
fn compared() -> impl Iterator<Item = &'static Column> {
    COLUMNS.iter().filter(|column| column.is_sender() || column.name == "msg_id")
}

/// A hash over all fields of `Msg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of a message.
    pub fn of(msg: &Msg) -> Self {
        let content = Sha256::digest(&msg.content).to_vec().into();
        Digest::of_hashed(&Msg { content, ..msg.clone() })
    }

    /// Returns the expressions that select the columns that [`Digest::of_row`] reads. The content is selected as its hash,
    /// because it may be large.
    pub fn select() -> String {
        select_msg("sha256(m.content)")
    }

    /// Returns the digest of the message in a row of this inbox.
    pub fn of_row(row: &Row, recv_id: &str) -> Result<Self, ReadError> {
        Ok(Digest::of_hashed(&read_msg(row, recv_id)?))
    }

    /// Hashes the encoded message, which has all fields. `msg` holds the SHA-256 of its content in place of its content.
    fn of_hashed(msg: &Msg) -> Self {
        Digest(Sha256::digest(msg.encode_to_vec()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_has_a_parameter_for_each_array() {
        let record = Record { msg: Msg::default(), msg_id: uuid::Uuid::nil(), send_time_ms: 0 };
        let (sql, values) = (find_stored_sql(), find_stored_values(&[&record]));
        assert_eq!(sql.matches("[]").count(), 1 + values.len(), "{sql}");
        assert!(sql.contains("unnest($1::integer[], $2::text[], $3::uuid[], "), "the inboxes are $2: {sql}");
        assert!(sql.contains(" AND m.attributes IS NOT DISTINCT FROM t.attributes::jsonb AS same"), "{sql}");
    }

    #[test]
    fn digest_is_of_the_content_and_not_of_its_split_into_fields() {
        let msg = |send_id: &str, client_msg_id: &str| Msg {
            send_id: send_id.into(),
            client_msg_id: client_msg_id.into(),
            ..Msg::default()
        };
        assert_eq!(Digest::of(&msg("a", "b")), Digest::of(&msg("a", "b")));
        assert_ne!(Digest::of(&msg("a", "")), Digest::of(&msg("", "a")));
        let content = Msg { content: b"hello".as_slice().into(), ..Msg::default() };
        assert_ne!(Digest::of(&content), Digest::of(&Msg::default()));
    }
}
