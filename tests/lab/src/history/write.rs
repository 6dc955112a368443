//! Writes a history.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::{Book, Event};

/// A history that is being written.
#[derive(Debug)]
pub(crate) enum Writer {
    /// The kernel has each line when [`Writer::put`] returns, so the line survives a SIGKILL of the load's process.
    File(Mutex<File>),
    /// The history of a load in the process that checks it.
    Book(Box<Mutex<Book>>),
}

impl Writer {
    /// Creates a file, or fails if the file exists.
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

    /// Removes and returns the history so far of a load in this process; empty if the history is in a file.
    pub(crate) fn take_book(&self) -> Book {
        match self {
            Writer::File(_) => Book::default(),
            Writer::Book(book) => std::mem::take(&mut book.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}
