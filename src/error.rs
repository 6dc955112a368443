//! How an error is printed: once, where it is handled, with all of its sources.

use std::error::Error;

/// Returns the texts of an error and of its sources, separated by colons. Leaves out a source whose text is already there: some
/// libraries print their source themselves.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let says = cause.to_string();
        if !text.contains(&says) {
            text.push_str(": ");
            text.push_str(&says);
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
