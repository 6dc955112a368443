//! The database's schema: migrations in order, by one process at a time, and never to an older version.

use std::time::{Duration, Instant};

use machine::error::ErrorClass;
use msg_common::config::SettingError;
use msg_common::error::sources;
use msg_common::postgres::{
    Client, ConnectError, Connector, DatabaseError, DatabaseOptions, Object, Pool, PoolError, Purpose,
};
use refinery_core::{Migration, Runner};
use tokio_postgres::error::SqlState;

use crate::{db_error, session};

/// The migrations, in order. An applied one never changes.
const MIGRATIONS: [(&str, &str); 4] = [
    ("V1__messages", include_str!("../migrations/V1__messages.sql")),
    ("V2__resumed", include_str!("../migrations/V2__resumed.sql")),
    ("V3__leader_epoch", include_str!("../migrations/V3__leader_epoch.sql")),
    ("V4__compatibility", include_str!("../migrations/V4__compatibility.sql")),
];

/// The number of the advisory lock for migrations: "msg" in ASCII, and a version. No other program may use it in this
/// database.
const LOCK: i64 = 0x006d_7367_0000_0001;

/// How long a migration waits for a table's lock. All later statements on the table wait for the migration.
const TABLE_LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// The wait between two attempts to acquire a lock, in which the statements that waited are executed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long one call tries to acquire its locks.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// The last migration that a build must know to work with the migrations that this build does not know.
const NEEDS: &str = "
    SELECT coalesce(max(coalesce(c.needs, h.version)), 0)::bigint
    FROM refinery_schema_history h LEFT JOIN schema_compatibility c ON c.version = h.version WHERE h.version > $1::bigint";

/// Names the processes that hold locks on our tables.
const HOLDERS: &str = "
    SELECT string_agg(DISTINCT format('process %s (role %s, application %L, transaction since %s)',
        a.pid, a.usename, a.application_name, date_trunc('second', a.xact_start)), ', ')
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.granted AND l.pid <> pg_backend_pid() AND a.xact_start < now() - interval '1 second'
      AND l.relation IN (to_regclass('messages'), to_regclass('dead_letters'), to_regclass('progress'))";

/// Why the schema cannot be used or migrated.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error(transparent)]
    Database(DatabaseError),
    /// A request to the database failed, and will succeed later.
    #[error(transparent)]
    Transient(DatabaseError),
    #[error("another process is migrating the schema")]
    Migrating,
    #[error("a migration waits for a lock on a table; held by: {holders}; wait for that transaction, or end it")]
    Locked {
        /// The processes that hold it, as far as this role may see them.
        holders: String,
        #[source]
        source: MigrationError,
    },
    /// The database, or the connection to it, cannot be used until an operator changes it.
    #[error(transparent)]
    Refused(ConnectError),
    #[error("the schema is at version {found}, and this build needs {needed}: run `msg-transfer migrate`")]
    Behind { found: i64, needed: i64 },
    /// A newer build has migrated the schema, and this build would fail.
    #[error(
        "the schema is at version {found}, which needs a build that knows version {needs}; this one knows {needed}: \
         run a newer build"
    )]
    Newer {
        found: i64,
        /// The version that a build must know to use that schema.
        needs: i64,
        needed: i64,
    },
    /// A migration lost its connection, and will work later.
    #[error(transparent)]
    Interrupted(MigrationError),
    /// A migration was changed after it had been applied, or the server rejects it.
    #[error("migration failed: {source}{advice}")]
    Migration {
        #[source]
        source: MigrationError,
        /// The advice for the operator, after a semicolon; empty if there is none.
        advice: String,
    },
}

/// An error of refinery, which is not its `source`: the text of the driver's error in it may quote a row.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct MigrationError(refinery_core::Error);

impl MigrationError {
    fn text(&self) -> String {
        self.database().map_or_else(|| self.0.to_string(), db_error::describe)
    }

