//! Reads a user's own log, JSON Lines or CSV. Every bad line is reported, and none is skipped silently.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use msg_common::limits::Limits;
use msg_common::proto::SessionType;
use serde::Deserialize;

use super::error::DemoError;
use super::log::{Line, Log};

/// Maximum number of reported bad lines: the file may not be a log.
const REPORTED_LINES: usize = 20;

/// The gateway's default limits, which apply to every message of a log.
const LIMITS: Limits = Limits { max_id_bytes: 256, max_content_bytes: 1_000_000 };

/// An entry of the file. Other keys and columns are allowed, and are not sent.
#[derive(Deserialize)]
struct Entry {
    #[serde(alias = "sender")]
    from: String,
    #[serde(alias = "receiver")]
    to: String,
    text: String,
    time: Option<Time>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Text(String),
    Number(serde_json::Number),
}

/// Reads the file; the demo replays its lines in their order. A name that ends in `.csv` is CSV with a header.
pub(crate) fn load(path: &Path) -> Result<Log, DemoError> {
    let text = fs::read_to_string(path).map_err(DemoError::io("read", path))?;
    let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let entries = if is_csv { csv_entries(&text) } else { json_entries(&text) };
    let lines = lines(entries).map_err(|problems| DemoError::Log(format!("{}:\n{problems}", path.display())))?;
    if lines.is_empty() {
        return Err(DemoError::Log(format!("{} has no messages", path.display())));
    }
    Ok(Log { about: path.display().to_string(), lines })
}

/// A line number, and the entry or the error of this line.
type Numbered = (u64, Result<Entry, String>);

fn json_entries(text: &str) -> Vec<Numbered> {
    let numbered = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    // The parser gets one line at a time, so its own line number is always 1.
    let describe = |error: serde_json::Error| error.to_string().replace(" at line 1 column ", " at column ");
    numbered.map(|(number, line)| (number, serde_json::from_str(line).map_err(describe))).collect()
}

fn csv_entries(text: &str) -> Vec<Numbered> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = match reader.headers() {
        Ok(header) => header.clone(),
        Err(error) => return vec![(1, Err(error.to_string()))],
    };
    let column = |names: &[&str]| header.iter().position(|name| names.contains(&name.trim()));
    let (from, to) = (column(&["from", "sender"]), column(&["to", "receiver"]));
    let (Some(from), Some(to), Some(text)) = (from, to, column(&["text"])) else {
        return vec![(1, Err("the header must name the columns from, to and text (and may name time)".to_owned()))];
    };
    let time = column(&["time"]);
    let mut entries = Vec::new();
    for record in reader.records() {
        match record {
            Ok(record) => {
                let field = |index: usize| record.get(index).unwrap_or_default().to_owned();
                let time = time.map(field).filter(|time| !time.is_empty()).map(Time::Text);
                let number = record.position().map_or(0, csv::Position::line);
                entries.push((number, Ok(Entry { from: field(from), to: field(to), text: field(text), time })));
            }
            Err(error) => {
                let number = error.position().map_or(0, csv::Position::line);
                entries.push((number, Err(error.to_string())));
            }
        }
    }
    entries
}

/// Returns the lines of the log, or all problems, one a line.
fn lines(entries: Vec<Numbered>) -> Result<Vec<Line>, String> {
    let mut conversations: HashMap<[String; 2], usize> = HashMap::new();
    let mut lines = Vec::with_capacity(entries.len());
    let mut problems = Vec::new();
    for (number, entry) in entries {
        let checked = entry.and_then(|entry| {
            let next = conversations.len();
            let mut pair = [entry.from.clone(), entry.to.clone()];
            pair.sort();
            let line = Line {
                conversation: *conversations.entry(pair).or_insert(next),
                id: format!("line-{number}"),
                from: entry.from,
                to: entry.to,
                session: SessionType::Single,
                text: entry.text,
                time: entry.time.map(|time| match time {
                    Time::Text(text) => text,
                    Time::Number(number) => number.to_string(),
                }),
            };
            check(&line).map(|()| line)
        });
        match checked {
            Ok(line) => lines.push(line),
            Err(problem) => problems.push(format!("  line {number}: {problem}")),
        }
    }
    if problems.is_empty() {
        return Ok(lines);
    }
    let more = problems.len().saturating_sub(REPORTED_LINES);
    problems.truncate(REPORTED_LINES);
    if more > 0 {
        problems.push(format!("  and {more} more"));
    }
    Err(problems.join("\n"))
}

/// Checks a line by the gateway's rules, so that a log that the gateway would reject fails before the stack starts.
fn check(line: &Line) -> Result<(), String> {
    let broken = LIMITS.violations("", &line.clone().into_msg());
    if broken.is_empty() {
        return Ok(());
    }
    let key = |field: &str| match field {
        ".recv_id" => "to",
        ".send_id" => "from",
        ".content" => "text",
        _ => "time",
    };
    let problems: Vec<String> =
        broken.iter().map(|broken| format!("{} {}", key(&broken.field), broken.description)).collect();
    Err(problems.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Log, DemoError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(name);
        fs::write(&path, text).expect("own folder");
        load(&path)
    }

    #[test]
    fn json_lines_and_csv_give_the_same_lines() {
        let json = "{\"from\":\"a\",\"to\":\"b\",\"text\":\"hi, \\\"you\\\"\",\"time\":\"2024\",\"mood\":1}\n\n\
                    {\"sender\":\"b\",\"receiver\":\"a\",\"text\":\"\",\"time\":7}\n";
        let csv = "from,mood,to,text,time\na,1,b,\"hi, \"\"you\"\"\",2024\nb,,a,,7\n";
        for (name, text) in [("log.jsonl", json), ("log.CSV", csv)] {
            let lines = read(name, text).expect("valid").lines;
            let fields: Vec<_> = lines.iter().map(|l| (&*l.from, &*l.to, &*l.text, l.time.as_deref())).collect();
            assert_eq!(fields, [("a", "b", "hi, \"you\"", Some("2024")), ("b", "a", "", Some("7"))], "{name}");
            assert_eq!(lines[0].conversation, lines[1].conversation);
        }
    }

    #[test]
    fn every_bad_line_is_reported() {
        let json = "{\"from\":\"a\",\"to\":\"b\",\"text\":\"x\"}\nnonsense\n{\"from\":\"\",\"to\":\"b\\u0000\",\"text\":\"x\"}\n";
        let said = read("log.jsonl", json).expect_err("two are bad").to_string();
        assert!(said.contains("line 2: expected") && said.contains("line 3: to must not contain"), "{said}");
        assert!(said.contains("from must not be empty") && !said.contains("line 1"), "{said}");
        let said = read("log.csv", "from,to,text\na,b\na,b,c\n").expect_err("a field is missing").to_string();
        assert!(said.contains("line 2"), "{said}");
        let said = read("log.csv", "who,text\na,b\n").expect_err("no such columns").to_string();
        assert!(said.contains("line 1: the header must name"), "{said}");
        let said = read("log.jsonl", &"x\n".repeat(100)).expect_err("no log").to_string();
        assert!(said.contains("line 20") && said.contains("and 80 more"), "{said}");
        read("log.jsonl", "\n").expect_err("empty");
    }
}
