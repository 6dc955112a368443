//! The output of commands: a table for people, or JSON for programs.

use std::borrow::Cow;
use std::io::{self, ErrorKind, Write};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, ValueEnum};
use serde::Serialize;

#[derive(Args, Clone, Copy, Debug)]
pub struct OutputOptions {
    /// Format of the result
    #[arg(long, default_value = "table", value_name = "FORM")]
    pub output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people
    Table,
    /// One JSON document on one line
    Json,
}

impl OutputOptions {
    /// Writes the result to standard output.
    pub fn print(self, json: &impl Serialize, table: impl FnOnce() -> String) -> io::Result<()> {
        match self.output {
            Form::Table => write(&table()),
            Form::Json => write(&json_line(json)),
        }
    }
}

/// Returns the JSON document of a result, on one line.
pub(super) fn json_line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).expect("results hold nothing that JSON cannot");
    line.push('\n');
    line
}

/// Writes to standard output. It is no error if the reader closed it, as `head` does.
pub(super) fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// A table whose columns are as wide as their longest cell.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &[&str]) -> Self {
        Table { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

pub(super) fn pairs<N: ToString>(pairs: impl IntoIterator<Item = (N, String)>) -> String {
    let mut table = Table { rows: Vec::new() };
    for (name, value) in pairs {
        table.row([name.to_string(), value]);
    }
    table.text()
}

pub(super) fn yes_or_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Escapes control characters, which a terminal could execute as commands.
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escape).collect())
}

/// Returns bytes as escaped text if they are UTF-8, otherwise as `base64:` and their encoding.
pub(super) fn bytes_for_people(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => harmless(text).into_owned(),
        Err(_) => format!("base64:{}", base64(bytes)),
    }
}

pub(super) fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Formats a duration in whole seconds, or in milliseconds if it is shorter than a second.
pub(super) fn for_people(time: Duration) -> String {
    let time = if time < Duration::from_secs(1) {
        Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(0))
    } else {
        Duration::from_secs(time.as_secs())
    };
    humantime::format_duration(time).to_string()
}

pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_columns_are_aligned() {
        let mut table = Table::new(&["a", "long heading"]);
        table.row(["longer".to_owned(), "é".to_owned()]);
        table.row(["é".to_owned(), or_dash(None::<i32>)]);
        assert_eq!(table.text(), "a       long heading\nlonger  é\né       -\n");
    }

    #[test]
    fn control_characters_are_escaped_for_the_terminal() {
        assert_eq!(bytes_for_people(b"bob"), "bob");
        assert_eq!(bytes_for_people("\u{1b}[2Jé".as_bytes()), "\\u{1b}[2Jé");
        assert_eq!(bytes_for_people(b"\xff"), "base64:/w==");
    }
}
