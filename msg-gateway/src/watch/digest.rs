//! A hash over everything that the sender wrote, to decide whether a row with the same ID holds the same message.

use std::collections::BTreeMap;

use msg_common::proto::Msg;
use sha2::{Digest as _, Sha256};

use crate::watch::queries::Contents;

/// A hash over everything that the sender wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn of(msg: &Msg) -> Self {
        let content = Sha256::digest(&msg.content);
        let texts = [&msg.send_id, &msg.client_msg_id, &msg.content_type];
        Digest::over(texts.map(String::as_str), msg.session_type, &content, &msg.attributes)
    }

    pub(crate) fn of_row(row: &Contents) -> Self {
        let texts = [&row.send_id, &row.client_msg_id, &row.content_type];
        Digest::over(texts.map(String::as_str), row.session_type, &row.content_hash, &row.attributes)
    }

    /// Leaves the inbox out, because a row is queried by its inbox.
    fn over(texts: [&str; 3], session_type: i32, content_hash: &[u8], attributes: &BTreeMap<String, String>) -> Self {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        texts.iter().for_each(|text| field(text.as_bytes()));
        field(&session_type.to_be_bytes());
        field(content_hash);
        for (key, value) in attributes {
            field(key.as_bytes());
            field(value.as_bytes());
        }
        Digest(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msg() -> Msg {
        Msg { send_id: "a".into(), content: b"hello".as_slice().into(), ..Msg::default() }
    }

    #[test]
    fn the_digest_is_of_all_that_the_sender_wrote() {
        let row = |msg: &Msg| Contents::of(0, msg);
        assert_eq!(Digest::of(&msg()), Digest::of_row(&row(&msg())));
        for other in [
            Msg { send_id: "b".into(), ..msg() },
            Msg { client_msg_id: "1".into(), ..msg() },
            Msg { session_type: 2, ..msg() },
            Msg { content_type: "text/plain".into(), ..msg() },
            Msg { content: b"hullo".as_slice().into(), ..msg() },
            Msg { attributes: [("k".to_owned(), "v".to_owned())].into(), ..msg() },
            Msg { send_id: String::new(), client_msg_id: "a".into(), ..msg() },
        ] {
            assert_ne!(Digest::of(&msg()), Digest::of(&other), "{other:?}");
            assert_eq!(Digest::of(&other), Digest::of_row(&row(&other)));
        }
    }
}
