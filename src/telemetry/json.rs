//! Formats a log line as one JSON object with unique keys, whatever the names of an event's fields are. tracing-subscriber's
//! own formatter repeats a key if an event has a field of that name, and JSON readers differ in which one they use.

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
        // An event of the `log` crate has its own level and target in fields.
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let mut line = Line::new(metadata.level().as_str(), metadata.target());
        // Log only the names of spans: their fields may contain content that must not be logged.
        let spans: Vec<Value> =
            context.event_scope(event).into_iter().flatten().map(|span| Value::from(span.name())).collect();
        if !spans.is_empty() {
            line.add("spans", &spans.into());
        }
        event.record(&mut line);
        self.0.push(line.end());
    }
}

pub(super) struct Line {
    text: String,
    keys: Vec<String>,
}

impl Line {
    /// Returns a line that starts with the time, this level and this target.
    pub(super) fn new(level: &str, target: &str) -> Self {
        let mut line = Line { text: "{".to_owned(), keys: Vec::new() };
        line.add("timestamp", &humantime::format_rfc3339_micros(SystemTime::now()).to_string().into());
        line.add("level", &level.into());
        line.add("target", &target.into());
        line
    }

    /// Adds a field. If the line already has a field of this name, the key gets an underscore at its end.
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

    pub(super) fn end(mut self) -> Vec<u8> {
        self.text.push_str("}\n");
        self.text.into_bytes()
    }

    fn field(&mut self, field: &Field, value: &Value) {
        // Skip the `log` crate's metadata: the line already has the level and the target, and the file is a path of the build
        // machine.
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
        // The value is null if JSON cannot express the number.
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
