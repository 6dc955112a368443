//! The programs of clients: how they were built, and a running one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::support::WAIT_TIMEOUT;

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

/// The interpreter that has the Python client's packages: from `PYTHON`, or the project's own environment.
fn python() -> PathBuf {
    let configured = std::env::var_os("PYTHON").filter(|path| !path.is_empty()).map(PathBuf::from);
    configured.unwrap_or_else(|| root().join(".tools/venv/bin/python"))
}

pub(super) struct QuickStart {
    pub(super) language: Language,
    folder: PathBuf,
}

impl QuickStart {
    /// The program that `scripts/setup test` built in a copy of its folder in docs/, with proto/ in it. If the
    /// language's tools are missing, prints that and returns `None`.
    pub(super) fn of(language: Language) -> Option<QuickStart> {
        let (name, tools): (_, &[&str]) = match language {
            Language::Python => ("python", &[]),
            Language::Go => ("go", &[]),
            Language::Java => ("java", &["mvn", "javac"]),
            Language::Node => ("node", &["npm", "node"]),
        };
        if let Some(missing) = tools.iter().find(|tool| !on_path(tool)) {
            print(&format!("NOT TESTED: the {name} client, because {missing} is not installed"));
            return None;
        }
        let folder = root().join(".tools/clients").join(name);
        if !folder.join(".built").is_file() || !up_to_date(&root().join("clients").join(name), &folder) {
            panic!("the {name} client is not built, or from other files than clients/ has: run scripts/setup test");
        }
        Some(QuickStart { language, folder })
    }

    /// A command that runs a script with the Python client's files.
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

    /// Starts the program with the address and these arguments.
    pub(super) fn start(&self, address: &str, args: &[&str]) -> Running {
        let (program, first): (PathBuf, &[&str]) = match self.language {
            Language::Python => (python(), &["client.py"]),
            Language::Go => (self.folder.join("client"), &[]),
            // Only the quick compiler: the program ends before the optimizing one pays off.
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

/// Whether every file of `source` is in `copy`, with the same content. Folders that a user's own build creates do not
/// count.
fn up_to_date(source: &Path, copy: &Path) -> bool {
    let built = ["bin", "gen", "target", "node_modules", "proto", "client", "__pycache__"];
    std::fs::read_dir(source).unwrap().map(Result::unwrap).all(|entry| {
        let (path, copy) = (entry.path(), copy.join(entry.file_name()));
        let same = || std::fs::read(&path).unwrap() == std::fs::read(&copy).unwrap_or_default();
        let at_top = source.parent().is_some_and(|parent| parent.ends_with("clients"));
        (at_top && built.iter().any(|name| entry.file_name() == *name))
            || if path.is_dir() { up_to_date(&path, &copy) } else { same() }
    })
}

#[allow(clippy::explicit_write, reason = "the test runner hides the output of eprintln! if a test passes")]
fn print(text: &str) {
    writeln!(std::io::stderr(), "{text}").unwrap();
}

/// A running program, which is killed at the end of its test.
pub(super) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: tokio::task::JoinHandle<String>,
}

impl Running {
    /// Reads lines up to one that starts with `start`, in any case: a language may write UNAVAILABLE or Unavailable.
    pub(super) async fn until(&mut self, start: &str) -> String {
        let search = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start)) {
                    return Some(line);
                }
            }
            None
        };
        let found = timeout(WAIT_TIMEOUT, search)
            .await
            .unwrap_or_else(|_| panic!("the client printed no line `{start}` in time"));
        match found {
            Some(line) => line,
            None => panic!("the client ended without a line `{start}`: {}", (&mut self.stderr).await.unwrap()),
        }
    }

    /// Waits until the program has succeeded; returns its last line.
    pub(super) async fn totals(mut self) -> Value {
        let totals = serde_json::from_str(&self.until("{").await).unwrap();
        assert!(timeout(WAIT_TIMEOUT, self.child.wait()).await.unwrap().unwrap().success(), "{totals}");
        totals
    }

    /// Waits until the program has failed; returns its output on stderr.
    pub(super) async fn failure(mut self) -> String {
        // An unread pipe would block the program.
        while timeout(WAIT_TIMEOUT, self.lines.next_line()).await.expect("the client ends").unwrap().is_some() {}
        let status = timeout(WAIT_TIMEOUT, self.child.wait()).await.unwrap().unwrap();
        let output = self.stderr.await.unwrap();
        assert!(!status.success(), "the client succeeded: {output}");
        output
    }
}
