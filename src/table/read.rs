//! Makes the parts of statements that read messages. The statements name the table `m`.

use super::{COLUMNS, Column, SqlType, join, name};

/// Returns the expressions that select the columns that [`super::read_msg`] reads. `content` is the expression for the
/// content.
pub fn select_msg(content: &str) -> String {
    join(read(), ", ", |column| format!("{} AS {}", expression(column, content), column.name))
}

/// Returns the names of the columns that [`select_msg`] selects.
pub fn msg_names() -> String {
    join(read(), ", ", name)
}

/// Returns the expression for the bytes of a message's texts and content. `content` is the expression for the content.
pub fn msg_bytes(content: &str) -> String {
    let texts = COLUMNS.iter().filter(|column| column.is_sender());
    let texts = texts.filter(|column| matches!(column.sql, SqlType::Text | SqlType::Bytea | SqlType::Jsonb));
    join(texts, " + ", |column| format!("coalesce(octet_length({}), 0)", expression(column, content)))
}

/// Returns the columns that a statement selects. The inbox is not among them: every reader of a message knows it.
fn read() -> impl Iterator<Item = &'static Column> {
    COLUMNS.iter().filter(|column| column.is_sender() && column.name != "recv_id")
}

fn expression(column: &Column, content: &str) -> String {
    match (column.name, column.sql) {
        ("content", _) => content.to_owned(),
        (name, SqlType::Jsonb) => format!("m.{name}::text"),
        (name, _) => format!("m.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_read_and_count_each_column() {
        let selected = select_msg("x");
        assert!(selected.starts_with("m.send_id AS send_id, m.client_msg_id AS client_msg_id, "), "{selected}");
        assert!(selected.ends_with("x AS content, m.attributes::text AS attributes"), "{selected}");
        assert_eq!(selected.matches(" AS ").count(), msg_names().split(", ").count());
        let bytes = msg_bytes("x");
        for counted in ["m.recv_id", "m.content_type", "x", "m.attributes::text"] {
            assert!(bytes.contains(&format!("coalesce(octet_length({counted}), 0)")), "{bytes}");
        }
    }
}
