//! A file that lines are appended to. After a rotation, the next line goes to the new file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub(super) struct AppendedFile {
    path: PathBuf,
    file: File,
}

impl AppendedFile {
    /// Opens the file, or creates it for its owner and group.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        Ok(AppendedFile { path: path.to_owned(), file })
    }

    /// Returns whether the path leads to the open file. A rotation has renamed or removed it otherwise.
    fn is_current(&self) -> bool {
        let identity = |found: io::Result<fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
        let found = identity(fs::metadata(&self.path));
        found.is_some() && found == identity(self.file.metadata())
    }
}

impl Write for AppendedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_current() {
            *self = AppendedFile::open(&self.path)?;
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_after_a_rotation_goes_to_the_new_file() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let (path, rotated) = (folder.path().join("audit"), folder.path().join("audit.1"));
        let mut file = AppendedFile::open(&path).expect("it is created");
        let mode = fs::metadata(&path).expect("it exists").mode();
        assert_eq!(mode & 0o137, 0, "others can read it: {mode:o}");
        file.write_all(b"one\n").expect("it is written");
        fs::rename(&path, &rotated).expect("it is renamed");
        file.write_all(b"two\n").expect("it is written");
        fs::remove_file(&rotated).expect("it is removed");
        AppendedFile::open(&path).expect("it exists").write_all(b"three\n").expect("another process appends");
        file.write_all(b"four\n").expect("it is written");
        assert_eq!(fs::read_to_string(&path).expect("it exists"), "two\nthree\nfour\n");
        assert!(AppendedFile::open(folder.path()).is_err(), "a folder is no file");
    }
}
