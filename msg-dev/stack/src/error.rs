//! Owns the one error type of the local stack. Each message names the program, the file and the next step.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// An error while the stack is started, used or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    #[error(transparent)]
    Fetch(#[from] msg_fetch::FetchError),
    #[error("cannot {doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// A setting or a folder is invalid.
    #[error("{0}")]
    Setting(String),
    #[error("{program} failed ({status}):\n{output}")]
    Program { program: String, status: ExitStatus, output: String },
    #[error("{name} ended unexpectedly ({status}); the end of {log}:\n{tail}")]
    Died { name: String, status: ExitStatus, log: PathBuf, tail: String },
    #[error("{name} was not ready after {} s; the end of {log}:\n{tail}", .waited.as_secs())]
    NotReady { name: String, waited: Duration, log: PathBuf, tail: String },
    #[error("{name} at {address} did not respond within {} s", .waited.as_secs())]
    NoResponse {
        name: &'static str,
        /// The address, without a password.
        address: String,
        waited: Duration,
    },
    #[error("kafka: {doing}: {detail}")]
    Kafka { doing: String, detail: String },
    #[error("postgresql: {doing}: {source}")]
    Database { doing: &'static str, source: tokio_postgres::Error },
}

impl StackError {
    /// For `map_err`: returns an I/O error that names the operation and the file.
    pub fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> StackError {
        let path = path.as_ref().to_owned();
        move |source| StackError::Io { doing, path, source }
    }
}
