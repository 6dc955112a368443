//! The instructions that both services need for one message in the code that does no I/O. Callgrind counts them, so they
//! do not depend on the machine's speed and load, and hardly differ between two runs of the same build.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use clap::ValueEnum;

use super::Error;
use super::check::{Check, Measured};
use super::pure::{self, Part};

/// Enough that the first messages, which fill caches, do not count.
const MESSAGES: usize = 20_000;
/// A change above this share is one of the code. Two runs differ by less, since only the seeds of hash tables differ.
const TOLERANCE: f64 = 0.05;
/// Where callgrind writes what each function needed, for `callgrind_annotate`.
const FOLDER: &str = "target/bench";

pub(crate) fn run(check: &Check) -> Result<(), Error> {
    fs::create_dir_all(FOLDER)?;
    let mut measured = Vec::new();
    for part in [Part::Gateway, Part::Transfer] {
        let name = format!("{}: instructions a message", pure::name(part));
        let value = count(part)? as f64 / MESSAGES as f64;
        measured.push(Measured { name, value, tolerance: Some(TOLERANCE) });
    }
    check.judge(&measured)
}

/// Runs the part under callgrind, and returns its instructions.
fn count(part: Part) -> Result<u64, Error> {
    let value = part.to_possible_value().expect("no part is skipped");
    let details = Path::new(FOLDER).join(format!("callgrind.{}.out", value.get_name()));
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", details.display()))
        // Neither the start nor the preparation of the messages counts.
        .arg(format!("--toggle-collect=*{}*", pure::COUNTED))
        .arg(env::current_exe()?)
        .args(["pure", value.get_name(), &MESSAGES.to_string()])
        .output()
        .map_err(|error| format!("valgrind, which scripts/setup bench installs: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = collected(&said).filter(|count| output.status.success() && *count > 0);
    collected.ok_or_else(|| format!("valgrind counted nothing ({}): {said}", output.status).into())
}

/// Returns the number in callgrind's line `Collected : NUMBER`.
fn collected(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_is_read_from_callgrinds_output() {
        let said =
            "==7== Callgrind, a call-graph generating cache profiler\n==7== Events    : Ir\n==7== Collected : 8123\n";
        assert_eq!((collected(said), collected("==7== Collected : \n")), (Some(8123), None));
    }
}
