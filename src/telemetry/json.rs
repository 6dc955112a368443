//! A log line as one JSON object whose keys are unique, whatever the fields of an event are called. tracing-subscriber's own
//! formatter repeats a key when an event has a field of that name, and JSON readers disagree about which one counts.

use std::fmt::{Debug, Write as _};
use std::time::SystemTime;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::writer::LineWriter;

/// Writes each event as a line.
pub(super) struct JsonLines(pub(super) LineWriter);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // An event that came by the `log` crate has its own level and target in fields.
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let mut line = Line::new(metadata.level().as_str(), metadata.target());
        // Names only: a span's fields are its creator's, and may hold what logs must not.
        let spans: Vec<Value> =
            context.event_scope(event).into_iter().flatten().map(|span| Value::from(span.name())).collect();
        if !spans.is_empty() {
            line.add("spans", &spans.into());
        }
        event.record(&mut line);
        self.0.push(line.end());
    }
}

/// A line that is being put together.
pub(super) struct Line {
    text: String,
    keys: Vec<String>,
}

impl Line {
    /// A line that starts with the time, this level and this target.
    pub(super) fn new(level: &str, target: &str) -> Self {
        let mut line = Line { text: "{".to_owned(), keys: Vec::new() };
        line.add("timestamp", &humantime::format_rfc3339_micros(SystemTime::now()).to_string().into());
        line.add("level", &level.into());
        line.add("target", &target.into());
        line
    }

    /// Adds a field. If there is one of this name already, the key gets an underscore at its end.
    pub(super) fn add(&mut self, name: &str, value: &Value) {
        let mut key = name.to_owned();
        while self.keys.contains(&key) {
            key.push('_');
        }
        if !self.keys.is_empty() {
            self.text.push(',');
        }
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{}:{value}", Value::from(key.as_str()));
        self.keys.push(key);
    }

    /// The line, with its line end.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.text.push_str("}\n");
        self.text.into_bytes()
    }

    fn field(&mut self, field: &Field, value: &Value) {
        // The `log` crate's metadata: what of it counts is in the line already, and the file is a path of the build machine.
        if !field.name().starts_with("log.") {
            self.add(field.name().trim_start_matches("r#"), value);
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, &value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, &value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, &value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, &value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // Null where JSON has no such number.
        self.field(field, &value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.field(field, &format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn repeated_and_reserved_names_get_keys_of_their_own() {
        let mut line = Line::new("INFO", "here");
        for name in ["level", "message", "message", "message", "timestamp", "tar\"get"] {
            line.add(name, &1.into());
        }
        let text = String::from_utf8(line.end()).expect("it is text");
        let keys: BTreeMap<String, Value> = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(keys.len(), 9, "{text}");
        assert!(
            ["level_", "message", "message_", "message__", "timestamp_", "tar\"get"].iter().all(|key| keys[*key] == 1)
        );
        assert!(text.starts_with("{\"timestamp\":\"2") && text.ends_with("}\n"), "{text}");
    }
}
