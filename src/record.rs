//! Owns the record codec: encodes a message as a Kafka record, and decodes a record or says why it holds no message.

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use crate::limits::unstorable;
use crate::proto::{Msg, MsgRecord};

/// The version that this build writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// The header that carries the version, in decimal digits.
pub const VERSION_HEADER: &str = "msg-version";
/// The header that carries the caller's W3C trace context.
pub const TRACEPARENT_HEADER: &str = "traceparent";

/// A decoded record. Its key was its `recv_id`, and PostgreSQL can store all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The fields that the sender wrote.
    pub msg: Msg,
    /// The ID that the gateway gave the message.
    pub msg_id: Uuid,
    /// When the gateway received the message, in milliseconds since 1970.
    pub send_time_ms: i64,
}

/// Why a record holds no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A newer version wrote it. The deployment is the cause and not the record, so the record may not be skipped.
    #[error("record version {0} is newer than {VERSION}, the newest that this build reads")]
    Newer(u32),
    /// Its bytes cannot be decoded.
    #[error("{0}")]
    Undecodable(String),
    /// It breaks a rule, but its IDs are known.
    #[error("{detail}")]
    Invalid {
        /// The rule that it breaks.
        detail: String,
        /// The inbox that the message names. The key may be another one.
        recv_id: String,
        /// The message's ID, if it has the form of one.
        msg_id: Option<Uuid>,
    },
}

/// Returns the value of the record that holds this message.
pub fn encode(msg: Msg, msg_id: Uuid, send_time_ms: i64) -> Vec<u8> {
    MsgRecord { msg: Some(msg), msg_id: Bytes::copy_from_slice(msg_id.as_bytes()), send_time_ms }.encode_to_vec()
}

/// Returns the size of an uncompressed Kafka batch (format 2) that holds one record, from the sizes of the record's key,
/// value and trace context, in bytes. Kafka compares it with `max.message.bytes`.
pub fn batch_bytes(key: usize, value: usize, traceparent: Option<usize>) -> usize {
    const BATCH_HEADER: usize = 61;
    // The attributes, and the deltas of time and offset, which are 0.
    const RECORD_START: usize = 3;
    let field = |bytes: usize| varint_bytes(bytes) + bytes;
    let traceparent = traceparent.map_or(0, |bytes| field(TRACEPARENT_HEADER.len()) + field(bytes));
    let headers = varint_bytes(2) + field(VERSION_HEADER.len()) + field(VERSION.to_string().len()) + traceparent;
    let record = RECORD_START + field(key) + field(value) + headers;
    BATCH_HEADER + field(record)
}

/// Returns the size of a length that is encoded as Kafka's zigzag varint, in bytes.
fn varint_bytes(length: usize) -> usize {
    let bits = usize::BITS - (2 * length).leading_zeros();
    usize::try_from(bits.div_ceil(7)).unwrap_or(1).max(1)
}

