//! Why a command failed. Its text is logged once, with those of its sources, when the command ends.

mod dead_letters;
mod horizon;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use msg_common::config::SettingError;
use msg_common::kafka::RequestError;
use msg_common::postgres::{DatabaseError, PoolError};

pub(super) use self::dead_letters::{LetterError, ReplayError, SendError};
pub(super) use self::horizon::{HorizonError, horizon};
use crate::lag::LagError;
use crate::schema::SchemaError;

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The schema is not this build's.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The database has no result.
    #[error("database")]
    Database(#[from] DatabaseError),
    /// A request to Kafka failed.
    #[error("kafka")]
    Kafka(#[from] RequestError),
    /// The lag cannot be read.
    #[error(transparent)]
    Lag(#[from] LagError),
    /// A dead letter cannot be shown, exported or sent.
    #[error(transparent)]
    Letter(#[from] LetterError),
    /// Not all dead letters were replayed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// Messages as old as that must not be purged.
    #[error(transparent)]
    Horizon(#[from] HorizonError),
    /// The result cannot be written.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
    /// The result cannot be written to this file.
    #[error("cannot write --file {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The service does not respond.
    #[error("no response of the service at --admin-listen {address}; check that it runs")]
    Probe {
        /// Where it should listen.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The service is not ready.
    #[error("{0}")]
    NotReady(String),
}

impl From<tokio_postgres::Error> for CommandError {
    fn from(error: tokio_postgres::Error) -> Self {
        CommandError::Database(error.into())
    }
}

impl From<PoolError> for CommandError {
    fn from(error: PoolError) -> Self {
        CommandError::Database(error.into())
    }
}
