//! Owns the one error type of the demo.

use std::io;
use std::path::{Path, PathBuf};

use msg_lab::LabError;
use msg_stack::StackError;

/// An error that ends the demo, or a verdict with a broken promise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// Kafka, PostgreSQL or a service could not be started, or ended.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The load or the reads for the checker failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// The chat log cannot be read, or breaks a rule.
    #[error("{0}")]
    Log(String),
    #[error("{call}: {status}")]
    Call { call: String, status: Box<tonic::Status> },
    /// A response of the gateway breaks the contract.
    #[error("{0}")]
    Response(String),
    #[error("cannot read offsets from Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    #[error("interrupted; everything that was started is stopped")]
    Interrupted,
    #[error("{broken} of the promises above did not hold")]
    Broken { broken: usize },
}

impl DemoError {
    /// Returns a function for `map_err` that adds the operation and the file to an I/O error.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> DemoError {
        let path = path.as_ref().to_owned();
        move |source| DemoError::Io { doing, path, source }
    }
}
