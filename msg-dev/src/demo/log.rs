//! Owns the form of a chat log: messages with sender, receiver and text, in the order in which they are replayed.

use std::collections::BTreeMap;

use msg_common::proto::{Msg, SessionType};
use serde::Deserialize;

use super::error::DemoError;

#[derive(Debug)]
pub(crate) struct Log {
    /// The description of the log in the output.
    pub(crate) about: String,
    pub(crate) lines: Vec<Line>,
}

#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) conversation: usize,
    /// The `client_msg_id`: unique in the log, and the same in every run.
    pub(crate) id: String,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) session: SessionType,
    pub(crate) text: String,
    /// The time of the message, as the log has it.
    pub(crate) time: Option<String>,
}

/// The attribute that carries [`Line::time`].
pub(crate) const TIME: &str = "time";

impl Line {
    pub(crate) fn into_msg(self) -> Msg {
        Msg {
            recv_id: self.to,
            send_id: self.from,
            client_msg_id: self.id,
            session_type: self.session.into(),
            content_type: "text/plain; charset=utf-8".to_owned(),
            content: self.text.into(),
            attributes: self.time.map(|time| (TIME.to_owned(), time)).into_iter().collect(),
        }
    }
}

/// A conversation of the chitchat dataset: turns, each of one speaker's messages.
#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Vec<Said>>,
}

#[derive(Deserialize)]
struct Said {
    text: String,
    timestamp: String,
    sender: String,
}

/// Reads a file of the chitchat dataset's form. Each message is sent to the other speaker's inbox. If a conversation
/// has only one speaker, the log does not name the other one, and the conversation itself is the inbox.
pub(crate) fn parse_chitchat(json: &[u8]) -> Result<Vec<Line>, DemoError> {
    // A sorted map: every run must replay the same order.
    let conversations: BTreeMap<String, Conversation> =
        serde_json::from_slice(json).map_err(|error| DemoError::Log(format!("the chat log: {error}")))?;
    let mut lines = Vec::new();
    for (number, (id, conversation)) in conversations.into_iter().enumerate() {
        let said: Vec<Said> = conversation.messages.into_iter().flatten().collect();
        let mut speakers: Vec<&str> = said.iter().map(|said| said.sender.as_str()).collect();
        speakers.sort_unstable();
        speakers.dedup();
        let pair = <[&str; 2]>::try_from(speakers).ok().map(|pair| pair.map(str::to_owned));
        for (index, Said { text, timestamp, sender }) in said.into_iter().enumerate() {
            let (to, session) = match &pair {
                Some([one, other]) if *one == sender => (other.clone(), SessionType::Single),
                Some([one, _]) => (one.clone(), SessionType::Single),
                None => (id.clone(), SessionType::Group),
            };
            let (conversation, id, time) = (number, format!("{id}/{index}"), Some(timestamp));
            lines.push(Line { conversation, id, from: sender, to, session, text, time });
        }
    }
    // All times have the same form, in UTC. The sort is stable: messages of the same second keep their order.
    lines.sort_by(|a, b| a.time.cmp(&b.time));
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_to_the_other_speaker_in_the_order_of_their_times() {
        let json = br#"{
            "c2": {"messages": [[{"text": "later", "timestamp": "2018-05-02T10:00:09Z", "sender": "a"}]], "start": "x"},
            "c1": {"messages": [
                [{"text": "hi", "timestamp": "2018-05-02T10:00:00Z", "sender": "a"},
                 {"text": "there", "timestamp": "2018-05-02T10:00:10Z", "sender": "a"}],
                [{"text": "yo", "timestamp": "2018-05-02T10:00:10Z", "sender": "b"}]
            ]}
        }"#;
        let lines = parse_chitchat(json).expect("valid");
        let fields: Vec<_> = lines.iter().map(|line| (&*line.id, &*line.from, &*line.to, &*line.text)).collect();
        assert_eq!(
            fields,
            [
                ("c1/0", "a", "b", "hi"),
                ("c2/0", "a", "c2", "later"),
                ("c1/1", "a", "b", "there"),
                ("c1/2", "b", "a", "yo")
            ]
        );
        assert_eq!(lines[1].session, SessionType::Group, "the conversation has one speaker");
        parse_chitchat(b"{\"c\": 1}").expect_err("not the form");
    }
}
