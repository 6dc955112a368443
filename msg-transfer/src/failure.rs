//! Converts errors of the database into failures with an error class, as the machine needs them.

use std::error::Error as _;

use machine::failure::{Class, classify_error};
use machine::lane::Failure;
use msg_common::error::{chain, sources};
use msg_common::postgres::{ConnectError, HostError, PoolError};

pub(crate) use msg_common::postgres::describe;

/// Returns the failure of a statement or a connection.
pub(crate) fn of(error: &tokio_postgres::Error) -> Failure {
    let class = match error.as_db_error() {
        Some(db) => classify_error(db.code().code(), db.message()),
        None if error.is_closed() || is_io(error) => Class::Lost,
        // tokio-postgres cannot encode the parameters: they exceed the protocol's sizes.
        None if error.source().is_some_and(|cause| cause.is::<std::num::TryFromIntError>()) => Class::TooLarge,
        None => Class::Fatal,
    };
    Failure { class, text: describe(error) }
}

/// Returns the failure of the pool to return a connection.
pub(crate) fn of_pool(error: &PoolError) -> Failure {
    match error {
        PoolError::Backend(error) => of_connect(error),
        other => transient(&msg_common::postgres::describe_pool(other)),
    }
}

/// Returns the failure to connect to any host. It is fatal only if the error of each host needs an operator.
pub(crate) fn of_connect(error: &ConnectError) -> Failure {
    let fatal = error.hosts().iter().all(|(_, error)| match error {
        HostError::Driver(error) => of(error).class == Class::Fatal,
        HostError::Refused(refusal) => refusal.needs_operator(),
        HostError::Name(_) | HostError::Socket(_) | HostError::Timeout(..) => false,
    });
    Failure { class: if fatal { Class::Fatal } else { Class::Transient }, text: error.to_string() }
}

/// Returns the failure of a connection whose server no longer meets the requirements.
pub(crate) fn of_host(error: &HostError) -> Failure {
    match error {
        HostError::Driver(error) => of(error),
        other => transient(&chain(other)),
    }
}

/// Returns the failure of a connection that is closed or silent.
pub(crate) fn lost(text: &str) -> Failure {
    Failure { class: Class::Lost, text: text.to_owned() }
}

/// Returns a failure that ends without an operator.
pub(crate) fn transient(text: &str) -> Failure {
    Failure { class: Class::Transient, text: text.to_owned() }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    match sources(error).find_map(|cause| cause.downcast_ref::<std::io::Error>()) {
        Some(io) => io.kind() != std::io::ErrorKind::InvalidInput,
        // A connect timeout has no source.
        None => error.to_string().contains("timeout"),
    }
}
