//! The recorded costs, and the comparison with those that were measured now.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Error, results};

#[derive(Clone, Debug, Args)]
pub(crate) struct Check {
    /// Record the figures of this run instead of comparing them with the recorded ones
    #[arg(long)]
    record: bool,
    /// The file of recorded figures
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/recorded.json"))]
    recorded: PathBuf,
}

/// A figure of this run. More is worse.
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) value: f64,
    /// The share by which it may exceed the recorded one; none if it is shown only, because it depends on the machine.
    pub(crate) tolerance: Option<f64>,
}

#[derive(Serialize, Deserialize)]
struct Recorded {
    value: f64,
    /// What it was recorded with.
    with: String,
}

type File = BTreeMap<String, Recorded>;

impl Check {
    /// Records the figures, or prints how they differ from the recorded ones. Returns an error if one exceeds its
    /// tolerance.
    pub(crate) fn judge(&self, measured: &[Measured]) -> Result<(), Error> {
        let mut file = read(&self.recorded)?;
        if self.record {
            let with = compiler();
            for Measured { name, value, .. } in measured {
                println!("recorded {name}: {value:.3}");
                // Rounded, so that a diff of the file shows changes that matter.
                let value = (value * 1000.0).round() / 1000.0;
                file.insert(name.clone(), Recorded { value, with: with.clone() });
            }
            return results::write(&self.recorded, &format!("{}\n", serde_json::to_string_pretty(&file)?));
        }
        let mut exceeded = Vec::new();
        for measured in measured {
            let (line, exceeds) = compare(measured, file.get(&measured.name));
            println!("{line}");
            exceeded.extend(exceeds.then_some(line));
        }
        if exceeded.is_empty() {
            return Ok(());
        }
        let why =
            "If nothing is recorded, the change is worth it, or the compiler changed: make bench-check ARGS=--record";
        Err(format!("costs more than recorded, or is not recorded yet:\n{}\n{why}", exceeded.join("\n")).into())
    }
}

/// Returns the line for a figure, and whether it exceeds its tolerance. A figure without a recorded one does.
fn compare(measured: &Measured, recorded: Option<&Recorded>) -> (String, bool) {
    let Measured { name, value, tolerance } = measured;
    let Some(Recorded { value: before, with }) = recorded else {
        return (format!("{name}: {value:.3}, and none is recorded"), true);
    };
    let change = value / before - 1.0;
    let limit = tolerance.map_or("shown only".to_owned(), |share| format!("limit {:+.0} %", share * 100.0));
    let line = format!("{name}: {value:.3}, recorded {before:.3} ({:+.1} %, {limit}; {with})", change * 100.0);
    (line, tolerance.is_some_and(|share| change > share))
}

fn read(path: &Path) -> Result<File, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(File::new()),
        Err(error) => Err(format!("cannot read {}: {error}", path.display()).into()),
    }
}

fn compiler() -> String {
    let version = Command::new("rustc").arg("--version").output();
    version.map_or("unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, tolerance: Option<f64>) -> [Measured; 1] {
        [Measured { name: "cost".to_owned(), value, tolerance }]
    }

    #[test]
    fn more_than_the_tolerance_is_an_error_and_less_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let check = |record| Check { record, recorded: folder.path().join("recorded.json") };
        let error = check(false).judge(&figure(1.0, Some(0.05))).expect_err("nothing is recorded").to_string();
        assert!(error.contains("none is recorded"), "{error}");
        check(true).judge(&figure(100.0, Some(0.05))).expect("recorded");
        for value in [50.0, 100.0, 104.9] {
            check(false).judge(&figure(value, Some(0.05))).expect("within the tolerance");
        }
        let error = check(false).judge(&figure(105.1, Some(0.05))).expect_err("too much").to_string();
        assert!(error.contains("cost: 105.100, recorded 100.000 (+5.1 %, limit +5 %"), "{error}");
        check(false).judge(&figure(900.0, None)).expect("it is shown only");
        // Other figures stay recorded.
        check(true).judge(&[Measured { name: "other".to_owned(), value: 1.0, tolerance: None }]).expect("recorded");
        check(false).judge(&figure(106.0, Some(0.05))).expect_err("too much");
    }
}
