//! The headers of a record, packed into bytes as a dead letter contains them.

use bytes::Bytes;

/// The headers of a record, packed as a dead letter contains them: for each, the length of its key in 4 bytes, the key,
/// the length of its value in 4 bytes (all ones: no value), the value. Lengths are in network order. Keys and values
/// are bytes, because Kafka does not require UTF-8.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers(pub Bytes);

const NO_VALUE: u32 = u32::MAX;

impl Headers {
    pub(crate) fn packed(&self) -> &[u8] {
        &self.0
    }

    /// Appends one header to `packed`.
    pub(crate) fn pack(packed: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a record is far smaller than 4 GiB");
        packed.extend_from_slice(&length(key).to_be_bytes());
        packed.extend_from_slice(key);
        packed.extend_from_slice(&value.map_or(NO_VALUE, length).to_be_bytes());
        packed.extend_from_slice(value.unwrap_or_default());
    }

    /// Returns the value of the last header with this key, as Kafka's own clients do.
    pub(crate) fn last(&self, key: &str) -> Option<&[u8]> {
        let mut rest: &[u8] = &self.0;
        let mut found = None;
        while let Some((header, after)) = one(rest) {
            if header.key == key.as_bytes() {
                found = header.value;
            }
            rest = after;
        }
        found
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header<'a> {
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
}

/// Packed headers whose end is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the packed headers are truncated")]
pub struct TruncatedError;

/// Returns all of them, in order.
pub(crate) fn unpack(mut packed: &[u8]) -> Result<Vec<Header<'_>>, TruncatedError> {
    let mut headers = Vec::new();
    while !packed.is_empty() {
        let (header, rest) = one(packed).ok_or(TruncatedError)?;
        headers.push(header);
        packed = rest;
    }
    Ok(headers)
}

fn one(packed: &[u8]) -> Option<(Header<'_>, &[u8])> {
    let (key, rest) = field(packed)?;
    let (value, rest) = field(rest)?;
    Some((Header { key: key?, value }, rest))
}

fn field(packed: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, rest) = packed.split_first_chunk::<4>()?;
    match u32::from_be_bytes(*length) {
        NO_VALUE => Some((None, rest)),
        length => rest.split_at_checked(usize::try_from(length).ok()?).map(|(bytes, rest)| (Some(bytes), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_by_their_last_occurrence() {
        let mut packed = Vec::new();
        Headers::pack(&mut packed, b"a", Some(b"1"));
        Headers::pack(&mut packed, b"\xff", Some(b""));
        Headers::pack(&mut packed, b"b", None);
        Headers::pack(&mut packed, b"a", Some(b"22"));
        let headers = Headers(packed.into());
        assert_eq!(headers.last("a"), Some(b"22".as_slice()));
        assert_eq!(headers.last("b"), None);
        assert_eq!(headers.last("c"), None);
    }

    #[test]
    fn packed_headers_are_unpacked_as_they_were() {
        let mut packed = Vec::new();
        Headers::pack(&mut packed, b"a", Some(b"1"));
        Headers::pack(&mut packed, b"\xff\0", Some(b""));
        Headers::pack(&mut packed, b"", None);
        let header = |key: &'static [u8], value| Header { key, value };
        let expected = [header(b"a", Some(b"1".as_slice())), header(b"\xff\0", Some(b"")), header(b"", None)];
        assert_eq!(unpack(&packed).expect("the headers are complete"), expected);
        assert_eq!(unpack(&[]), Ok(Vec::new()));
        for end in 1..packed.len() {
            let cut = unpack(&packed[..end]);
            // Cut at the end of a header, there are fewer headers; elsewhere unpacking fails.
            assert!(cut.is_err() || cut.is_ok_and(|cut| cut.len() < 3), "{end}");
        }
    }
}
