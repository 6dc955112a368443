//! Reads a history, also while it is written.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::Event;

/// Reads what is added to a file, whenever it is asked.
#[derive(Debug)]
pub(crate) struct Tail {
    file: BufReader<File>,
    /// The begin of a line that is not whole yet.
    begun: Vec<u8>,
    line: usize,
}

impl Tail {
    pub(crate) fn open(path: &Path) -> io::Result<Tail> {
        Ok(Tail { file: BufReader::with_capacity(1 << 20, File::open(path)?), begun: Vec::new(), line: 0 })
    }

    /// Gives `take` every whole line that came since the last call. A last line without its end is what a killed client did not
    /// finish; it is left out.
    pub(crate) fn more(&mut self, mut take: impl FnMut(Event)) -> io::Result<()> {
        loop {
            if self.file.read_until(b'\n', &mut self.begun)? == 0 || self.begun.last() != Some(&b'\n') {
                return Ok(());
            }
            self.line += 1;
            let event = serde_json::from_slice(&self.begun)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("line {}: {error}", self.line)))?;
            self.begun.clear();
            take(event);
        }
    }
}
