//! Owns the limits of a message: those that the gateway is configured with, and those of PostgreSQL.

use clap::Args;

use crate::config::parse_bytes;
use crate::proto::{Msg, SessionType};

/// Upper limit of `MAX_ID_BYTES`: an index row of PostgreSQL holds 2,704 bytes.
pub const MAX_ID_BYTES: usize = 1024;

/// The last millisecond of the year 9999, as far as every client's timestamps reach.
pub const MAX_TIME_MS: i64 = 253_402_300_799_999;

/// The default of `MAX_CONTENT_BYTES`: with IDs, attributes and headers, it fits into Kafka's default `max.message.bytes`.
pub const DEFAULT_CONTENT_BYTES: usize = 1_000_000;

/// Maximum number of messages of one batch, or of entries of one stream request.
pub const MAX_REQUEST_MSGS: usize = 1000;

/// The configured limits of a message.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// Maximum length of `recv_id`, `send_id` and `client_msg_id` in bytes; up to 1024. A message with a longer ID
    /// fails with INVALID_FIELDS
    #[arg(long, env = "MAX_ID_BYTES", default_value_t = 256, value_name = "BYTES")]
    pub max_id_bytes: usize,
    /// Maximum size of `content`, such as 1000000 or 1MiB. A message with a larger one fails with INVALID_FIELDS. The
    /// record must fit into the topic's max.message.bytes: the default fits into Kafka's default, 1048588
    #[arg(long, env = "MAX_CONTENT_BYTES", default_value_t = DEFAULT_CONTENT_BYTES, value_parser = parse_bytes, value_name = "SIZE")]
    pub max_content_bytes: usize,
}

const MAX_CONTENT_TYPE_BYTES: usize = 128;
const MAX_ATTRIBUTES: usize = 64;
const MAX_ATTRIBUTE_KEY_BYTES: usize = 128;
const MAX_ATTRIBUTE_VALUE_BYTES: usize = 4096;
/// The maximum of all keys and values of the attributes together.
const MAX_ATTRIBUTES_BYTES: usize = 16_384;

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the request, such as `msg.recv_id`.
    pub field: String,
    /// The rule that it breaks, without its value.
    pub description: String,
}

impl Limits {
    /// Returns a size in bytes that no record of a message within the limits exceeds: the transport and Kafka must accept it.
    pub fn max_record_bytes(&self) -> usize {
        self.max_content_bytes + 3 * self.max_id_bytes + MAX_CONTENT_TYPE_BYTES + 2 * MAX_ATTRIBUTES_BYTES + 4096
    }

    /// Returns every rule that `msg` breaks, with field paths below `path`.
    pub fn violations(&self, path: &str, msg: &Msg) -> Vec<Violation> {
        // Do not write `..` here: it would accept any value of a new field.
        let Msg { recv_id, send_id, client_msg_id, session_type, content_type, content, attributes } = msg;
        let mut found = Vec::new();
        let mut report = |field: &str, description: String| {
            found.push(Violation { field: format!("{path}.{field}"), description });
        };
        for (field, value, required) in
            [("recv_id", recv_id, true), ("send_id", send_id, true), ("client_msg_id", client_msg_id, false)]
        {
            if let Err(description) = text(value, required, self.max_id_bytes) {
                report(field, description);
            }
        }
        match SessionType::try_from(*session_type) {
            Ok(SessionType::Unspecified) => report("session_type", "must be set".into()),
            Ok(_) => {}
            Err(_) => report("session_type", format!("{session_type} is not a SessionType")),
        }
        if let Err(description) = text(content_type, true, MAX_CONTENT_TYPE_BYTES) {
            report("content_type", description);
        }
        if content.len() > self.max_content_bytes {
            report("content", format!("has {} bytes; at most {}", content.len(), self.max_content_bytes));
        }
        if attributes.len() > MAX_ATTRIBUTES {
            report("attributes", format!("has {} entries; at most {MAX_ATTRIBUTES}", attributes.len()));
        }
        let total: usize = attributes.iter().map(|(k, v)| k.len() + v.len()).sum();
        if total > MAX_ATTRIBUTES_BYTES {
            report("attributes", format!("has {total} bytes; at most {MAX_ATTRIBUTES_BYTES}"));
        }
        for (i, (key, value)) in attributes.iter().enumerate() {
            // Name an attribute by its index in key order: a key may be too long, or contain characters that cannot be printed.
            if let Err(description) = text(key, true, MAX_ATTRIBUTE_KEY_BYTES) {
                report(&format!("attributes.keys[{i}]"), description);
            }
            if let Err(description) = text(value, false, MAX_ATTRIBUTE_VALUE_BYTES) {
                report(&format!("attributes.values[{i}]"), description);
            }
        }
        found
    }
}

