//! What every database session of the transfer sets for itself, and which connection counts as a new one.

use std::time::Duration;

use msg_common::postgres::{DatabaseOptions, Object, Pool, PoolError};
use msg_common::repeat::Repeats;

use crate::metrics;

static WARNED: Repeats = Repeats::new();

/// What was committed with a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// A lane's batch.
    Batch,
    /// Progress rows.
    Progress,
}

impl Committed {
    /// In metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Committed::Batch => "batch",
            Committed::Progress => "progress",
        }
    }
}

/// Logs and counts a COMMIT that was answered OK with a warning.
pub fn warned(what: Committed, warning: &str) {
    metrics::commit_warned(what.name());
    if let Some(repeated) = WARNED.occurred(&format!("{}: {warning}", what.name())) {
        let what = what.name();
        tracing::warn!(
            what,
            warning,
            repeated,
            "committed with a warning: perhaps on this server alone, or not to be seen yet"
        );
    }
}

/// Statements that are run once on each new connection.
///
/// What a transaction sets then also reaches the workers of a Citus; PostgreSQL alone keeps the name and does nothing with it.
///
/// A stopped process's open transaction would otherwise hold its locks for ever, and the next owner with them.
pub fn settings(database: &DatabaseOptions) -> String {
    let idle = database.database_statement_timeout.as_millis();
    let lock = lock_timeout(database).as_millis();
    format!(
        "SET synchronous_commit = on; SET lock_timeout = {lock}; \
         SET idle_in_transaction_session_timeout = {idle}; \
         SET citus.propagate_set_commands = 'local'; \
         SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
    )
}

/// How long to wait for a lock. Well below the statement's time-out: waiting for somebody must not look like a record that
/// takes too long.
pub fn lock_timeout(database: &DatabaseOptions) -> Duration {
    Duration::from_secs(10).min(database.database_statement_timeout / 2)
}

/// Closes a connection, and removes it from its pool.
pub fn disconnect(client: Object) {
    drop(Object::take(client));
}

/// A connection that is made now. One that has waited in the pool may lead to the server that was there before a
/// switch-over.
pub async fn fresh(pool: &Pool) -> Result<Object, PoolError> {
    loop {
        // Those that wait are not asked one by one: a server that went silent would cost a time-out for each.
        drop(pool.retain(|_, _| false));
        let client = pool.get().await?;
        if Object::metrics(&client).recycle_count == 0 {
            return Ok(client);
        }
        disconnect(client);
    }
}
