//! Walks through the sources of an error, and prints an error with all of them, once, where it is handled.

use std::error::Error;
use std::iter::successors;

/// The text for a thread that could not be started.
pub const NO_THREAD: &str =
    "the system has no thread left; raise the limit of processes (ulimit -u, or pids.max of the container)";

/// Returns the sources of an error, its own first.
pub fn sources(error: &dyn Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    successors(error.source(), |&cause| cause.source())
}

/// Returns the texts of an error and of its sources, separated by colons. Leaves out a source whose text is already in the
/// result, because some libraries print their source themselves.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for cause in sources(error) {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {name}")]
    struct ReadError {
        name: &'static str,
        #[source]
        source: PrintedError,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("disk failed: {0}")]
    struct PrintedError(#[source] std::io::Error);

    #[test]
    fn chain_has_each_text_once() {
        let source = PrintedError(std::io::Error::other("no sector"));
        assert_eq!(chain(&ReadError { name: "x", source }), "cannot read x: disk failed: no sector");
    }
}