    /// Returns the driver's error, if the migration failed with one.
    fn database(&self) -> Option<&tokio_postgres::Error> {
        sources(&self.0).find_map(|cause| cause.downcast_ref())
    }
}

impl SchemaError {
    /// Returns whether a retry may succeed without a change to this process.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            SchemaError::Transient(_)
                | SchemaError::Interrupted(_)
                | SchemaError::Migrating
                | SchemaError::Locked { .. }
                | SchemaError::Behind { .. }
        )
    }

    /// Returns whether retries are useless.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            SchemaError::Setting(_)
                | SchemaError::Newer { .. }
                | SchemaError::Migration { .. }
                | SchemaError::Refused(_)
        )
    }
}

impl From<tokio_postgres::Error> for SchemaError {
    fn from(error: tokio_postgres::Error) -> Self {
        match db_error::of(&error).class {
            ErrorClass::Transient | ErrorClass::Lost => SchemaError::Transient(error.into()),
            _ => SchemaError::Database(error.into()),
        }
    }
}

impl From<ConnectError> for SchemaError {
    fn from(error: ConnectError) -> Self {
        if error.needs_operator().is_some() {
            return SchemaError::Refused(error);
        }
        match db_error::of_connect(&error).class {
            ErrorClass::Fatal => SchemaError::Database(error.into()),
            _ => SchemaError::Transient(error.into()),
        }
    }
}

/// Returns the version that this build needs.
pub(crate) fn needed() -> i64 {
    runner().get_migrations().iter().map(|migration| i64::from(migration.version())).max().unwrap_or(0)
}

fn runner() -> Runner {
    let migration = |(name, sql)| Migration::unapplied(name, sql).expect("a name such as V1__messages");
    Runner::new(&MIGRATIONS.map(migration))
}

/// Migrates the schema to this build's version, and returns the names of the applied migrations.
pub(crate) async fn migrate(database: &DatabaseOptions) -> Result<Vec<String>, SchemaError> {
    // The migration of a large table may need any time. Its connection is closed only when the server does not respond.
    let lock = TABLE_LOCK_TIMEOUT.as_millis();
    let settings = session::settings(database);
    let settings = format!("{settings}; SET lock_timeout = {lock}");
    let connector = Connector::new(database.without_statement_timeout(), "msg-transfer", &settings, Purpose::Write);
    let mut client = connector?.connect().await?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    // The session's lock is released when the connection is closed, also if this process is killed.
    while !client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?.get::<_, bool>(0) {
        if Instant::now() > deadline {
            return Err(SchemaError::Migrating);
        }
        tokio::time::sleep(RETRY_INTERVAL / 2).await;
    }
    loop {
        match apply(&mut client).await {
            Err(SchemaError::Locked { .. }) if Instant::now() < deadline => tokio::time::sleep(RETRY_INTERVAL).await,
            Err(SchemaError::Locked { source, .. }) => {
                return Err(SchemaError::Locked { holders: lock_holders(&client).await, source });
            }
            applied => return applied,
        }
    }
}

/// Names the processes that hold a lock on our tables, as far as this role may see them.
async fn lock_holders(client: &Client) -> String {
    let holders = client.query_one(HOLDERS, &[]).await.ok().and_then(|row| row.get::<_, Option<String>>(0));
    holders.unwrap_or_else(|| "unknown".to_owned())
}

async fn apply(client: &mut Client) -> Result<Vec<String>, SchemaError> {
    let (found, needed) = (version(client).await?, needed());
    if found > needed {
        compatible(client, found, needed).await?;
        tracing::info!(found, needed, "the schema is newer than this build, and compatible");
        return Ok(Vec::new());
    }
    let session: &mut tokio_postgres::Client = client;
    match runner().run_async(session).await {
        Ok(report) => Ok(report.applied_migrations().iter().map(ToString::to_string).collect()),
        Err(error) => Err(failed(error, client).await),
    }
}

