//! Owns what the messages of a load are: each is given by its sender and its number, so that neither the history nor
//! the checker keeps any content.

use std::fmt::Debug;

use bytes::Bytes;
use msg_common::id::msg_id;
use msg_common::proto::{Msg, SessionType};
use uuid::Uuid;

/// A message: number `n` of a sender, and the inbox that it is sent to or that it was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) sender: u32,
    pub(crate) n: u32,
    pub(crate) inbox: u32,
}

/// All messages that a load can send.
pub(crate) trait Messages: Debug + Send + Sync {
    fn message(&self, numbers: Numbers) -> Msg;

    /// Returns the numbers of the message in a row or a record; none if the load has no message with these IDs.
    fn numbers(&self, msg: &Msg, msg_id: Uuid) -> Option<Numbers>;
}

/// The fault lab's messages, which are computed from their numbers.
#[derive(Debug)]
pub(crate) struct Computed;

impl Messages for Computed {
    fn message(&self, Numbers { sender, n, inbox }: Numbers) -> Msg {
        message(sender, n, inbox)
    }

    fn numbers(&self, msg: &Msg, _: Uuid) -> Option<Numbers> {
        let (sender, n) = (number(&msg.send_id)?, number(&msg.client_msg_id)?);
        Some(Numbers { sender, n, inbox: number(&msg.recv_id)? })
    }
}

/// Returns the message with other content under the same ID.
pub(crate) fn altered(msg: Msg) -> Msg {
    Msg { content: format!("other content under the ID {}", msg.client_msg_id).into(), ..msg }
}

/// Whether this is the message as it was sent: all fields, and its ID by the contract's recipe.
pub(crate) fn is_as_sent(messages: &dyn Messages, numbers: Numbers, msg: &Msg, id: Uuid) -> bool {
    messages.message(numbers) == *msg && msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id) == id
}

/// Returns message `n` of a sender to an inbox.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_with_any_altered_field_is_not_as_sent() {
        let sent = message(3, 4, 5);
        let id = msg_id(&sent.send_id, &sent.recv_id, &sent.client_msg_id);
        let holds = |msg: &Msg, id| {
            let numbers = Computed.numbers(msg, id).expect("an alteration keeps the numbers");
            is_as_sent(&Computed, numbers, msg, id)
        };
        assert!(holds(&sent, id));
        assert!(!holds(&sent, Uuid::from_u128(1)));
        let alterations: [fn(&mut Msg); 8] = [
            |msg| msg.content = msg.content.slice(1..),
            |msg| msg.content = Bytes::new(),
            |msg| drop(msg.attributes.insert("n".to_owned(), "5".to_owned())),
            |msg| msg.attributes.clear(),
            |msg| msg.content_type.push('x'),
            |msg| msg.session_type = 2,
            |msg| msg.send_id.insert(0, 'x'),
            |msg| msg.recv_id = recv_id(6),
        ];
        for alter in alterations {
            let mut msg = sent.clone();
            alter(&mut msg);
            assert!(!holds(&msg, id), "{msg:?}");
        }
    }
}
