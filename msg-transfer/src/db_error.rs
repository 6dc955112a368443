//! Converts errors of the database into errors with a class, as the machine needs them.

use std::error::Error as _;

use machine::error::{ClassifiedError, ErrorClass, classify_error};
use msg_common::error::{chain, sources};
use msg_common::postgres::{ConnectError, HostError, PoolError};
use tokio_postgres::error::SqlState;

pub(crate) use msg_common::postgres::describe;

/// The advice after the server's text, which names the table.
const GRANT: &str = "GRANT SELECT, INSERT ON messages, dead_letters and SELECT, INSERT, UPDATE ON progress to this role, and \
                     USAGE on their schema; docs/rights.md lists all rights";

/// Classifies the error of a statement or a connection.
pub(crate) fn of(error: &tokio_postgres::Error) -> ClassifiedError {
    let class = match error.as_db_error() {
        Some(db) => classify_error(db.code().code(), db.message()),
        None if error.is_closed() || is_io(error) => ErrorClass::Lost,
        // tokio-postgres cannot encode the parameters: they exceed the protocol's sizes.
        None if error.source().is_some_and(|cause| cause.is::<std::num::TryFromIntError>()) => ErrorClass::TooLarge,
        None => ErrorClass::Fatal,
    };
    let text = describe(error);
    let denied = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
    ClassifiedError { class, text: if denied { format!("{text}: {GRANT}") } else { text } }
}

/// Classifies the error of the pool when it returns no connection.
pub(crate) fn of_pool(error: &PoolError) -> ClassifiedError {
    match error {
        PoolError::Backend(error) => of_connect(error),
        other => transient(&msg_common::postgres::describe_pool(other)),
    }
}

/// Classifies the error of a connection attempt to all hosts. It is fatal only if the error of each host needs an
/// operator.
pub(crate) fn of_connect(error: &ConnectError) -> ClassifiedError {
    let fatal = error.hosts().iter().all(|(_, error)| match error {
        HostError::Driver(error) | HostError::Login(error, _) => of(error).class == ErrorClass::Fatal,
        HostError::Refused(refusal) => refusal.needs_operator(),
        // While certificates are replaced, the server's may be newer than our CAs for a moment.
        HostError::Name(_) | HostError::Socket(_) | HostError::Timeout(..) | HostError::Tls(_) => false,
    });
    ClassifiedError { class: if fatal { ErrorClass::Fatal } else { ErrorClass::Transient }, text: error.to_string() }
}

/// Classifies the error of a connection whose server no longer meets the requirements.
pub(crate) fn of_host(error: &HostError) -> ClassifiedError {
    match error {
        HostError::Driver(error) | HostError::Login(error, _) => of(error),
        other => transient(&chain(other)),
    }
}

/// Returns the error of a connection that is closed or silent.
pub(crate) fn lost(text: &str) -> ClassifiedError {
    ClassifiedError { class: ErrorClass::Lost, text: text.to_owned() }
}

/// Returns an error that ends without an operator.
pub(crate) fn transient(text: &str) -> ClassifiedError {
    ClassifiedError { class: ErrorClass::Transient, text: text.to_owned() }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    match sources(error).find_map(|cause| cause.downcast_ref::<std::io::Error>()) {
        Some(io) => io.kind() != std::io::ErrorKind::InvalidInput,
        // A connect timeout has no source.
        None => error.to_string().contains("timeout"),
    }
}