/// Converts the error of a migration. A retry may succeed after a lost connection or a lock timeout, and not after a
/// rejection.
async fn failed(error: refinery_core::Error, client: &Client) -> SchemaError {
    let source = MigrationError(error);
    let Some(error) = source.database() else { return SchemaError::Migration { source, advice: String::new() } };
    match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE) => SchemaError::Locked { holders: String::new(), source },
        _ if matches!(db_error::of(error).class, ErrorClass::Transient | ErrorClass::Lost) => {
            SchemaError::Interrupted(source)
        }
        state => {
            let advice = advice(state, &db_error::describe(error), client).await;
            SchemaError::Migration { source, advice }
        }
    }
}

/// Returns what an operator has to do about a migration that the server rejects.
async fn advice(state: Option<&SqlState>, text: &str, client: &Client) -> String {
    let names = "SELECT quote_ident(current_user), quote_ident(coalesce(current_schema(), 'public'))";
    let Ok(row) = client.query_one(names, &[]).await else { return String::new() };
    let (role, schema): (String, String) = (row.get(0), row.get(1));
    match state {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) if text.contains("schema") => format!(
            "; this role may not create tables: GRANT CREATE ON SCHEMA {schema} TO {role}, or run `msg-transfer \
             migrate` once as a role that may, and the service with --no-migrate"
        ),
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            format!("; run `msg-transfer migrate` as the owner of the tables, or GRANT the owner's role TO {role}")
        }
        Some(&SqlState::INVALID_SCHEMA_NAME) => format!(
            "; no schema of this role's search_path exists: CREATE SCHEMA, or ALTER ROLE {role} SET search_path"
        ),
        Some(&SqlState::DUPLICATE_TABLE) => {
            "; a table with that name exists and is not this program's: use a separate database or schema".to_owned()
        }
        _ => String::new(),
    }
}

/// Checks that this build can work with the schema, and returns the schema's version. Changes nothing.
pub(crate) async fn check(pool: &Pool) -> Result<i64, SchemaError> {
    let client = connect(pool).await?;
    let (found, needed) = (version(&client).await?, needed());
    if found < needed {
        return Err(SchemaError::Behind { found, needed });
    }
    if found > needed {
        compatible(&client, found, needed).await?;
    }
    Ok(found)
}

/// Reads whether Citus is installed in the database.
pub(crate) async fn has_citus(pool: &Pool) -> Result<bool, SchemaError> {
    let client = connect(pool).await?;
    Ok(client.query_opt("SELECT 1 FROM pg_extension WHERE extname = 'citus'", &[]).await?.is_some())
}

async fn connect(pool: &Pool) -> Result<Object, SchemaError> {
    pool.get().await.map_err(|error| match error {
        PoolError::Backend(error) => error.into(),
        other => SchemaError::Transient(other.into()),
    })
}

/// Reads the schema's version; 0 for an empty database.
async fn version(client: &Client) -> Result<i64, SchemaError> {
    let found = client.query_one("SELECT coalesce(max(version), 0)::bigint FROM refinery_schema_history", &[]).await;
    match found {
        Ok(row) => Ok(row.get(0)),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Fails if this build cannot work with a schema that is newer.
async fn compatible(client: &Client, found: i64, needed: i64) -> Result<(), SchemaError> {
    let needs = match client.query_one(NEEDS, &[&needed]).await {
        Ok(row) => row.get(0),
        // The table does not exist: it is not known which builds can work with the newer migrations.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => found,
        Err(error) => return Err(error.into()),
    };
    if needs <= needed { Ok(()) } else { Err(SchemaError::Newer { found, needs, needed }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_migration() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let files = std::fs::read_dir(folder).expect("the folder of the migrations");
        let mut files: Vec<String> =
            files.map(|file| file.expect("a file").file_name().display().to_string()).collect();
        files.sort();
        assert_eq!(files, MIGRATIONS.map(|(name, _)| format!("{name}.sql")));
        assert_eq!(needed(), i64::try_from(MIGRATIONS.len()).expect("a few"));
    }
}