/// Decodes a record from its key, its version header and its value.
pub fn decode(key: Option<&[u8]>, version: Option<&[u8]>, value: Option<Bytes>) -> Result<Record, DecodeError> {
    let undecodable = |what: &str| DecodeError::Undecodable(what.to_owned());
    let version = version.ok_or_else(|| undecodable("no msg-version header"))?;
    let version: u32 = std::str::from_utf8(version)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| undecodable("the msg-version header is not a number"))?;
    if version > VERSION {
        return Err(DecodeError::Newer(version));
    }
    let value = value.ok_or_else(|| undecodable("no value"))?;
    let record = MsgRecord::decode(value).map_err(|error| undecodable(&error.to_string()))?;
    let Some(msg) = record.msg else {
        return Err(undecodable("the value has no msg"));
    };
    let msg_id = Uuid::from_slice(&record.msg_id).ok();
    let broken = if msg_id.is_none() {
        Some(format!("msg_id has {} bytes instead of 16", record.msg_id.len()))
    } else if key != Some(msg.recv_id.as_bytes()) {
        Some("the key is not the recv_id".to_owned())
    } else {
        unstorable(&msg, record.send_time_ms)
    };
    match (msg_id, broken) {
        (Some(msg_id), None) => Ok(Record { msg, msg_id, send_time_ms: record.send_time_ms }),
        (msg_id, broken) => {
            let detail = broken.unwrap_or_default();
            Err(DecodeError::Invalid { detail, recv_id: msg.recv_id, msg_id })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::SessionType;
    use proptest::prelude::*;

    fn msg() -> Msg {
        Msg {
            recv_id: "bob".into(),
            send_id: "alice".into(),
            session_type: SessionType::Single.into(),
            content_type: "text/plain".into(),
            ..Msg::default()
        }
    }

    fn read(key: &[u8], value: Vec<u8>) -> Result<Record, DecodeError> {
        decode(Some(key), Some(b"1"), Some(value.into()))
    }

    #[test]
    fn batch_of_one_record_has_the_bytes_that_kafka_counts() {
        assert_eq!([0, 1, 63, 64, 8191, 8192].map(varint_bytes), [1, 1, 1, 2, 2, 3]);
        // The terms: the batch's header, the record's length, the fields before the key, the key (1 + 3), the value (1 + 2),
        // the number of headers, the version header (1 + 11 + 1 + 1).
        assert_eq!(batch_bytes(3, 2, None), 61 + 1 + 3 + 4 + 3 + 1 + 14);
        assert_eq!(batch_bytes(3, 2, Some(55)), 61 + 2 + 3 + 4 + 3 + 1 + 14 + 12 + 56);
    }

    #[test]
    fn newer_version_differs_from_an_undecodable_record() {
        let value = encode(msg(), Uuid::nil(), 1);
        assert_eq!(decode(Some(b"bob"), Some(b"2"), Some(value.clone().into())), Err(DecodeError::Newer(2)));
        for version in [None, Some(b"".as_slice()), Some(b"x"), Some(b"\xff"), Some(b"-1")] {
            let result = decode(Some(b"bob"), version, Some(value.clone().into()));
            assert!(matches!(result, Err(DecodeError::Undecodable(_))), "{version:?}: {result:?}");
        }
    }

    #[test]
    fn record_is_invalid_if_its_key_is_not_the_inbox() {
        for key in [None, Some(b"".as_slice()), Some(b"bo"), Some(b"\xff")] {
            let result = decode(key, Some(b"1"), Some(encode(msg(), Uuid::nil(), 1).into()));
            let Err(DecodeError::Invalid { recv_id, msg_id, .. }) = result else { panic!("{key:?}: {result:?}") };
            assert_eq!((recv_id.as_str(), msg_id), ("bob", Some(Uuid::nil())));
        }
    }

    #[test]
    fn tombstone_and_empty_value_are_undecodable() {
        assert!(matches!(decode(Some(b"bob"), Some(b"1"), None), Err(DecodeError::Undecodable(_))));
        assert!(matches!(read(b"bob", Vec::new()), Err(DecodeError::Undecodable(_))));
    }

    proptest! {
        #[test]
        fn encoded_record_is_decoded_unchanged(
            recv_id in "[^\0]{1,40}", send_id in "[^\0]{1,40}", client_msg_id in "[^\0]{0,40}",
            session_type in 1..=3i32, content_type in "[a-z/]{0,20}", content in proptest::collection::vec(any::<u8>(), 0..200),
            attributes in proptest::collection::btree_map("[^\0]{1,8}", "[^\0]{0,8}", 0..4),
            id in any::<u128>(), send_time_ms in 0..=crate::limits::MAX_TIME_MS,
        ) {
            let msg = Msg { recv_id, send_id, client_msg_id, session_type, content_type, content: content.into(), attributes };
            let value = encode(msg.clone(), Uuid::from_u128(id), send_time_ms);
            let read = read(msg.recv_id.as_bytes(), value).expect("the record is valid");
            prop_assert_eq!(read, Record { msg, msg_id: Uuid::from_u128(id), send_time_ms });
        }

        #[test]
        fn any_bytes_are_decoded_or_rejected_without_a_panic(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            version in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..4)),
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..100)),
        ) {
            let _ = decode(key.as_deref(), version.as_deref(), value.clone().map(Bytes::from));
            let _ = decode(key.as_deref(), Some(b"1"), value.map(Bytes::from));
        }
    }
}
