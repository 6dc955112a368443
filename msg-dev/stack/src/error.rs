//! Owns the one error type of the local stack. Each message names the program, the file and the next step.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// An error while the stack is fetched, started, used or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A program that the machine must have is missing, or too old.
    #[error("{what}; install it with: {install}")]
    Missing {
        /// The problem, as a sentence.
        what: String,
        /// The command that installs it.
        install: &'static str,
    },
    /// A file operation failed.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// The operation, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A setting or a folder is invalid.
    #[error("{0}")]
    Setting(String),
    /// A program that should run to its end (Maven, initdb, Kafka's format) failed.
    #[error("{program} failed ({status}):\n{output}")]
    Program {
        /// The name of the program.
        program: String,
        /// The exit status.
        status: ExitStatus,
        /// The end of the program's output.
        output: String,
    },
    /// A fetched file does not match its pinned checksum.
    #[error("{path}: {problem}")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// How the file differs.
        problem: String,
    },
    /// A child process ended before it was stopped.
    #[error("{name} ended unexpectedly ({status}); the end of {log}:\n{tail}")]
    Died {
        /// The name of the child.
        name: String,
        /// The exit status.
        status: ExitStatus,
        /// The child's log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A child did not become ready before the timeout.
    #[error("{name} was not ready after {} s; the end of {log}:\n{tail}", .waited.as_secs())]
    NotReady {
        /// The name of the child.
        name: String,
        /// The timeout.
        waited: Duration,
        /// The child's log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The server at a given address did not respond.
    #[error("{name} at {address} did not respond within {} s", .waited.as_secs())]
    NoResponse {
        /// The program that was expected at the address.
        name: &'static str,
        /// The address, without a password.
        address: String,
        /// The timeout.
        waited: Duration,
    },
    /// Kafka rejected an operation.
    #[error("kafka: {doing}: {detail}")]
    Kafka {
        /// The operation.
        doing: String,
        /// The error text of the client.
        detail: String,
    },
    /// PostgreSQL rejected an operation.
    #[error("postgresql: {doing}: {source}")]
    Database {
        /// The operation.
        doing: &'static str,
        /// The cause.
        source: tokio_postgres::Error,
    },
}

impl StackError {
    /// For `map_err`: returns an I/O error that names the operation and the file.
    pub fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> StackError {
        let path = path.as_ref().to_owned();
        move |source| StackError::Io { doing, path, source }
    }
}
