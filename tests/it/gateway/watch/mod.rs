//! WatchMsgs: every message after a `seq` and then each new one, in order and once, no matter what happens in
//! between.

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
use crate::support::WAIT_TIMEOUT;

pub(super) fn request<'a>(inboxes: impl IntoIterator<Item = (&'a str, Option<i64>)>) -> WatchMsgsRequest {
    let cursor = |(recv_id, after_seq): (&str, _)| InboxCursor { recv_id: recv_id.into(), after_seq };
    WatchMsgsRequest { inboxes: inboxes.into_iter().map(cursor).collect(), omit_content: false }
}

/// A watcher, and the events that it has received.
pub(super) struct Watcher {
    events: Streaming<WatchMsgsResponse>,
    /// The last `seq` of each inbox; the next message has to follow it.
    cursors: BTreeMap<String, i64>,
    msgs: Vec<StoredMsg>,
    heartbeats: usize,
    behind: usize,
}

impl Watcher {
    /// Opens a watch, and waits for its first event.
    pub(super) async fn open(client: &Client, request: WatchMsgsRequest) -> Result<Watcher, Status> {
        let cursors = request.inboxes.iter().filter_map(|inbox| Some((inbox.recv_id.clone(), inbox.after_seq?)));
        let cursors = cursors.collect();
        let events = client.clone().watch_msgs(request).await?.into_inner();
        let mut watcher = Watcher { events, cursors, msgs: Vec::new(), heartbeats: 0, behind: 0 };
        watcher.next().await?;
        assert_eq!((watcher.heartbeats, watcher.msgs.len()), (1, 0), "the first event is a heartbeat");
        Ok(watcher)
    }

    /// Receives the next event. Panics if a message is missing, duplicated or out of order.
    async fn next(&mut self) -> Result<(), Status> {
        let event = timeout(WAIT_TIMEOUT, self.events.message()).await.expect("an event arrives in time")?;
        match event.expect("a watch never ends with OK").event.expect("an event is set") {
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
                    assert_eq!(stored.seq, *cursor + 1, "{recv_id}: a gap or a duplicate");
                    *cursor = stored.seq;
                    self.msgs.push(stored);
                }
            }
        }
        Ok(())
    }

    /// Waits until `count` messages were received. One deadline for all of them: heartbeats must not extend it.
    async fn wait_for_msgs(&mut self, count: usize) {
        let deadline = Instant::now() + 2 * WAIT_TIMEOUT;
        while self.msgs.len() < count {
            let next = timeout_at(deadline, self.next()).await;
            let received = self.msgs.len();
            let next =
                next.unwrap_or_else(|_| panic!("{received} of {count} messages, and since then only heartbeats"));
            next.unwrap_or_else(|status| panic!("{received} of {count}: {status:?}"));
        }
    }

    /// Waits until `count` heartbeats were received.
    async fn wait_for_heartbeats(&mut self, count: usize) {
        while self.heartbeats < count {
            self.next().await.unwrap();
        }
    }

    /// Waits until the stream ends; returns its status.
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
