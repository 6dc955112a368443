//! Prints an error with all of its sources, once, where it is handled.

use std::error::Error;

/// Returns the texts of an error and of its sources, separated by colons. Leaves out a source whose text is already in the
/// result, because some libraries print their source themselves.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
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
