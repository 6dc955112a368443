//! Owns the state folder: one stack at a time locks it, and `fresh` empties only a folder that has the lock file.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::StackError;
use super::process::POLL;

/// The file that marks a folder as a state folder, and that is locked while a stack uses it.
const LOCK: &str = "msg-dev.lock";
/// How long to wait for a folder that another process has locked.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// A folder with the data and logs of one stack, locked while this value lives.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    logs: PathBuf,
    _lock: File,
}

impl State {
    /// The default state folder: as root `/var/lib/msg-dev`, since PostgreSQL runs as another user, who often cannot
    /// enter the folder of a clone; else `state` in the cache folder.
    pub fn default_folder() -> PathBuf {
        if msg_fetch::is_root() { PathBuf::from("/var/lib/msg-dev") } else { msg_fetch::default_cache().join("state") }
    }

    /// Locks the folder, and creates it if it does not exist; `fresh` empties it.
    pub(super) fn open(folder: &Path, fresh: bool) -> Result<State, StackError> {
        let folder = std::path::absolute(folder).map_err(StackError::io("resolve", folder))?;
        fs::create_dir_all(&folder).map_err(StackError::io("create", &folder))?;
        let path = folder.join(LOCK);
        let foreign = !path.exists() && first_entry(&folder)?.is_some();
        if foreign {
            let folder = folder.display();
            return Err(StackError::Setting(format!(
                "{folder} contains other files: choose an empty folder for the state"
            )));
        }
        let lock = File::create(&path).map_err(StackError::io("create", &path))?;
        lock_folder(&lock, &folder)?;
        if fresh {
            empty(&folder)?;
        }
        let logs = folder.join("logs");
        for folder in [&folder, &logs, &folder.join("postgres")] {
            fs::create_dir_all(folder).map_err(StackError::io("create", folder))?;
            // PostgreSQL may run as another user, who must be able to enter this folder. Its data folder is private.
            if msg_fetch::is_root() {
                fs::set_permissions(folder, fs::Permissions::from_mode(0o711))
                    .map_err(StackError::io("change the mode of", folder))?;
            }
        }
        Ok(State { folder, logs, _lock: lock })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the log files; each process has one file.
    pub fn logs(&self) -> &Path {
        &self.logs
    }
}

/// Locks the folder. Waits a little: a predecessor that was killed just now may still be ending.
fn lock_folder(lock: &File, folder: &Path) -> Result<(), StackError> {
    let began = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_TIMEOUT => std::thread::sleep(POLL),
            Err(TryLockError::WouldBlock) => {
                let folder = folder.display();
                return Err(StackError::Setting(format!(
                    "another msg-dev uses {folder}: stop it or choose another folder"
                )));
            }
            Err(TryLockError::Error(error)) => return Err(StackError::io("lock", folder)(error)),
        }
    }
}

fn first_entry(folder: &Path) -> Result<Option<PathBuf>, StackError> {
    let mut entries = fs::read_dir(folder).map_err(StackError::io("read", folder))?;
    entries.next().transpose().map(|entry| entry.map(|entry| entry.path())).map_err(StackError::io("read", folder))
}

/// Removes everything except the lock file.
fn empty(folder: &Path) -> Result<(), StackError> {
    for entry in fs::read_dir(folder).map_err(StackError::io("read", folder))? {
        let entry = entry.map_err(StackError::io("read", folder))?;
        let path = entry.path();
        if entry.file_name() == LOCK {
            continue;
        }
        let is_folder = entry.file_type().map_err(StackError::io("read", &path))?.is_dir();
        let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(StackError::io("remove", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_folder_has_one_user_and_only_a_marked_one_is_emptied() {
        let top = tempfile::tempdir().expect("a temporary folder");
        let folder = top.path().join("state");
        let state = State::open(&folder, false).expect("a new folder");
        fs::write(folder.join("data"), "x").expect("own folder");
        State::open(&folder, false).expect_err("locked by another stack");
        drop(state);
        let reopened = State::open(&folder, false).expect("unlocked again");
        assert!(folder.join("data").exists());
        drop(reopened);
        State::open(&folder, true).expect("ours");
        assert!(!folder.join("data").exists());

        let foreign = top.path().join("home");
        fs::create_dir(&foreign).expect("own folder");
        fs::write(foreign.join("thesis"), "x").expect("own folder");
        State::open(&foreign, true).expect_err("not a state folder");
        assert!(foreign.join("thesis").exists());
    }
}
