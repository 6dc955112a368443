//! Writes rows of `messages`: one statement for a batch, with one array for each column.

use tokio_postgres::types::ToSql;

use super::{COLUMNS, Column, Source, StoredAt, Values, arrays, join, name};
use crate::record::Record;

/// Returns the statement that inserts rows and skips those whose message is stored. Its parameters are
/// [`insert_values`].
///
/// The statement must name the conflict target. Without it, a row with a `seq` that exists would be skipped too, and its
/// message would be lost.
pub fn insert_sql() -> String {
    let (names, values) = (join(written(), ", ", name), join(written(), ", ", Column::parameter));
    let arrays = arrays(written(), 1);
    format!(
        "INSERT INTO messages ({names}) SELECT {values} FROM unnest({arrays}) AS t ({names}) \
         ON CONFLICT (recv_id, msg_id) DO NOTHING"
    )
}

/// Returns the parameters of [`insert_sql`], with one row for each record.
pub fn insert_values<'a>(records: &[&'a Record], rows: &[StoredAt]) -> Vec<Values<'a>> {
    let values = |column: &Column| match column.source {
        Source::Sender(of) | Source::Gateway(of) => Some(of(records)),
        Source::Transfer(of) => Some(of(rows)),
        Source::Database => None,
    };
    COLUMNS.iter().filter_map(values).collect()
}

/// Returns these values as a client's call needs them.
pub fn parameters<'v>(values: &'v [Values<'_>]) -> Vec<&'v (dyn ToSql + Sync)> {
    values.iter().map(|values| &**values as &(dyn ToSql + Sync)).collect()
}

/// Returns the columns that the statements write, in the order of [`insert_values`].
pub(super) fn written() -> impl Iterator<Item = &'static Column> {
    COLUMNS.iter().filter(|column| !matches!(column.source, Source::Database))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Msg;

    #[test]
    fn insert_has_a_parameter_for_each_array_and_names_its_conflict() {
        let record = Record { msg: Msg::default(), msg_id: uuid::Uuid::nil(), send_time_ms: 0 };
        let values = insert_values(&[&record], &[StoredAt { seq: 1, partition: 0, offset: 0 }]);
        let sql = insert_sql();
        assert_eq!(sql.matches("[]").count(), values.len(), "{sql}");
        assert!(sql.contains(&format!("${}::bigint[])", values.len())), "{sql}");
        assert!(sql.contains("SELECT t.recv_id, t.seq, ") && sql.contains("t.attributes::jsonb, "), "{sql}");
        assert!(sql.ends_with("ON CONFLICT (recv_id, msg_id) DO NOTHING"), "{sql}");
    }
}
