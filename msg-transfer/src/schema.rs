//! The database's schema: migrations in order, one process at a time, and never a step back.

use deadpool_postgres::Pool;
use machine::failure::Class;
use refinery::Runner;
use tokio_postgres::error::SqlState;

use crate::failure;

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Any number that nobody else uses for an advisory lock in this database: "msg" in ASCII, and a version of its use.
const LOCK: i64 = 0x006d_7367_0000_0001;

/// Why the schema is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The database did not answer, or not well.
    #[error("{0}")]
    Database(String),
    /// The same, and it will do so later.
    #[error("{0}")]
    Transient(String),
    /// Some other process has to migrate first.
    #[error("the schema is at version {found}, and this build needs {needed}: run `msg-transfer migrate`")]
    Behind {
        /// What is there.
        found: i64,
        /// What this build needs.
        needed: i64,
    },
    /// A newer build has migrated.
    #[error("the schema is at version {found}, newer than {needed}, which this build knows: run a newer build")]
    Newer {
        /// What is there.
        found: i64,
        /// What this build knows.
        needed: i64,
    },
    /// A migration was changed after it had been applied, or failed.
    #[error("migration failed: {0}")]
    Migration(String),
}

impl SchemaError {
    /// Whether it may be otherwise later without anybody changing this process.
    pub fn is_transient(&self) -> bool {
        matches!(self, SchemaError::Transient(_) | SchemaError::Behind { .. })
    }
}

impl From<tokio_postgres::Error> for SchemaError {
    fn from(error: tokio_postgres::Error) -> Self {
        let text = failure::describe(&error);
        match failure::of(&error).class {
            Class::Transient => SchemaError::Transient(text),
            _ => SchemaError::Database(text),
        }
    }
}

/// The version that this build needs.
pub fn needed() -> i64 {
    runner().get_migrations().iter().map(|migration| i64::from(migration.version())).max().unwrap_or(0)
}

fn runner() -> Runner {
    embedded::migrations::runner()
}

/// Brings the schema up to this build's version; returns the names of the migrations that were applied.
pub async fn migrate(pool: &Pool) -> Result<Vec<String>, SchemaError> {
    let mut client = connect(pool).await?;
    // A session's lock: it goes when the connection does, also if this process is killed.
    client
        .batch_execute("SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0")
        .await?;
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await?;
    let result = apply(&mut client).await;
    // Its session is changed, and holds the lock: not back into the pool.
    drop(deadpool_postgres::Object::take(client));
    result
}

async fn apply(client: &mut deadpool_postgres::Object) -> Result<Vec<String>, SchemaError> {
    let found = version(client).await?;
    if found > needed() {
        return Err(SchemaError::Newer { found, needed: needed() });
    }
    let client: &mut tokio_postgres::Client = client;
    let report = runner().run_async(client).await.map_err(|error| failed(&error))?;
    Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
}

/// A migration that lost its server will work later; one that the server refuses will not.
fn failed(error: &refinery::Error) -> SchemaError {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<tokio_postgres::Error>()
            && failure::of(error).class == Class::Transient
        {
            return SchemaError::Transient(failure::describe(error));
        }
        source = cause.source();
    }
    SchemaError::Migration(error.to_string())
}

/// Makes sure that the schema is this build's, without changing anything.
pub async fn check(pool: &Pool) -> Result<(), SchemaError> {
    let client = connect(pool).await?;
    let (found, needed) = (version(&client).await?, needed());
    match found.cmp(&needed) {
        std::cmp::Ordering::Less => Err(SchemaError::Behind { found, needed }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(SchemaError::Newer { found, needed }),
    }
}

/// Whether the database is a Citus coordinator.
pub async fn has_citus(pool: &Pool) -> Result<bool, SchemaError> {
    let client = connect(pool).await?;
    Ok(client.query_opt("SELECT 1 FROM pg_extension WHERE extname = 'citus'", &[]).await?.is_some())
}

async fn connect(pool: &Pool) -> Result<deadpool_postgres::Object, SchemaError> {
    pool.get().await.map_err(|error| match error {
        deadpool_postgres::PoolError::Backend(error) => error.into(),
        other => SchemaError::Transient(other.to_string()),
    })
}

/// 0 for an empty database.
async fn version(client: &deadpool_postgres::Object) -> Result<i64, SchemaError> {
    let found = client.query_one("SELECT coalesce(max(version), 0)::bigint FROM refinery_schema_history", &[]).await;
    match found {
        Ok(row) => Ok(row.get(0)),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
