//! Owns the errors of the database: the error of each host that was tried, or the error of a statement.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use deadpool_postgres::TimeoutType;

use super::PoolError;
use super::server::Refusal;
use super::tls::TlsFailure;
use crate::config::SettingError;
use crate::error::chain;

/// Why a statement has no result. The driver's error is not a `source`, because its text quotes the row.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The pool has no connection for the statement.
    #[error("{}", describe_pool(.0))]
    Pool(PoolError),
    /// No host could be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server rejected the statement, or the connection broke.
    #[error("{}", describe(.0))]
    Statement(tokio_postgres::Error),
    /// The statement had no result in time.
    #[error("the database did not respond within {0:?}")]
    TimedOut(Duration),
}

impl From<PoolError> for DatabaseError {
    fn from(error: PoolError) -> Self {
        DatabaseError::Pool(error)
    }
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        DatabaseError::Statement(error)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The settings name no host.
    #[error(transparent)]
    Settings(SettingError),
    /// No host could be used. Each entry has the host's name and port, its address if the name has one, and its error.
    #[error("{}", list(.0))]
    Hosts(Vec<(String, HostError)>),
}

/// The error of one host. The driver's error is not a `source`, because its text quotes the row.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The name of the host has no address.
    #[error("the name cannot be resolved")]
    Name(#[source] io::Error),
    /// The host accepts no connection.
    #[error("cannot connect")]
    Socket(#[source] io::Error),
    /// The host did not complete this step in time.
    #[error("{0} within {1:?}")]
    Timeout(&'static str, Duration),
    /// The server rejected the login or a statement.
    #[error("{}", describe(.0))]
    Driver(tokio_postgres::Error),
    /// The server rejected the login, and this is what to do about it.
    #[error("{}; {}", describe(.0), .1)]
    Login(tokio_postgres::Error, &'static str),
    /// The connection cannot be encrypted as the URL requires.
    #[error(transparent)]
    Tls(TlsFailure),
    /// The server does not fit the purpose.
    #[error("{0}")]
    Refused(Refusal),
}

fn list(hosts: &[(String, HostError)]) -> String {
    let lines: Vec<String> = hosts.iter().map(|(host, error)| format!("{host}: {}", chain(error))).collect();
    lines.join("; ")
}

impl ConnectError {
    /// Returns the error of each host, or none if the settings cannot be used.
    pub fn hosts(&self) -> &[(String, HostError)] {
        match self {
            ConnectError::Settings(_) => &[],
            ConnectError::Hosts(hosts) => hosts,
        }
    }

    /// Returns a refusal that only an operator can change, if every host was refused.
    pub fn needs_operator(&self) -> Option<&Refusal> {
        let refusals = self.hosts().iter().map(|(_, error)| match error {
            HostError::Refused(refusal) => Some(refusal),
            _ => None,
        });
        refusals.collect::<Option<Vec<_>>>()?.into_iter().find(|refusal| refusal.needs_operator())
    }

    /// Returns whether TLS or a certificate is the cause for every host.
    pub fn is_tls(&self) -> bool {
        let tls = |error: &HostError| matches!(error, HostError::Tls(_) | HostError::Login(..));
        !self.hosts().is_empty() && self.hosts().iter().all(|(_, error)| tls(error))
    }
}

/// Returns the text of an error for logs, without its DETAIL, which quotes the row.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        }
    }
}

/// Returns the text of a pool's error for logs.
pub fn describe_pool(error: &PoolError) -> String {
    match error {
        PoolError::Backend(error) => error.to_string(),
        PoolError::Timeout(TimeoutType::Wait) => {
            "all connections of the pool are in use, and none became free".to_owned()
        }
        other => other.to_string(),
    }
}
