//! Owns the last part of the demo's output: a conversation as a reader gets it from `PullMsgs`.

use std::collections::HashMap;

use msg_common::proto::{PullMsgsRequest, StoredMsg};
use msg_lab::Client;

use super::error::DemoError;
use super::log::TIME;
use super::plan::Shown;

const PAGE: i32 = 1000;
/// Maximum number of characters of a text that are shown.
const TEXT: usize = 100;

/// Reads the messages, and returns the lines to print.
pub(crate) async fn read_back(client: &mut Client, shown: &Shown) -> Result<Vec<String>, DemoError> {
    let mut inboxes: HashMap<&str, Vec<&str>> = HashMap::new();
    for (recv_id, id) in shown {
        inboxes.entry(recv_id).or_default().push(id);
    }
    let mut found: HashMap<String, StoredMsg> = HashMap::new();
    for (recv_id, wanted) in inboxes {
        pull(client, recv_id, &wanted, &mut found).await?;
    }
    shown
        .iter()
        .map(|(recv_id, id)| {
            let stored = found.get(&key(recv_id, id));
            stored
                .map(line)
                .ok_or_else(|| DemoError::Response(format!("PullMsgs of {recv_id} did not return message {id}")))
        })
        .collect()
}

fn key(recv_id: &str, id: &str) -> String {
    format!("{recv_id} {id}")
}

/// Reads the pages of an inbox until all wanted messages are found, or the inbox ends.
async fn pull(
    client: &mut Client,
    recv_id: &str,
    wanted: &[&str],
    found: &mut HashMap<String, StoredMsg>,
) -> Result<(), DemoError> {
    let mut request = PullMsgsRequest { recv_id: recv_id.to_owned(), page_size: PAGE, ..PullMsgsRequest::default() };
    let mut missing = wanted.len();
    loop {
        let failed = |status| DemoError::Call { call: format!("PullMsgs of {recv_id}"), status: Box::new(status) };
        let page = client.pull_msgs(request.clone()).await.map_err(failed)?.into_inner();
        for stored in page.msgs {
            let id = stored.msg.as_ref().map_or("", |msg| msg.client_msg_id.as_str());
            if wanted.contains(&id) {
                missing = missing.saturating_sub(1);
                found.insert(key(recv_id, id), stored);
            }
        }
        if missing == 0 || page.next_page_token.is_empty() {
            return Ok(());
        }
        request.page_token = page.next_page_token;
    }
}

/// Returns a line with time, sender, inbox, seq and text.
fn line(stored: &StoredMsg) -> String {
    let msg = stored.msg.clone().unwrap_or_default();
    let sent = || stored.send_time.map(|time| time.to_string()).unwrap_or_default();
    let time = msg.attributes.get(TIME).cloned().unwrap_or_else(sent);
    let text = String::from_utf8_lossy(&msg.content);
    // Replace control characters: a log may contain escape sequences that a terminal would execute.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT).collect();
    format!("{time}  {} -> {} #{:<4} {text}", short(&msg.send_id), short(&msg.recv_id), stored.seq)
}

/// Shortens an ID for a line: the names in the log are UUIDs.
fn short(id: &str) -> String {
    let id: String = id.chars().filter(|c| !c.is_control()).collect();
    if id.chars().count() > 16 { id.chars().take(8).collect() } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;
    use msg_common::proto::Msg;

    #[test]
    fn line_has_no_control_characters_and_short_ids() {
        let msg = Msg {
            recv_id: "549cc1d1-270e-4a53-b561-133a8d0086b4".to_owned(),
            send_id: "ann".to_owned(),
            content: "hi\u{1b}[2J\nthere".into(),
            attributes: [(TIME.to_owned(), "2018-05-02T19:38:15Z".to_owned())].into(),
            ..Msg::default()
        };
        let stored = StoredMsg { msg: Some(msg), seq: 7, ..StoredMsg::default() };
        assert_eq!(line(&stored), "2018-05-02T19:38:15Z  ann -> 549cc1d1 #7    hi [2J there");
    }
}
