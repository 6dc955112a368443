//! Runs the fuzz targets on every input of the corpus: bugs that fuzzing found stay fixed, and no fuzzer is needed for that.

#![allow(unreachable_pub, reason = "the modules are those of the fuzz targets, where they are public")]

#[path = "src/framing.rs"]
mod framing;
#[path = "src/record.rs"]
mod record;
#[path = "src/request.rs"]
mod request;

use std::path::Path;

/// Runs each input of a corpus: one a line, in hexadecimal.
fn each(target: &str, run: fn(&[u8])) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz/corpus/{target}.hex"));
    let corpus = std::fs::read_to_string(&path).expect("it is part of the project");
    let count = corpus.lines().count();
    assert!(count >= 20, "only {count} inputs in {}", path.display());
    for (line, input) in corpus.lines().enumerate() {
        let bytes =
            bytes(input).unwrap_or_else(|| panic!("line {} of {} is not hexadecimal", line + 1, path.display()));
        let result = std::panic::catch_unwind(|| run(&bytes));
        assert!(result.is_ok(), "line {} of {} breaks a rule", line + 1, path.display());
    }
}

fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    let (pairs, []) = hexadecimal.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    pairs.iter().map(|[high, low]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()).collect()
}

#[test]
fn bodies_of_the_corpus_break_no_rule() {
    each("framing", framing::run);
}

#[test]
fn requests_of_the_corpus_break_no_rule() {
    each("request", request::run);
}

#[test]
fn records_of_the_corpus_break_no_rule() {
    each("record", record::run);
}
