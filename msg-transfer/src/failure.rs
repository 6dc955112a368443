//! What the driver says about a failure, in the terms of the machine.

use std::error::Error as _;

use deadpool_postgres::{HookError, PoolError};
use machine::failure::{Class, classify_error};
use machine::lane::Failure;

/// What a failed statement or a broken connection means.
pub fn of(error: &tokio_postgres::Error) -> Failure {
    let class = match error.as_db_error() {
        Some(db) => classify_error(db.code().code(), db.message()),
        None if error.is_closed() || is_io(error) => Class::Lost,
        // What the driver itself cannot put into a message: beyond the protocol's sizes.
        None if error.source().is_some_and(|cause| cause.is::<std::num::TryFromIntError>()) => Class::TooLarge,
        None => Class::Fatal,
    };
    Failure { class, text: describe(error) }
}

/// What it means that there is no connection.
pub fn of_pool(error: &PoolError) -> Failure {
    match error {
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => of(error),
        other => transient(&other.to_string()),
    }
}

/// The connection is gone or silent.
pub fn lost(text: &str) -> Failure {
    Failure { class: Class::Lost, text: text.to_owned() }
}

/// It will work later.
pub fn transient(text: &str) -> Failure {
    Failure { class: Class::Transient, text: text.to_owned() }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return io.kind() != std::io::ErrorKind::InvalidInput;
        }
        source = cause.source();
    }
    // A connect time-out has no source.
    error.to_string().contains("timeout")
}

/// What an operator may be told of it: never the DETAIL, which quotes the row.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        }
    }
}
