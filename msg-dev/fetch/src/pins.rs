//! Owns the pinned SHA-256 lists of the fetched files, and the check of a folder against a list.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::FetchError;

/// Every jar of Kafka and of its dependencies. `sha256sum *.jar` in the folder that `msg-fetch` fills prints this
/// list.
pub(super) const KAFKA: &str = include_str!("kafka-4.3.1.sha256");

/// PostgreSQL's archive as it is in the jar, and the programs in it that the stack runs.
#[cfg(not(target_arch = "aarch64"))]
pub(super) const POSTGRES: &str = include_str!("postgres-17.6.0-amd64.sha256");
/// PostgreSQL's archive as it is in the jar, and the programs in it that the stack runs.
#[cfg(target_arch = "aarch64")]
pub(super) const POSTGRES: &str = include_str!("postgres-17.6.0-arm64v8.sha256");

struct Pin<'a> {
    sha256: &'a str,
    file: &'a str,
}

fn pins(list: &str) -> impl Iterator<Item = Pin<'_>> {
    list.lines().filter_map(|line| {
        let (sha256, file) = line.split_once("  ")?;
        Some(Pin { sha256, file })
    })
}

/// Checks every listed file of the folder whose name `wanted` accepts.
pub(super) fn check(folder: &Path, list: &str, wanted: impl Fn(&str) -> bool) -> Result<(), FetchError> {
    for pin in pins(list).filter(|pin| wanted(pin.file)) {
        let path = folder.join(pin.file);
        let found = match sha256(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FetchError::Checksum { path, problem: "is missing".to_owned() });
            }
            Err(error) => return Err(FetchError::io("read", path)(error)),
        };
        if found != pin.sha256 {
            let problem = format!("SHA-256 is {found}, pinned is {}", pin.sha256);
            return Err(FetchError::Checksum { path, problem });
        }
    }
    Ok(())
}

/// Rejects a folder with a file that is not in the list: the class path contains every jar of the folder.
pub(super) fn check_no_others(folder: &Path, list: &str) -> Result<(), FetchError> {
    for entry in fs::read_dir(folder).map_err(FetchError::io("read", folder))? {
        let entry = entry.map_err(FetchError::io("read", folder))?;
        let name = entry.file_name();
        if !pins(list).any(|pin| name.to_str() == Some(pin.file)) {
            return Err(FetchError::Checksum { path: entry.path(), problem: "is not in the pinned list".to_owned() });
        }
    }
    Ok(())
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  abc.jar\n";

    #[test]
    fn check_finds_changed_missing_and_foreign_files() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("abc.jar");
        assert!(matches!(check(folder.path(), ABC, |_| true), Err(FetchError::Checksum { .. })), "missing");
        fs::write(&file, "abc").expect("own folder");
        check(folder.path(), ABC, |_| true).expect("the pinned content");
        check_no_others(folder.path(), ABC).expect("the folder has no other file");
        fs::write(&file, "xyz").expect("own folder");
        assert!(matches!(check(folder.path(), ABC, |_| true), Err(FetchError::Checksum { .. })), "changed");
        fs::write(folder.path().join("evil.jar"), "").expect("own folder");
        assert!(matches!(check_no_others(folder.path(), ABC), Err(FetchError::Checksum { .. })), "foreign");
    }

    #[test]
    fn lists_are_complete() {
        for (list, least) in [(KAFKA, 90), (POSTGRES, 4)] {
            assert!(list.lines().count() >= least);
            assert_eq!(list.lines().count(), pins(list).filter(|pin| pin.sha256.len() == 64).count());
        }
    }
}
