//! Database connections for reads, and the failures that callers get for database errors.

use std::ops::Deref;

use std::time::Duration;

use deadpool_postgres::TimeoutType;
use msg_common::admin::Readiness;
use msg_common::config::SettingError;
use msg_common::error::chain;
use msg_common::postgres::{
    ConnectError, DatabaseError, DatabaseOptions, HostError, Manager, Object, Pool, PoolError, Purpose,
};
use msg_common::repeat::Repeats;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use crate::read::rights::{self, Table};
use crate::status::Failure;

/// Limits the log lines, because callers cause the reads and retry them.
static REPEATS: Repeats = Repeats::new();

/// How often the connection and the rights are checked, and how often while an operator has to act.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The settings of each session of a read.
pub(crate) const SESSION: &str = "SET default_transaction_read_only = on";

/// A connection pool for reads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Database {
    pool: Pool,
}

impl Database {
    /// Creates a pool of up to `connections`, whose sessions run `session` first. It connects at the first read.
    pub(crate) fn new(
        options: &DatabaseOptions,
        connections: usize,
        session: &str,
        purpose: Purpose,
    ) -> Result<Self, SettingError> {
        let pool = options.pool("msg-gateway", connections, session, purpose)?;
        Ok(Database { pool })
    }

    /// Makes the gateway not ready while this database can never be used for reads without an operator: its server or the
    /// connection to it does not fit, a right on one of `tables` is missing, or TLS has prevented each connection since the
    /// start. An unavailable database does not prevent sends.
    pub(crate) async fn watch(
        self,
        component: &'static str,
        tables: &'static [Table],
        readiness: Readiness,
        stop: CancellationToken,
    ) {
        let checks = async {
            // Before the first connection, a certificate that is rejected is a setting to correct. Later it is an outage of
            // the database, such as a certificate that has expired.
            let mut connected = false;
            loop {
                let failure_reason = match self.pool.get().await {
                    Ok(client) => {
                        connected = true;
                        rights::missing(&client, tables).await
                    }
                    Err(PoolError::Backend(error))
                        if error.needs_operator().is_some() || (!connected && error.is_tls()) =>
                    {
                        Some(error.to_string())
                    }
                    Err(PoolError::Backend(error)) => rights::missing_login(&error),
                    Err(_) => None,
                };
                let pause = if failure_reason.is_some() { RETRY_INTERVAL } else { CHECK_INTERVAL };
                match failure_reason {
                    Some(reason) => readiness.not_ready(component, reason),
                    None => readiness.ready(component),
                }
                tokio::time::sleep(pause).await;
            }
        };
        stop.run_until_cancelled(checks).await;
    }

    /// Returns a connection for one read.
    pub(crate) async fn connection(&self) -> Result<Connection, Failure> {
        match self.pool.get().await {
            Ok(object) => Ok(Connection { object: Some(object), pool: self.pool.clone(), done: false }),
            Err(PoolError::Backend(error)) => Err(not_connected(&error)),
            Err(PoolError::Timeout(TimeoutType::Wait)) => Err(Failure::Overloaded(
                "all connections to the database are in use; retry after the delay, or raise READ_CONNECTIONS".into(),
            )),
            Err(error) => {
                let error = DatabaseError::from(error).to_string();
                if let Some(repeated) = REPEATS.occurred(&error) {
                    tracing::warn!(error, repeated, "cannot connect to the database");
                }
                Err(Failure::DatabaseUnavailable("no connection to the database".into()))
            }
        }
    }
}

/// A connection that is returned to the pool only after a successful read.
pub(crate) struct Connection {
    object: Option<Object>,
    pool: Pool,
    done: bool,
}

