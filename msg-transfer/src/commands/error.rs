//! Why a command failed. Its text is logged once, with those of its sources, when the command ends.

mod dead_letters;
mod horizon;

use std::io;
use std::path::PathBuf;

use msg_common::config::SettingError;
use msg_common::kafka::RequestError;
use msg_common::postgres::{DatabaseError, PoolError};

pub(super) use self::dead_letters::{LetterError, ReplayError, SendError};
pub(super) use self::horizon::{HorizonError, horizon};
use crate::lag::LagError;
use crate::schema::SchemaError;

/// Why a command failed, with the source of the error.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The schema does not fit this build.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A query failed, or no connection could be opened.
    #[error("database")]
    Database(#[from] DatabaseError),
    /// A request to Kafka failed.
    #[error("kafka")]
    Kafka(#[from] RequestError),
    /// The lag cannot be read.
    #[error(transparent)]
    Lag(#[from] LagError),
    /// A dead letter cannot be shown, exported or replayed.
    #[error(transparent)]
    Letter(#[from] LetterError),
    /// Not all dead letters were replayed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// Messages of this age must not be deleted.
    #[error(transparent)]
    Horizon(#[from] HorizonError),
    /// The result cannot be written.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
    /// The result cannot be written to this file.
    #[error("cannot write --file {}", .path.display())]
    File {
        /// The path that was given with `--file`.
        path: PathBuf,
        /// The error of the file system.
        #[source]
        source: io::Error,
    },
    /// The service does not respond.
    #[error("no response of the service at --admin-listen {address}; check that it runs")]
    Probe {
        /// The admin address that the service is configured to listen on.
        address: String,
        /// The error of the connection.
        #[source]
        source: io::Error,
    },
    /// The service is not ready, for these reasons.
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
