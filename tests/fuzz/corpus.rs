//! Runs the fuzz targets on every input of the corpus: bugs that fuzzing found stay fixed, and no fuzzer is needed for that.

#![allow(unreachable_pub, reason = "the modules are those of the fuzz targets, where they are public")]

#[path = "src/framing.rs"]
mod framing;
#[path = "src/record.rs"]
mod record;
#[path = "src/request.rs"]
mod request;

use std::path::Path;

fn each(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).expect("it is part of the project");
    let inputs: Vec<_> = files.map(|file| file.expect("it can be listed").path()).collect();
    assert!(inputs.len() >= 20, "only {} files in {}", inputs.len(), folder.display());
    for input in inputs {
        let bytes = std::fs::read(&input).expect("it can be read");
        let result = std::panic::catch_unwind(|| run(&bytes));
        assert!(result.is_ok(), "{} breaks a rule", input.display());
    }
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
