//! Owns the one error type of the fault lab.

use std::io;
use std::path::{Path, PathBuf};

use msg_stack::StackError;

/// An error that ends the fault lab; a broken promise is [`LabError::Broken`].
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error(transparent)]
    Stack(#[from] StackError),
    #[error("cannot {doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("query the database: {0}")]
    Database(#[from] tokio_postgres::Error),
    #[error("send a request to Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    #[error("{0}")]
    Setting(String),
    /// An operation did not finish before its timeout.
    #[error("{0}")]
    Stuck(String),
    #[error("{broken} promises are broken")]
    Broken { broken: usize },
    #[error("interrupted")]
    Interrupted,
}

impl LabError {
    /// Returns the error of a build that cannot run with `--secure`.
    #[cfg(not(feature = "secure"))]
    pub(crate) fn not_built() -> LabError {
        LabError::Setting(
            "this build is without the Cargo feature `secure`, which is on by default: build msg-dev with it".into(),
        )
    }

    /// For `map_err`: returns an I/O error that names the operation and the file.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> LabError {
        let path = path.as_ref().to_owned();
        move |source| LabError::Io { doing, path, source }
    }
}
