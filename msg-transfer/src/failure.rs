//! What the driver says about a failure, in the terms of the machine.

use std::error::Error as _;

use machine::failure::{Class, classify_error};
use machine::lane::Failure;
use msg_common::error::{chain, sources};
use msg_common::postgres::{ConnectError, HostError, PoolError};

pub use msg_common::postgres::describe;

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
        PoolError::Backend(error) => of_connect(error),
        other => transient(&msg_common::postgres::describe_pool(other)),
    }
}

/// What it means that no host could be used: an operator has to look only if each of them says so.
pub fn of_connect(error: &ConnectError) -> Failure {
    let fatal = error.hosts().iter().all(|(_, error)| match error {
        HostError::Driver(error) => of(error).class == Class::Fatal,
        HostError::Refused(refusal) => refusal.needs_operator(),
        HostError::Name(_) | HostError::Socket(_) | HostError::Timeout(..) => false,
    });
    Failure { class: if fatal { Class::Fatal } else { Class::Transient }, text: error.to_string() }
}

/// What it means that a connection's server is not what it should be any more.
pub fn of_host(error: &HostError) -> Failure {
    match error {
        HostError::Driver(error) => of(error),
        other => transient(&chain(other)),
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
    match sources(error).find_map(|cause| cause.downcast_ref::<std::io::Error>()) {
        Some(io) => io.kind() != std::io::ErrorKind::InvalidInput,
        // A connect timeout has no source.
        None => error.to_string().contains("timeout"),
    }
}
