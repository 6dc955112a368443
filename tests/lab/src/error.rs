//! Owns the lab's one error type.

use std::io;
use std::path::{Path, PathBuf};

use msg_stack::StackError;

/// Why the lab could not do what it should; a broken promise is [`LabError::Broken`].
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error's text says it")]
pub enum LabError {
    #[error(transparent)]
    Stack(#[from] StackError),
    #[error("cannot {doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("ask the database: {0}")]
    Database(#[from] tokio_postgres::Error),
    #[error("ask Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    #[error("{0}")]
    Setting(String),
    /// Something that should have gone on stands still.
    #[error("{0}")]
    Stuck(String),
    #[error("{broken} promises are broken")]
    Broken { broken: usize },
    #[error("interrupted")]
    Interrupted,
}

impl LabError {
    /// For `map_err`: an I/O error with the file it is about.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> LabError {
        let path = path.as_ref().to_owned();
        move |source| LabError::Io { doing, path, source }
    }
}
