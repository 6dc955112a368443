//! Why there is no connection: each host that was tried, and what happened there.

use std::error::Error as _;
use std::fmt::{self, Display};
use std::io;
use std::time::Duration;

use deadpool_postgres::TimeoutType;

use super::PoolError;
use super::server::Refusal;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The settings say of no host.
    #[error("{0}")]
    Settings(String),
    /// No host could be used.
    #[error("{}", list(.0))]
    Hosts(Vec<HostFailure>),
}

/// What happened at one host.
#[derive(Debug)]
pub struct HostFailure {
    /// Its name and port, and its address where the name has one.
    pub host: String,
    /// What happened.
    pub cause: Cause,
}

/// What happened at a host.
#[derive(Debug)]
pub enum Cause {
    /// Its name has no address.
    Name(io::Error),
    /// It accepts no connection.
    Socket(io::Error),
    /// It did not do this in time.
    Timeout(&'static str, Duration),
    /// It refused the login, or a statement.
    Driver(tokio_postgres::Error),
    /// It is not what it should be.
    Refused(Refusal),
}

impl Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Name(error) => write!(f, "the name cannot be resolved: {error}"),
            Cause::Socket(error) => write!(f, "cannot connect: {error}"),
            Cause::Timeout(what, limit) => write!(f, "{what} within {limit:?}"),
            Cause::Driver(error) => f.write_str(&describe(error)),
            Cause::Refused(refusal) => refusal.fmt(f),
        }
    }
}

fn list(failures: &[HostFailure]) -> String {
    let lines: Vec<String> = failures.iter().map(|failure| format!("{}: {}", failure.host, failure.cause)).collect();
    lines.join("; ")
}

impl ConnectError {
    /// What happened, host by host; nothing where the settings are at fault.
    pub fn failures(&self) -> &[HostFailure] {
        match self {
            ConnectError::Settings(_) => &[],
            ConnectError::Hosts(failures) => failures,
        }
    }

    /// The refusal that only an operator can change, if every host is refused and one of them for that.
    pub fn needs_operator(&self) -> Option<&Refusal> {
        let refusals = self.failures().iter().map(|failure| match &failure.cause {
            Cause::Refused(refusal) => Some(refusal),
            _ => None,
        });
        refusals.collect::<Option<Vec<_>>>()?.into_iter().find(|refusal| refusal.needs_operator())
    }
}

/// What an operator may be told of an error: never the DETAIL, which quotes the row.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        }
    }
}

/// The same for a pool that gave no connection.
pub fn describe_pool(error: &PoolError) -> String {
    match error {
        PoolError::Backend(error) => error.to_string(),
        PoolError::Timeout(TimeoutType::Wait) => {
            "all connections of the pool are in use, and none became free".to_owned()
        }
        other => other.to_string(),
    }
}
