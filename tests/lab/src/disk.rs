//! Owns a small file system in a file. Faults fill it up to show what the services do when a disk is full.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::LabError;

/// A mounted file system, unmounted when it is dropped. The image file stays next to the folder, with its content.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Creates an ext4 file system of `bytes` bytes in a sparse file next to the folder, and mounts it there. Needs
    /// root.
    pub(crate) fn mount(folder: &Path, bytes: u64) -> Result<Disk, LabError> {
        let image = folder.with_extension("img");
        let mode = fs::metadata(folder).map(|found| found.permissions().mode()).unwrap_or(0o755);
        fs::create_dir_all(folder).map_err(LabError::io("create", folder))?;
        let file = fs::File::create(&image).map_err(LabError::io("create", &image))?;
        file.set_len(bytes).map_err(LabError::io("enlarge", &image))?;
        // Reserve no blocks for root: the brokers may run as root.
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"])
            .arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(folder))?;
        let disk = Disk { folder: folder.to_owned() };
        let lost = folder.join("lost+found");
        fs::remove_dir(&lost).map_err(LabError::io("remove", lost))?;
        fs::set_permissions(folder, fs::Permissions::from_mode(mode))
            .map_err(LabError::io("change the mode of", folder))?;
        Ok(disk)
    }

    pub(crate) fn fill(&self) -> Result<(), LabError> {
        let ballast = self.ballast();
        let file = fs::File::create(&ballast).map_err(LabError::io("create", &ballast))?;
        let mut size = 0_i64;
        // Allocate large steps first, then smaller ones: the file system reports free bytes that it does not give out.
        for step in [1_i64 << 30, 1 << 26, 1 << 22, 1 << 18, 1 << 14, 1 << 12] {
            // SAFETY: the descriptor is open as long as `file` lives.
            while unsafe { libc::posix_fallocate(std::os::fd::AsRawFd::as_raw_fd(&file), size, step) } == 0 {
                size += step;
            }
        }
        Ok(())
    }

    /// Frees the space that [`Disk::fill`] has used.
    pub(crate) fn free(&self) -> Result<(), LabError> {
        let ballast = self.ballast();
        fs::remove_file(&ballast).map_err(LabError::io("remove", ballast))
    }

    /// The file that fills the disk. It is not a folder: a broker refuses only unknown folders.
    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Unmount lazily: a process that is still ending may have files open there.
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.folder)) {
            tracing::warn!("{error}");
        }
    }
}

fn run(command: &mut Command) -> Result<(), LabError> {
    let output = command.output().map_err(LabError::io("run", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let program = command.get_program().display();
    Err(LabError::Setting(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
