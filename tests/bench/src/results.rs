//! The file of a run: its figures, and on what they were measured.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use rdkafka::util::get_rdkafka_version;
use serde::{Deserialize, Serialize};

use super::Error;
use super::figure::Figure;

/// One run of `msg-bench`. A file holds one run or, from `msg-bench report`, several.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The command line without the program.
    pub(crate) command: String,
    pub(crate) ended: String,
    /// What it was measured on, by name.
    pub(crate) on: Vec<(String, String)>,
    pub(crate) figures: Vec<Figure>,
}

impl Run {
    pub(crate) fn new(figures: Vec<Figure>) -> Run {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let on = [
            ("revision", revision()),
            ("Kafka", msg_fetch::KAFKA_VERSION.to_owned()),
            ("PostgreSQL", msg_fetch::POSTGRES_VERSION.to_owned()),
            ("librdkafka", get_rdkafka_version().1),
            ("Linux", read("/proc/sys/kernel/osrelease").trim().to_owned()),
            ("processor", field("/proc/cpuinfo", "model name").unwrap_or_default()),
            ("cores", std::thread::available_parallelism().map_or(0, usize::from).to_string()),
            ("memory", field("/proc/meminfo", "MemTotal").unwrap_or_default()),
        ];
        Run {
            command: args.join(" "),
            ended: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            on: on.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            figures,
        }
    }
}

/// Reads the runs of this file.
pub(crate) fn load(path: &Path) -> Result<Vec<Run>, Error> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let runs = serde_json::from_str(&text);
    Ok(runs.map_err(|error| format!("{} is not a file of msg-bench --json: {error}", path.display()))?)
}

/// Writes the runs, and creates the file's folder.
pub(crate) fn save(path: &Path, runs: &[Run]) -> Result<(), Error> {
    write(path, &serde_json::to_string_pretty(runs)?)
}

/// Writes a file, and creates its folder.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    let created = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written = created.and_then(|()| fs::write(path, text));
    Ok(written.map_err(|error| format!("cannot write {}: {error}", path.display()))?)
}

fn revision() -> String {
    let described = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let described = described.ok().filter(|output| output.status.success());
    described.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Returns the value of the first line `name : value`.
fn field(path: &str, name: &str) -> Option<String> {
    let text = read(path);
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim_start().strip_prefix(':')?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_runs_are_read_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new/run.json");
        save(&path, &[Run::new(Vec::new())]).expect("written");
        let runs = load(&path).expect("read");
        assert!(runs[0].on.iter().all(|(_, value)| !value.is_empty()), "{:?}", runs[0].on);
        let error = load(folder.path()).expect_err("a folder").to_string();
        assert!(error.starts_with("cannot read"), "{error}");
    }
}
