//! Owns the one error type of the demo.

use std::io;
use std::path::{Path, PathBuf};

use msg_lab::LabError;
use msg_stack::StackError;

/// Why the demo ended without a verdict, or with a bad one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// Kafka, PostgreSQL or a service.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The load, or what the checker needs.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A file operation failed.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// The operation, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The log is not what it should be.
    #[error("{0}")]
    Log(String),
    /// A call failed for good.
    #[error("{call}: {status}")]
    Call {
        /// Which one.
        call: String,
        /// The answer.
        status: Box<tonic::Status>,
    },
    /// The gateway's answer breaks the contract.
    #[error("{0}")]
    Answer(String),
    /// Kafka refused a question.
    #[error("ask Kafka for offsets: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted; everything that was started is stopped")]
    Interrupted,
    /// A promise does not hold.
    #[error("{broken} of the promises above did not hold")]
    Broken {
        /// How many.
        broken: usize,
    },
}

impl DemoError {
    /// For `map_err`: an I/O error with the file it is about.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> DemoError {
        let path = path.as_ref().to_owned();
        move |source| DemoError::Io { doing, path, source }
    }
}