/// Checks an ID outside a message, such as the inbox of a read.
pub fn check_id(field: &str, value: &str, max_bytes: usize) -> Option<Violation> {
    let description = text(value, true, max_bytes).err()?;
    Some(Violation { field: field.to_owned(), description })
}

fn text(value: &str, required: bool, max_bytes: usize) -> Result<(), String> {
    if required && value.is_empty() {
        Err("must not be empty".into())
    } else if value.len() > max_bytes {
        Err(format!("has {} bytes; at most {max_bytes}", value.len()))
    } else if value.contains('\0') {
        Err("must not contain the character NUL".into())
    } else {
        Ok(())
    }
}

/// Returns why PostgreSQL cannot store this message or find its row; `None` if it can.
///
/// The gateway's limits are stricter. This check is for records that another program wrote to the topic.
pub fn unstorable(msg: &Msg, send_time_ms: i64) -> Option<String> {
    // Do not write `..` here: PostgreSQL would reject a field that is not checked, and its batch would be bisected.
    let Msg { recv_id, send_id, client_msg_id, session_type, content_type, content: _, attributes } = msg;
    for (field, value) in [("recv_id", recv_id), ("send_id", send_id), ("client_msg_id", client_msg_id)] {
        if let Err(description) = text(value, field != "client_msg_id", MAX_ID_BYTES) {
            return Some(format!("{field} {description}"));
        }
    }
    if content_type.contains('\0') || attributes.iter().any(|(k, v)| k.contains('\0') || v.contains('\0')) {
        return Some("content_type or attributes contain the character NUL".into());
    }
    if !matches!(SessionType::try_from(*session_type), Ok(kind) if kind != SessionType::Unspecified) {
        return Some(format!("session_type is {session_type}"));
    }
    if !(0..=MAX_TIME_MS).contains(&send_time_ms) {
        return Some(format!("send_time_ms is {send_time_ms}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { max_id_bytes: 8, max_content_bytes: 10 }
    }

    fn good() -> Msg {
        Msg {
            recv_id: "bob".into(),
            send_id: "alice".into(),
            session_type: SessionType::Single.into(),
            content_type: "text/plain".into(),
            ..Msg::default()
        }
    }

    #[test]
    fn valid_message_breaks_no_rule() {
        assert_eq!(limits().violations("msg", &good()), []);
        assert_eq!(unstorable(&good(), 0), None);
    }

    #[test]
    fn all_invalid_fields_are_reported_together() {
        let bad = Msg {
            recv_id: String::new(),
            send_id: "123456789".into(),
            client_msg_id: "a\0b".into(),
            session_type: 77,
            content_type: String::new(),
            content: vec![0; 11].into(),
            attributes: [(String::new(), "\0".to_owned())].into(),
        };
        let found = limits().violations("msg", &bad);
        let fields: Vec<_> = found.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "msg.recv_id",
                "msg.send_id",
                "msg.client_msg_id",
                "msg.session_type",
                "msg.content_type",
                "msg.content",
                "msg.attributes.keys[0]",
                "msg.attributes.values[0]"
            ]
        );
    }

    #[test]
    fn message_that_the_database_cannot_store_is_rejected() {
        assert!(unstorable(&Msg { recv_id: "a\0".into(), ..good() }, 0).is_some());
        assert!(unstorable(&Msg { recv_id: "a".repeat(1025), ..good() }, 0).is_some());
        assert!(unstorable(&Msg { session_type: 0, ..good() }, 0).is_some());
        assert!(unstorable(&good(), i64::MAX).is_some());
    }
}
