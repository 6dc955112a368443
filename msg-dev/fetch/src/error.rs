//! Owns the one error type of a fetch. Each message names the program, the file and the next step.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// An error while Kafka and PostgreSQL are found, fetched or checked.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{what}; install it with: {install}")]
    Missing { what: String, install: &'static str },
    #[error("cannot {doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// A folder that the user named is invalid.
    #[error("{0}")]
    Setting(String),
    #[error("{program} failed ({status}):\n{output}")]
    Program { program: &'static str, status: ExitStatus, output: String },
    #[error("{path}: {problem}")]
    Checksum { path: PathBuf, problem: String },
}

impl FetchError {
    /// For `map_err`: returns an I/O error that names the operation and the file.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> FetchError {
        let path = path.as_ref().to_owned();
        move |source| FetchError::Io { doing, path, source }
    }
}
