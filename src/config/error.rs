//! Owns the errors of settings and of their files.

use std::io;
use std::path::{Path, PathBuf};

/// A setting that cannot be used, by the name of its flag.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error's text names its fields")]
pub enum SettingError {
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Its value breaks a rule.
    #[error("{setting}: {problem}")]
    Invalid {
        setting: &'static str,
        /// What was found, what was expected and what to do.
        problem: String,
    },
    #[error("{setting}")]
    File {
        setting: &'static str,
        #[source]
        source: FileError,
    },
    #[error("{setting}: the file was not read in time")]
    FileTimedOut { setting: &'static str },
    /// Its address cannot be listened on.
    #[error("{setting} {address}: {}; {}", .source, listen_fix(.setting, .source))]
    Listen {
        setting: &'static str,
        address: String,
        /// The system's error, which the text names already.
        #[source]
        source: io::Error,
    },
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error's text names its fields")]
pub enum FileError {
    /// The system returns no content.
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: it is not text in UTF-8", .0.display())]
    NotText(PathBuf),
    #[error("{}: it is empty", .0.display())]
    Empty(PathBuf),
}

impl SettingError {
    /// Returns a function that adds the flag's name to an error of a file.
    pub(crate) fn of_file(setting: &'static str) -> impl FnOnce(FileError) -> Self {
        move |source| SettingError::File { setting, source }
    }
}

/// Reads a text file, without a byte-order mark.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let bytes = std::fs::read(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    let text = String::from_utf8(bytes).map_err(|_| FileError::NotText(path.to_owned()))?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())
}

/// Reads a secret from a file, without a byte-order mark and without the spaces and line ends around it.
pub fn read_secret(path: &Path) -> Result<String, FileError> {
    let text = read_text(path)?.trim().to_owned();
    if text.is_empty() { Err(FileError::Empty(path.to_owned())) } else { Ok(text) }
}

/// Returns what to do about an address, and the variable that sets it.
fn listen_fix(setting: &str, error: &io::Error) -> String {
    let fix = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there: stop it, or give another port",
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
        io::ErrorKind::PermissionDenied => "ports below 1024 need a right that this process does not have",
        _ => "give an address of this machine and a free port",
    };
    let variable = setting.trim_start_matches('-').replace('-', "_").to_uppercase();
    format!("{fix} ({variable})")
}
