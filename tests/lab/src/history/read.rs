//! Reads a history, even while it is being written.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::Event;

/// Reads the lines that are added to a file, at each call of [`HistoryFollower::more`].
#[derive(Debug)]
pub(crate) struct HistoryFollower {
    file: BufReader<File>,
    /// The start of a line that is not complete yet.
    partial: Vec<u8>,
    line: usize,
}

impl HistoryFollower {
    pub(crate) fn open(path: &Path) -> io::Result<HistoryFollower> {
        Ok(HistoryFollower { file: BufReader::with_capacity(1 << 20, File::open(path)?), partial: Vec::new(), line: 0 })
    }

    /// Passes every complete line that was added since the last call to `take`. Ignores a last line without an end,
    /// which a killed load process did not finish.
    pub(crate) fn more(&mut self, mut take: impl FnMut(Event)) -> io::Result<()> {
        loop {
            if self.file.read_until(b'\n', &mut self.partial)? == 0 || self.partial.last() != Some(&b'\n') {
                return Ok(());
            }
            self.line += 1;
            let event = serde_json::from_slice(&self.partial)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("line {}: {error}", self.line)))?;
            self.partial.clear();
            take(event);
        }
    }
}
