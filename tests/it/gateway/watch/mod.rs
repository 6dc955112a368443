//! WatchMsgs: everything after a seq, then live, in order, each once; whatever happens in between.

mod bounds;
mod catchup;
mod ends;
mod hints;
mod seam;

use std::collections::BTreeMap;

use msg_common::proto::watch_msgs_response::Event;
use msg_common::proto::{InboxCursor, StoredMsg, WatchMsgsRequest, WatchMsgsResponse};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Status, Streaming};

use super::calls::Client;
use crate::support::PATIENCE;

pub(super) fn request<'a>(inboxes: impl IntoIterator<Item = (&'a str, Option<i64>)>) -> WatchMsgsRequest {
    let cursor = |(recv_id, after_seq): (&str, _)| InboxCursor { recv_id: recv_id.into(), after_seq };
    WatchMsgsRequest { inboxes: inboxes.into_iter().map(cursor).collect(), omit_content: false }
}

/// A watcher, and what it was given.
pub(super) struct Watcher {
    events: Streaming<WatchMsgsResponse>,
    /// By inbox: the last seq. Each next one has to follow it.
    cursors: BTreeMap<String, i64>,
    msgs: Vec<StoredMsg>,
    heartbeats: usize,
    behind: usize,
}

impl Watcher {
    /// Watches, and waits for the word that it does.
    pub(super) async fn open(client: &Client, request: WatchMsgsRequest) -> Result<Watcher, Status> {
        let given = request.inboxes.iter().filter_map(|inbox| Some((inbox.recv_id.clone(), inbox.after_seq?)));
        let cursors = given.collect();
        let events = client.clone().watch_msgs(request).await?.into_inner();
        let mut watcher = Watcher { events, cursors, msgs: Vec::new(), heartbeats: 0, behind: 0 };
        watcher.next().await?;
        assert_eq!((watcher.heartbeats, watcher.msgs.len()), (1, 0), "the first event says that it watches");
        Ok(watcher)
    }

    /// The next event. Fails the test where a message is missing, or comes twice or too early.
    async fn next(&mut self) -> Result<(), Status> {
        let event = timeout(PATIENCE, self.events.message()).await.expect("there is an event in time")?;
        match event.expect("a watch never ends as OK").event.expect("one is set") {
            Event::Heartbeat(beat) => {
                assert!(beat.time.is_some());
                self.heartbeats += 1;
            }
            Event::Msgs(watched) => {
                assert!(!watched.msgs.is_empty());
                self.behind += usize::from(watched.behind);
                for stored in watched.msgs {
                    let recv_id = stored.msg.as_ref().unwrap().recv_id.clone();
                    let cursor = self.cursors.entry(recv_id.clone()).or_insert(stored.seq - 1);
                    assert_eq!(stored.seq, *cursor + 1, "{recv_id}: a gap, or twice");
                    *cursor = stored.seq;
                    self.msgs.push(stored);
                }
            }
        }
        Ok(())
    }

    /// Until so many messages were given. One deadline over all of it: heartbeats must not renew it.
    async fn reaches(&mut self, count: usize) {
        let deadline = Instant::now() + 2 * PATIENCE;
        while self.msgs.len() < count {
            let next = timeout_at(deadline, self.next()).await;
            let had = self.msgs.len();
            let next = next.unwrap_or_else(|_| panic!("{had} of {count} messages, and only heartbeats since"));
            next.unwrap_or_else(|status| panic!("{had} of {count}: {status:?}"));
        }
    }

    /// Until so many heartbeats came.
    async fn beats(&mut self, count: usize) {
        while self.heartbeats < count {
            self.next().await.unwrap();
        }
    }

    /// Until the stream ends; how.
    async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    fn ids(&self) -> Vec<&str> {
        self.msgs.iter().map(|stored| stored.msg.as_ref().unwrap().client_msg_id.as_str()).collect()
    }
}
