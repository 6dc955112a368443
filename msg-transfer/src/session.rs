//! The settings of every database session of the transfer, and connections that are certainly new.

use std::time::Duration;

use msg_common::postgres::{DatabaseOptions, Object, Pool, PoolError};
use msg_common::repeat::Repeats;

use crate::metrics;

static WARNED: Repeats = Repeats::new();

/// The kind of the rows that were committed with a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    Batch,
    Progress,
}

impl Committed {
    /// Returns the name for metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Committed::Batch => "batch",
            Committed::Progress => "progress",
        }
    }
}

/// Logs and counts a COMMIT that succeeded with a warning.
pub(crate) fn warned(committed: Committed, warning: &str) {
    let what = committed.name();
    metrics::commit_warned(what);
    if let Some(repeated) = WARNED.occurred(&format!("{what}: {warning}")) {
        tracing::warn!(
            what,
            warning,
            repeated,
            "committed with a warning: the rows may be only on this server, or not visible yet"
        );
    }
}

/// Returns the statements that are executed once on each new connection, after those of every session
/// (`src/postgres/session.rs`).
///
/// With `citus.propagate_set_commands`, the settings of a transaction also reach the workers of a Citus; PostgreSQL
/// without Citus accepts the name and ignores it.
pub(crate) fn settings(database: &DatabaseOptions) -> String {
    let lock = lock_timeout(database).as_millis();
    format!(
        "SET synchronous_commit = on; SET lock_timeout = {lock}; \
         SET citus.propagate_set_commands = 'local'; \
         SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
    )
}

/// Returns the lock timeout. It is well below the statement timeout, so that a wait for another transaction's lock is
/// not mistaken for a record that needs too long.
pub(crate) fn lock_timeout(database: &DatabaseOptions) -> Duration {
    Duration::from_secs(10).min(database.database_statement_timeout / 2)
}

/// Closes a connection, and removes it from its pool.
pub(crate) fn disconnect(client: Object) {
    drop(Object::take(client));
}

/// Opens a new connection. A connection from the pool may lead to the server that was the primary before a failover.
pub(crate) async fn fresh(pool: &Pool) -> Result<Object, PoolError> {
    loop {
        // All pooled connections are closed without a check: with a silent server, each check would need a timeout.
        drop(pool.retain(|_, _| false));
        let client = pool.get().await?;
        if Object::metrics(&client).recycle_count == 0 {
            return Ok(client);
        }
        disconnect(client);
    }
}
