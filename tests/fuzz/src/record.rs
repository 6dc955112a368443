//! The record codec: any bytes in the topic are decoded or rejected. A decoded record can be stored, and encodes to the same bytes.

use bytes::Bytes;
use msg_common::limits::unstorable;
use msg_common::record::{DecodeError, decode, encode};

/// One record: a byte that says what of it is there, the key and the version header with a length before each, the value.
pub fn run(data: &[u8]) {
    let Some((flags, rest)) = data.split_first() else { return };
    let (key, rest) = field(rest);
    let (version, value) = field(rest);
    let key = (flags & 1 == 0).then_some(key);
    let version = if flags & 2 == 0 { Some(b"1".as_slice()) } else { Some(version).filter(|_| flags & 4 == 0) };
    let value = (flags & 8 == 0).then(|| Bytes::copy_from_slice(value));
    let record = match decode(key, version, value) {
        Ok(record) => record,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            if let DecodeError::Invalid { detail, .. } = error {
                assert!(!detail.is_empty());
            }
            return;
        }
    };
    assert_eq!(key, Some(record.msg.recv_id.as_bytes()), "an inbox that is not the key");
    assert_eq!(unstorable(&record.msg, record.send_time_ms), None);
    let value = encode(record.msg.clone(), record.msg_id, record.send_time_ms);
    assert_eq!(decode(key, Some(b"1"), Some(value.into())), Ok(record), "what was read is not what is written");
}

/// A length in one byte, and as many bytes as there are of it.
fn field(data: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = data.split_first() else { return (data, data) };
    rest.split_at(usize::from(*length).min(rest.len()))
}
