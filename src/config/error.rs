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
    #[error("cannot read {}", shown(.path))]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: it is not text in UTF-8", .0.display())]
    NotText(PathBuf),
    #[error("{}: it is empty", .0.display())]
    Empty(PathBuf),
    #[error("{}: it has more than one line, and a password is one", .0.display())]
    Lines(PathBuf),
}

/// Returns the path as an error may show it. A path that is not absolute may be the secret itself, which the operator gave
/// instead of its file.
fn shown(path: &Path) -> String {
    let is_path = path.is_absolute() && !path.to_string_lossy().contains(char::is_control);
    if is_path {
        path.display().to_string()
    } else {
        "the file (its path is not absolute, so it is not shown: it may be the secret itself)".to_owned()
    }
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

/// Reads a password from a file, without a byte-order mark and without the line end after it. Spaces are a part of it.
pub fn read_password(path: &Path) -> Result<String, FileError> {
    let text = read_text(path)?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(FileError::Empty(path.to_owned()));
    }
    if password.contains(['\r', '\n']) {
        return Err(FileError::Lines(path.to_owned()));
    }
    Ok(password.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    #[test]
    fn password_is_the_only_line_of_its_file() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = folder.path().join("password");
        for (content, expected) in [
            ("hunter2", Ok("hunter2")),
            ("hunter2\n", Ok("hunter2")),
            ("hunter2\r\n\r\n", Ok("hunter2")),
            ("\u{feff}hunter2\n", Ok("hunter2")),
            (" p@ss,w/rd='\"\\%$\t \n", Ok(" p@ss,w/rd='\"\\%$\t ")),
            ("", Err("it is empty")),
            ("\n\n", Err("it is empty")),
            ("hunter\n2", Err("it has more than one line")),
        ] {
            std::fs::write(&file, content).expect("it is written");
            match (read_password(&file), expected) {
                (Ok(password), Ok(expected)) => assert_eq!(password, expected, "{content:?}"),
                (Err(error), Err(expected)) => {
                    let text = chain(&error);
                    assert!(text.contains(expected) && text.contains("/password: "), "{text}");
                    assert!(!text.contains("hunter"), "{text}");
                }
                (found, _) => panic!("{content:?}: {found:?}"),
            }
        }
        std::fs::write(&file, [0xff, 0xfe]).expect("it is written");
        assert!(matches!(read_password(&file), Err(FileError::NotText(_))));
    }

    #[test]
    fn secret_in_place_of_its_file_is_not_repeated() {
        for secret in ["hunter2", "postgres://app:hunter2@db/x", "-----BEGIN PRIVATE KEY-----\nhunter2", "/hunter2\nx"]
        {
            let error = read_text(Path::new(secret)).expect_err("it is no file");
            let text = format!("{} {error}", chain(&error));
            assert!(text.contains("may be the secret itself") && !text.contains("hunter"), "{text}");
        }
        let error = read_text(Path::new("/nowhere/at/all")).expect_err("it is no file");
        assert!(chain(&error).starts_with("cannot read /nowhere/at/all: No such file"), "{error}");
    }
}
