//! What every database session of the transfer sets for itself.

use msg_common::postgres::DatabaseOptions;

/// Statements that are run once on each new connection.
///
/// A stopped process's open transaction would otherwise hold its locks for ever, and the next owner with them.
pub fn settings(database: &DatabaseOptions) -> String {
    let idle = database.database_statement_timeout.as_millis();
    format!(
        "SET synchronous_commit = on; SET lock_timeout = '10s'; \
         SET idle_in_transaction_session_timeout = {idle}; \
         SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
    )
}
