//! Sends a plan instead of computed messages: streams whose order is kept, with messages that are sent again on
//! purpose.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use msg_common::id::msg_id;
use msg_common::proto::Msg;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::BACKOFF;
use super::caller::Caller;
use crate::error::LabError;
use crate::history::Way;
use crate::message::{Messages, Numbers};

/// The load fails if a message is not accepted within this time.
const ACCEPT_WITHIN: Duration = Duration::from_secs(60);

/// A message, and how it is sent.
#[derive(Debug)]
pub struct Planned {
    pub msg: Msg,
    pub repeat: Repeat,
}

/// How a message is sent again, with the same `client_msg_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    No,
    /// The message is sent again after it was accepted, as by a caller that lost the response.
    InTurn,
    /// The message is sent twice concurrently, as by two callers that do not know of each other.
    Concurrent,
    /// The message is sent again with other content: a caller's bug, which must not replace the stored message.
    Changed,
}

/// The messages of all streams. A stream is a sender, and the index of a message in it is its number.
#[derive(Debug)]
pub(crate) struct Plan {
    streams: Vec<Vec<(Planned, u32)>>,
    inboxes: HashMap<String, u32>,
    by_id: HashMap<Uuid, (u32, u32)>,
}

impl Plan {
    pub(crate) fn new(streams: Vec<Vec<Planned>>) -> Plan {
        let (mut inboxes, mut by_id) = (HashMap::new(), HashMap::new());
        let mut numbered = Vec::with_capacity(streams.len());
        for (stream, sender) in streams.into_iter().zip(0..) {
            let number = |(planned, n): (Planned, u32)| {
                let Msg { recv_id, send_id, client_msg_id, .. } = &planned.msg;
                by_id.insert(msg_id(send_id, recv_id, client_msg_id), (sender, n));
                let next = u32::try_from(inboxes.len()).expect("fewer than 4 billion");
                let inbox = *inboxes.entry(recv_id.clone()).or_insert(next);
                (planned, inbox)
            };
            numbered.push(stream.into_iter().zip(0..).map(number).collect());
        }
        Plan { streams: numbered, inboxes, by_id }
    }

    pub(crate) fn messages(&self) -> usize {
        self.streams.iter().map(Vec::len).sum()
    }
}

impl Messages for Arc<Plan> {
    fn message(&self, Numbers { sender, n, .. }: Numbers) -> Msg {
        self.streams[sender as usize][n as usize].0.msg.clone()
    }

    fn numbers(&self, msg: &Msg, msg_id: Uuid) -> Option<Numbers> {
        let (sender, n) = *self.by_id.get(&msg_id)?;
        Some(Numbers { sender, n, inbox: *self.inboxes.get(&msg.recv_id)? })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Progress {
    next_stream: AtomicUsize,
    /// Messages whose every outcome is known.
    pub(crate) settled: AtomicU64,
}

/// Sends one stream after the other, until no stream is left.
pub(crate) async fn run(mut caller: Caller, plan: Arc<Plan>, progress: Arc<Progress>) -> Result<(), LabError> {
    loop {
        let sender = progress.next_stream.fetch_add(1, Ordering::Relaxed);
        let Some(stream) = plan.streams.get(sender) else { return Ok(()) };
        caller.id = u32::try_from(sender).expect("fewer than 4 billion");
        for ((planned, inbox), n) in stream.iter().zip(0..) {
            send(&mut caller, (n, *inbox), planned.repeat).await?;
            progress.settled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends a message, and returns when every outcome is known, so that the next message of the stream gets a higher seq.
async fn send(caller: &mut Caller, msg: (u32, u32), repeat: Repeat) -> Result<(), LabError> {
    match repeat {
        Repeat::No => deliver(caller, msg, false).await,
        Repeat::InTurn => {
            deliver(caller, msg, false).await?;
            deliver(caller, msg, false).await
        }
        Repeat::Concurrent => {
            let mut other = caller.fork();
            tokio::try_join!(deliver(caller, msg, false), deliver(&mut other, msg, false)).map(|_| ())
        }
        Repeat::Changed => {
            deliver(caller, msg, false).await?;
            deliver(caller, msg, true).await
        }
    }
}

/// Calls until the message is accepted, each time with the same request: after an unknown outcome any other request
/// could store a second message.
async fn deliver(caller: &mut Caller, msg: (u32, u32), altered: bool) -> Result<(), LabError> {
    let deadline = Instant::now() + ACCEPT_WITHIN;
    let mut backoff = BACKOFF;
    loop {
        let results = caller.attempt(Way::Unary, altered, &[msg]).await.map_err(LabError::io("send over", "gRPC"))?;
        let Some(result) = results.iter().find(|result| !result.is_accepted()) else { return Ok(()) };
        if Instant::now() > deadline {
            let what = format!("message {} of stream {} was not accepted", msg.0, caller.id);
            return Err(LabError::Stuck(format!("{what} for {ACCEPT_WITHIN:?}: {:?}", result.outcome)));
        }
        sleep(backoff.failed().max(result.delay)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::is_as_sent;

    #[test]
    fn planned_message_is_found_by_its_id_with_any_content() {
        let planned = |to: &str, id: &str| Planned {
            msg: Msg { recv_id: to.to_owned(), client_msg_id: id.to_owned(), ..Msg::default() },
            repeat: Repeat::No,
        };
        let streams = vec![vec![planned("x", "1"), planned("y", "2")], vec![planned("x", "3")]];
        let plan = Arc::new(Plan::new(streams));
        assert_eq!(plan.messages(), 3);
        for (sender, n, inbox) in [(0, 0, 0), (0, 1, 1), (1, 0, 0)] {
            let numbers = Numbers { sender, n, inbox };
            let mut msg = plan.message(numbers);
            let id = msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id);
            assert_eq!(plan.numbers(&msg, id), Some(numbers));
            assert!(is_as_sent(&plan, numbers, &msg, id));
            msg.content = "x".into();
            assert_eq!(plan.numbers(&msg, id), Some(numbers));
            assert!(!is_as_sent(&plan, numbers, &msg, id));
            assert_eq!(plan.numbers(&msg, Uuid::nil()), None, "no message has this ID");
            msg.recv_id = "z".to_owned();
            assert_eq!(plan.numbers(&msg, id), None, "no message goes to this inbox");
        }
    }
}
