//! Owns the reading of the children's log files; error messages show the end of a log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Maximum number of lines in a message.
const LINES: usize = 25;
/// Maximum number of bytes that are read from the end of a log.
const BYTES: u64 = 16 * 1024;

/// Returns the last lines of a file, indented, or a line that says why there are none.
pub fn tail(path: &Path) -> String {
    match read_end(path) {
        Ok(text) => last_lines(&text),
        Err(error) => format!("  (cannot be read: {error})"),
    }
}

fn last_lines(text: &str) -> String {
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
    fn message_shows_only_the_last_lines() {
        let text: String = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let shown = last_lines(&text);
        assert_eq!(shown.lines().count(), LINES);
        assert!(shown.ends_with("  line 99"));
        assert_eq!(last_lines("\n"), "  (empty)");
    }
}
