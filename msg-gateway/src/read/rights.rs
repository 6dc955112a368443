//! The rights that reads need. Without one, each read of its table fails, and no other check finds that.

use msg_common::postgres::{ConnectError, HostError, Object, describe};
use msg_common::table::COLUMNS;
use tokio_postgres::error::SqlState;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Table {
    Messages,
    DeadLetters,
    Progress,
}

impl Table {
    pub(crate) const ALL: &[Table] = &[Table::Messages, Table::DeadLetters, Table::Progress];
    pub(crate) const OF_PAGES: &[Table] = &[Table::Messages];

    fn name(self) -> &'static str {
        match self {
            Table::Messages => "messages",
            Table::DeadLetters => "dead_letters",
            Table::Progress => "progress",
        }
    }

    /// Returns a statement that needs the same rights as the reads of this table, and reads no row.
    fn probe(self) -> String {
        let columns = match self {
            Table::Messages => COLUMNS.map(|column| column.name).join(", "),
            Table::DeadLetters => {
                "recv_id, msg_id, kafka_partition, kafka_offset, reason, detail, value, first_seen, replayed_at"
                    .to_owned()
            }
            Table::Progress => "topic_id, kafka_partition, next_offset".to_owned(),
        };
        format!("SELECT {columns} FROM {} WHERE false", self.name())
    }
}

/// Finds a schema of the search path that has our tables and may not be used. For this role, its tables do not exist.
const HIDDEN_SCHEMA: &str = "
    SELECT quote_ident(n.nspname) FROM pg_namespace n
    WHERE NOT has_schema_privilege(n.oid, 'USAGE')
      AND n.nspname IN (SELECT btrim(name, ' \"') FROM unnest(string_to_array(current_setting('search_path'), ',')) name)
      AND 2 = (SELECT count(*) FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname IN ('messages', 'progress'))
    LIMIT 1";

/// Describes the rights on these tables that this role lacks, with the GRANT; `None` if no missing right was found.
pub(crate) async fn missing(client: &Object, tables: &[Table]) -> Option<String> {
    let mut missing = Vec::new();
    for table in tables {
        let Err(error) = client.batch_execute(&table.probe()).await else { continue };
        match error.code() {
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let role = text(client, "SELECT quote_ident(current_user)").await.unwrap_or_default();
                missing.push(format!("{}: GRANT SELECT ON {} TO {role}", describe(&error), table.name()));
            }
            Some(&SqlState::UNDEFINED_TABLE) => {
                let Some(schema) = text(client, HIDDEN_SCHEMA).await else { continue };
                let role = text(client, "SELECT quote_ident(current_user)").await.unwrap_or_default();
                return Some(format!("the tables cannot be found: GRANT USAGE ON SCHEMA {schema} TO {role}"));
            }
            _ => {}
        }
    }
    (!missing.is_empty()).then(|| missing.join("; "))
}

/// Describes the right to connect, if this role lacks it.
pub(crate) fn missing_login(error: &ConnectError) -> Option<String> {
    let denied = |error: &HostError| matches!(error, HostError::Driver(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    let denied = error.hosts().iter().any(|(_, error)| denied(error));
    denied.then(|| format!("{error}: GRANT CONNECT ON DATABASE to the role of the URL"))
}

async fn text(client: &Object, query: &str) -> Option<String> {
    client.query_opt(query, &[]).await.ok()??.try_get(0).ok()
}
