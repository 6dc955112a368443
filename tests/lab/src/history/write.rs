//! Writes a history.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::Event;

/// A history that is being written. Every line is with the system when [`Writer::put`] returns: it outlives a SIGKILL.
#[derive(Debug)]
pub(crate) struct Writer(Mutex<File>);

impl Writer {
    /// A new file; one that is there is not touched.
    pub(crate) fn create(path: &Path) -> io::Result<Writer> {
        Ok(Writer(Mutex::new(File::options().append(true).create_new(true).open(path)?)))
    }

    /// Adds one line.
    pub(crate) fn put(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }
}