impl Connection {
    /// Returns the connection to the pool after a successful read.
    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Deref for Connection {
    type Target = Object;

    fn deref(&self) -> &Object {
        self.object.as_ref().expect("only the drop removes it")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(object) = self.object.take().filter(|_| !self.done) else {
            return;
        };
        // The read failed, or its caller has disconnected: the connection may be broken, or a statement may still run
        // that would block the next read.
        let client = Object::take(object);
        if client.is_closed() {
            return;
        }
        let cancel = Manager::canceller(self.pool.manager(), &client);
        tokio::spawn(async move {
            if let Err(error) = cancel.cancel().await {
                tracing::debug!(error = chain(&error), "cannot cancel an abandoned read");
            }
            // The client stays alive until here, because its task detects that the server is unavailable.
            drop(client);
        });
    }
}

/// Returns the failure for a caller if no connection can be opened.
fn not_connected(error: &ConnectError) -> Failure {
    let text = error.to_string();
    if let Some(repeated) = REPEATS.occurred(&text) {
        tracing::warn!(error = text, repeated, "cannot connect to the database");
    }
    let rejected = error.hosts().iter().find_map(|(_, error)| match error {
        HostError::Driver(error) | HostError::Login(error, _) => error.code().map(|state| meaning(Some(state))),
        _ => None,
    });
    rejected.unwrap_or_else(|| Failure::DatabaseUnavailable("the database cannot be reached".into()))
}

/// Returns the failure for a caller if a statement fails, and logs the error.
pub(crate) fn failure(error: &tokio_postgres::Error) -> Failure {
    let state = error.code();
    let failure = meaning(state);
    // The server's message and detail may contain stored data.
    let sqlstate = state.map_or("none", SqlState::code);
    let condition = if error.as_db_error().is_some() { sqlstate.to_owned() } else { error.to_string() };
    let Some(repeated) = REPEATS.occurred(&condition) else { return failure };
    match (&failure, error.as_db_error()) {
        // The message names the table, and holds no data.
        (_, Some(db)) if state == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            tracing::error!(sqlstate, error = db.message(), repeated, "read failed: a right is missing");
        }
        (Failure::Internal(_), _) => tracing::error!(sqlstate, repeated, "read failed"),
        (_, Some(_)) => tracing::warn!(sqlstate, repeated, "database is unavailable"),
        (_, None) => tracing::warn!(%error, repeated, "database is unavailable"),
    }
    failure
}

fn meaning(state: Option<&SqlState>) -> Failure {
    // Without a SQLSTATE the connection failed, or the response could not be decoded.
    let Some(state) = state else {
        return Failure::DatabaseUnavailable("the database cannot be reached".into());
    };
    if [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN, SqlState::INVALID_SCHEMA_NAME].contains(state) {
        return Failure::DatabaseUnavailable("the database has no tables yet; msg-transfer creates them".into());
    }
    match state.code().get(..2) {
        // Connections, transactions, resources, the server's state, operators, the system, the configuration and logins, faults
        // of the server, and plans that a migration has changed.
        Some("08" | "40" | "53" | "55" | "57" | "58" | "28" | "3D" | "F0" | "XX" | "0A") => {
            Failure::DatabaseUnavailable("the database is unavailable at present".into())
        }
        _ => Failure::Internal("the database rejected the read".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_that_never_pass_count_as_internal() {
        for (state, available) in [
            (SqlState::ADMIN_SHUTDOWN, false),
            (SqlState::CANNOT_CONNECT_NOW, false),
            (SqlState::QUERY_CANCELED, false),
            (SqlState::TOO_MANY_CONNECTIONS, false),
            (SqlState::UNDEFINED_TABLE, false),
            (SqlState::INVALID_PASSWORD, false),
            (SqlState::INTERNAL_ERROR, false),
            (SqlState::SYNTAX_ERROR, true),
            (SqlState::INSUFFICIENT_PRIVILEGE, true),
        ] {
            assert_eq!(matches!(meaning(Some(&state)), Failure::Internal(_)), available, "{}", state.code());
        }
        assert!(matches!(meaning(None), Failure::DatabaseUnavailable(_)));
    }
}
