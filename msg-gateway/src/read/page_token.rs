//! Page tokens: where the next page starts, bound to the request that it continues.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// The version of the token's format and of the hashed fields.
const VERSION: u8 = 1;
const HASH_BYTES: usize = 16;
const BYTES: usize = 1 + 8 + HASH_BYTES;

/// The fields of a request that must be the same on every page.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The inbox that is read.
    pub recv_id: &'a str,
    /// The lowest `seq` of the whole read.
    pub from_seq: i64,
    /// The highest `seq` of the whole read.
    pub to_seq: i64,
    /// Whether the newest messages are first.
    pub descending: bool,
    /// Whether `content` is left out.
    pub omit_content: bool,
}

impl Scope<'_> {
    /// Returns the token for the page that starts at `next_seq`, in hexadecimal digits.
    pub fn token(&self, next_seq: i64) -> String {
        let mut text = String::with_capacity(2 * BYTES);
        for byte in self.bytes(next_seq) {
            write!(text, "{byte:02x}").expect("a write to a string cannot fail");
        }
        text
    }

    /// Returns where the page of this token starts, or `None` if it is not a token of this request.
    pub fn next_seq(&self, token: &str) -> Option<i64> {
        let bytes = from_hex(token)?;
        let next_seq = i64::from_be_bytes(bytes.get(1..9)?.try_into().ok()?);
        let within = (self.from_seq..=self.to_seq).contains(&next_seq);
        (within && bytes == self.bytes(next_seq)).then_some(next_seq)
    }

    /// The hash is no secret, because a caller may request any `seq`. It detects a token that was mixed up or
    /// truncated.
    fn bytes(&self, next_seq: i64) -> [u8; BYTES] {
        let mut hash = Sha256::new();
        hash.update([VERSION]);
        hash.update((self.recv_id.len() as u64).to_be_bytes());
        hash.update(self.recv_id);
        for number in [self.from_seq, self.to_seq, next_seq] {
            hash.update(number.to_be_bytes());
        }
        hash.update([u8::from(self.descending), u8::from(self.omit_content)]);
        let mut bytes = [VERSION; BYTES];
        bytes[1..9].copy_from_slice(&next_seq.to_be_bytes());
        bytes[9..].copy_from_slice(&hash.finalize()[..HASH_BYTES]);
        bytes
    }
}

fn from_hex(text: &str) -> Option<[u8; BYTES]> {
    if text.len() != 2 * BYTES {
        return None;
    }
    let mut bytes = [0; BYTES];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let [high, low] = [digit(digits[0])?, digit(digits[1])?];
        *byte = high << 4 | low;
    }
    Some(bytes)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: Scope<'_> =
        Scope { recv_id: "bob", from_seq: 1, to_seq: i64::MAX, descending: false, omit_content: false };

    #[test]
    fn token_holds_the_start_of_its_page() {
        for next in [1, 2, 1000, i64::MAX] {
            assert_eq!(SCOPE.next_seq(&SCOPE.token(next)), Some(next));
        }
    }

    #[test]
    fn token_of_another_request_is_rejected() {
        let token = SCOPE.token(7);
        for other in [
            Scope { recv_id: "bo", ..SCOPE },
            Scope { from_seq: 2, ..SCOPE },
            Scope { to_seq: 100, ..SCOPE },
            Scope { descending: true, ..SCOPE },
            Scope { omit_content: true, ..SCOPE },
        ] {
            assert_eq!(other.next_seq(&token), None, "{other:?}");
        }
    }

    #[test]
    fn altered_token_is_rejected() {
        let token = SCOPE.token(7);
        for index in 0..token.len() {
            let mut altered = token.clone().into_bytes();
            altered[index] = if altered[index] == b'0' { b'1' } else { b'0' };
            let altered = String::from_utf8(altered).expect("digits");
            assert_eq!(SCOPE.next_seq(&altered), None, "{index}");
        }
        for text in ["", "00", &token[1..], &format!("{token}0"), &token.to_uppercase(), &"é".repeat(BYTES)] {
            assert_eq!(SCOPE.next_seq(text), None, "{text}");
        }
    }
}
