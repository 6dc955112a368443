//! Owns the one error type of the local stack: each message names the part, the file and what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// What can go wrong while the stack is fetched, started, used or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A program that the machine must have is not there, or too old.
    #[error("{what}; install it with: {install}")]
    Missing {
        /// What is missing.
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
    /// A setting or a folder that cannot work.
    #[error("{0}")]
    Setting(String),
    /// A program that runs to its end (Maven, initdb, Kafka's format) failed.
    #[error("{program} failed ({status}):\n{output}")]
    Program {
        /// Which one.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// A fetched file is not the pinned one.
    #[error("{path}: {problem}")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// In which way it differs.
        problem: String,
    },
    /// A child process ended that should have gone on.
    #[error("{name} ended by itself ({status}); the end of {log}:\n{tail}")]
    Died {
        /// Which child.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A child did not become ready in time.
    #[error("{name} was not ready after {} s; the end of {log}:\n{tail}", .waited.as_secs())]
    NotReady {
        /// Which child.
        name: String,
        /// How long was waited.
        waited: Duration,
        /// Its log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// An address given from outside did not answer.
    #[error("{name} at {address} did not answer within {} s", .waited.as_secs())]
    NoAnswer {
        /// What should be there.
        name: &'static str,
        /// Where.
        address: String,
        /// How long was waited.
        waited: Duration,
    },
    /// Kafka refused an operation.
    #[error("kafka: {doing}: {detail}")]
    Kafka {
        /// The operation.
        doing: String,
        /// The client's words.
        detail: String,
    },
    /// PostgreSQL refused an operation.
    #[error("postgresql: {doing}: {source}")]
    Database {
        /// The operation.
        doing: &'static str,
        /// The cause.
        source: tokio_postgres::Error,
    },
}

impl StackError {
    /// For `map_err`: an I/O error with the file it is about.
    pub fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> StackError {
        let path = path.as_ref().to_owned();
        move |source| StackError::Io { doing, path, source }
    }
}
