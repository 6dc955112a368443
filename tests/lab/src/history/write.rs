//! Writes a history.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::{Book, Event};

/// A history that is being written.
#[derive(Debug)]
pub(crate) enum Writer {
    /// Every line is with the system when [`Writer::put`] returns: it outlives a SIGKILL of the load's process.
    File(Mutex<File>),
    /// For a load in the process that checks it.
    Book(Box<Mutex<Book>>),
}

impl Writer {
    /// A new file; one that is there is not touched.
    pub(crate) fn create(path: &Path) -> io::Result<Writer> {
        Ok(Writer::File(Mutex::new(File::options().append(true).create_new(true).open(path)?)))
    }

    pub(crate) fn put(&self, event: Event) -> io::Result<()> {
        match self {
            Writer::File(file) => {
                let mut line = serde_json::to_vec(&event)?;
                line.push(b'\n');
                file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
            }
            Writer::Book(book) => {
                book.lock().unwrap_or_else(PoisonError::into_inner).add(0, event);
                Ok(())
            }
        }
    }

    /// The history so far of a load in this process; empty if it is in a file.
    pub(crate) fn take_book(&self) -> Book {
        match self {
            Writer::File(_) => Book::default(),
            Writer::Book(book) => std::mem::take(&mut book.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}
