//! The programs of docs/clients: where they were built, and one that runs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::support::PATIENCE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    Python,
    Go,
    Java,
    Node,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the project")
}

/// The interpreter that has the Python client's packages: of `PYTHON`, or of the project's own environment.
fn python() -> PathBuf {
    let given = std::env::var_os("PYTHON").filter(|path| !path.is_empty()).map(PathBuf::from);
    given.unwrap_or_else(|| root().join(".tools/venv/bin/python"))
}

/// A program that can be run.
pub(super) struct QuickStart {
    pub(super) language: Language,
    folder: PathBuf,
}

impl QuickStart {
    /// As `scripts/setup test` built it, a copy of the folder in docs/ with proto/ in it. `None`, said aloud, where the
    /// language's tools are missing.
    pub(super) fn of(language: Language) -> Option<QuickStart> {
        let (name, tools): (_, &[&str]) = match language {
            Language::Python => ("python", &[]),
            Language::Go => ("go", &[]),
            Language::Java => ("java", &["mvn", "javac"]),
            Language::Node => ("node", &["npm", "node"]),
        };
        if let Some(missing) = tools.iter().find(|tool| !on_path(tool)) {
            say(&format!("NOT TESTED: the {name} client, as there is no {missing} here"));
            return None;
        }
        let folder = root().join(".tools/clients").join(name);
        if !folder.join(".built").is_file() || !up_to_date(&root().join("docs/clients").join(name), &folder) {
            panic!("the {name} client is not built, or from other files than docs/clients has: run scripts/setup test");
        }
        Some(QuickStart { language, folder })
    }

    /// A script that uses the Python client's files.
    pub(super) fn python(&self, script: &str) -> Command {
        let mut command = Command::new(python());
        command
            .arg(script)
            .current_dir(&self.folder)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONPATH", &self.folder);
        command.kill_on_drop(true);
        command
    }

    /// Runs it with these arguments besides the address.
    pub(super) fn start(&self, address: &str, args: &[&str]) -> Running {
        let (program, first): (PathBuf, &[&str]) = match self.language {
            Language::Python => (python(), &["client.py"]),
            Language::Go => (self.folder.join("client"), &[]),
            // The quick compiler alone: it is over before the other pays.
            Language::Java => ("java".into(), &["-XX:TieredStopAtLevel=1", "-jar", "target/client.jar"]),
            Language::Node => ("node".into(), &["client.js"]),
        };
        let mut child = Command::new(&program)
            .args(first)
            .args(["--address", address])
            .args(args)
            .current_dir(&self.folder)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stderr = child.stderr.take().unwrap();
        let stderr = tokio::spawn(async move {
            let mut text = String::new();
            stderr.read_to_string(&mut text).await.unwrap();
            text
        });
        Running { child, lines, stderr }
    }
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
}

/// Every file of the one folder is in the other, the same. What a user builds in the one does not count.
fn up_to_date(source: &Path, copy: &Path) -> bool {
    let built = ["bin", "gen", "target", "node_modules", "proto", "client", "__pycache__"];
    std::fs::read_dir(source).unwrap().map(Result::unwrap).all(|entry| {
        let (path, copy) = (entry.path(), copy.join(entry.file_name()));
        let same = || std::fs::read(&path).unwrap() == std::fs::read(&copy).unwrap_or_default();
        let at_top = source.parent().is_some_and(|parent| parent.ends_with("docs/clients"));
        (at_top && built.iter().any(|name| entry.file_name() == *name))
            || if path.is_dir() { up_to_date(&path, &copy) } else { same() }
    })
}

/// Whoever reads the run must see that something was not tested.
#[allow(clippy::explicit_write, reason = "the test runner shows what eprintln! prints only if the test fails")]
fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").unwrap();
}

/// A program that runs, and ends with its test.
pub(super) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: tokio::task::JoinHandle<String>,
}

impl Running {
    /// Reads on until a line begins so; a status code is written UNAVAILABLE or Unavailable.
    pub(super) async fn until(&mut self, begin: &str) -> String {
        let search = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.get(..begin.len()).is_some_and(|found| found.eq_ignore_ascii_case(begin)) {
                    return Some(line);
                }
            }
            None
        };
        let found = timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("the client does not come to `{begin}`"));
        match found {
            Some(line) => line,
            None => panic!("the client has ended without a line `{begin}`: {}", (&mut self.stderr).await.unwrap()),
        }
    }

    /// Its last line, once it has ended well.
    pub(super) async fn totals(mut self) -> Value {
        let totals = serde_json::from_str(&self.until("{").await).unwrap();
        assert!(timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap().success(), "{totals}");
        totals
    }

    /// What it says on stderr, once it has ended badly.
    pub(super) async fn failure(mut self) -> String {
        // Or it would wait for somebody to read on.
        while timeout(PATIENCE, self.lines.next_line()).await.expect("the client ends").unwrap().is_some() {}
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        let said = self.stderr.await.unwrap();
        assert!(!status.success(), "the client ended well: {said}");
        said
    }
}
