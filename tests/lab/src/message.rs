//! Owns what the messages of the load are: each is given by its sender and its number, so that the checker knows every byte
//! without keeping any.

use bytes::Bytes;
use msg_common::proto::{Msg, SessionType};
use sha2::{Digest, Sha256};

/// The message `n` of a sender to an inbox.
pub(crate) fn message(sender: u32, n: u32, inbox: u32) -> Msg {
    Msg {
        recv_id: recv_id(inbox),
        send_id: send_id(sender),
        client_msg_id: n.to_string(),
        session_type: SessionType::Single.into(),
        content_type: "text/plain".into(),
        content: content(sender, n),
        attributes: [("n".to_owned(), n.to_string())].into(),
    }
}

pub(crate) fn recv_id(inbox: u32) -> String {
    format!("inbox-{inbox}")
}

pub(crate) fn send_id(sender: u32) -> String {
    format!("sender-{sender}")
}

/// Which inbox, sender or number an id names.
pub(crate) fn number(id: &str) -> Option<u32> {
    id.rsplit('-').next()?.parse().ok()
}

/// 64 to 575 bytes, one in a thousand 20 KiB; no two alike.
pub(crate) fn content(sender: u32, n: u32) -> Bytes {
    let mixed = (u64::from(sender) << 32 | u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let size = if mixed % 1000 == 0 { 20 << 10 } else { 64 + (mixed >> 20) as usize % 512 };
    let word = format!("{sender}/{n}/{mixed:x} ");
    word.bytes().cycle().take(size).collect()
}

/// The hash of a content, as the database computes it with `sha256(content)`, its first eight bytes.
pub(crate) fn fingerprint(content: &[u8]) -> u64 {
    let hash = Sha256::digest(content);
    u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"))
}
