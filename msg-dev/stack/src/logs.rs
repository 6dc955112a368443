//! Owns the reading of children's log files, for messages that show their end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Lines that a message shows.
const LINES: usize = 25;
/// Bytes that are read from the end of a log.
const BYTES: u64 = 16 * 1024;

/// The last lines of a file, indented; says so when there are none.
pub fn tail(path: &Path) -> String {
    match read_end(path) {
        Ok(text) => last_lines(&text),
        Err(error) => format!("  (cannot be read: {error})"),
    }
}

/// The last lines of a text, indented.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return "  (empty)".to_owned();
    }
    let from = lines.len().saturating_sub(LINES);
    lines[from..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn read_end(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_shown() {
        let text: String = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let shown = last_lines(&text);
        assert_eq!(shown.lines().count(), LINES);
        assert!(shown.ends_with("  line 99"));
        assert_eq!(last_lines("\n"), "  (empty)");
    }
}
