//! Senders with streams: many messages are in flight, and a failed message is sent again before any new one to its
//! inbox.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use msg_common::proto::{StreamSendEntry, StreamSendMsgRequest, StreamSendMsgResponse, WaitFor};
use rand::RngExt;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};

use super::backoff::Backoff;
use super::outcome::{Answer, delay, of_result, of_status};
use super::sender::{Sender, is_past};
use super::window::{Asked, Window};
use crate::history::{Outcome, Way};
use crate::message::message;

/// Maximum number of messages in flight; as many more may wait for a retry.
const WINDOW: usize = 200;
/// Maximum number of messages of one request.
const LARGEST: usize = 20;
/// Number of inboxes of one request.
const INBOXES: usize = 3;
/// How many seconds a stream is used.
const LIFE: std::ops::Range<f64> = 5.0..15.0;
/// The share of streams that are dropped at their end; the others are closed.
const DROPPED: f64 = 0.2;
/// A stream with messages in flight is dropped if no response arrives for this long.
const SILENCE: Duration = Duration::from_secs(30);
/// The interval at which the sender checks whether the load is stopping.
const LOOK: Duration = Duration::from_millis(250);

/// The end of a stream.
enum End {
    /// The sender ended the stream.
    Wished,
    /// The stream could not be opened, or it broke; `delay` is how long the gateway requests to wait.
    Broke { worked: bool, delay: Duration },
}

/// Sends on one stream after the other.
pub(crate) async fn run(mut sender: Sender) -> io::Result<()> {
    let mut backoff = Backoff::default();
    let mut window = Window::default();
    let mut turn = Turn::new(&mut sender);
    while !(sender.caller.load.is_stopping() && window.is_empty()) {
        match one(&mut sender, &mut window, &mut turn).await? {
            End::Wished => backoff = Backoff::default(),
            End::Broke { worked, delay } => {
                if worked {
                    backoff = Backoff::default();
                }
                sleep(backoff.next(delay)).await;
            }
        }
    }
    Ok(())
}

/// When the next new messages may be sent, and how many.
struct Turn {
    at: Instant,
    size: usize,
}

impl Turn {
    fn new(sender: &mut Sender) -> Turn {
        let size = sender.caller.rng.random_range(1..=LARGEST);
        Turn { at: sender.pace.reserve(size), size }
    }
}

/// Opens a stream and uses it until its end.
async fn one(sender: &mut Sender, window: &mut Window, turn: &mut Turn) -> io::Result<End> {
    let (gateway, mut client) = sender.caller.gateway();
    let (requests, received) = unbounded_channel();
    let opened = timeout(sender.caller.load.patience(), client.stream_send_msg(UnboundedReceiverStream::new(received)));
    let replies = match opened.await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Ok(End::Broke { worked: false, delay: delay(&status) }),
        Err(_) => return Ok(End::Broke { worked: false, delay: Duration::ZERO }),
    };
    let number = sender.caller.stream();
    let life = Duration::from_secs_f64(sender.caller.rng.random_range(LIFE));
    let mut stream = Stream {
        sender,
        window,
        gateway,
        number,
        requests: Some(requests),
        replies,
        until: Instant::now() + life,
        heard: Instant::now(),
        worked: false,
    };
    let (why, end) = stream.run(turn).await?;
    stream.is_over(&why)?;
    Ok(end)
}

/// An open stream.
struct Stream<'a> {
    sender: &'a mut Sender,
    window: &'a mut Window,
    gateway: u8,
    number: u64,
    /// None when this side is closed. The channel buffers what the gateway does not read yet: never more than the
    /// window.
    requests: Option<UnboundedSender<StreamSendMsgRequest>>,
    replies: Streaming<StreamSendMsgResponse>,
    /// When the stream is to be closed.
    until: Instant,
    /// When the last expected response arrived, or when the sender started to wait for one.
    heard: Instant,
    worked: bool,
}

impl Stream<'_> {
    /// Sends and receives until the end. Returns the outcome of all messages in flight, and how the stream ended.
    async fn run(&mut self, turn: &mut Turn) -> io::Result<(Answer, End)> {
        loop {
            if self.requests.is_some() {
                let stopping = self.sender.caller.load.is_stopping();
                if is_past(self.until) && self.sender.caller.rng.random_bool(DROPPED) {
                    return Ok((Answer::unknown("dropped by the client"), End::Wished));
                }
                if is_past(self.until) || (stopping && self.window.is_empty()) {
                    self.requests = None;
                    self.heard = Instant::now();
                } else {
                    self.send(turn, stopping)?;
                }
            }
            if self.waits() && is_past(self.heard + SILENCE) {
                let broke = End::Broke { worked: false, delay: Duration::ZERO };
                return Ok((Answer::unknown("silence"), broke));
            }
            match timeout_at(self.wake(turn), self.replies.message()).await {
                Err(_) => {}
                Ok(Ok(Some(reply))) => self.take(reply)?,
                Ok(ended) => return Ok(self.ended(ended.err())),
            }
        }
    }

    /// Sends what has to be sent again, and new messages as far as the window and the rate allow.
    fn send(&mut self, turn: &mut Turn, stopping: bool) -> io::Result<()> {
        for msgs in self.window.due(Instant::now()).chunks(LARGEST) {
            self.request(msgs)?;
        }
        while !stopping && is_past(turn.at) && self.window.unanswered() + turn.size <= WINDOW {
            let inboxes: Vec<u32> = (0..self.sender.caller.rng.random_range(1..=INBOXES))
                .map(|_| self.sender.inbox())
                .filter(|inbox| self.window.is_free(*inbox))
                .collect();
            if inboxes.is_empty() {
                // This inbox waits for a failed message. The next choice, a little later, may be another inbox.
                turn.at = Instant::now() + Duration::from_millis(10);
                break;
            }
            let mut msgs = Vec::with_capacity(turn.size);
            for _ in 0..turn.size {
                let inbox = inboxes[self.sender.caller.rng.random_range(0..inboxes.len())];
                msgs.push(self.sender.begin(inbox));
            }
            self.request(&msgs)?;
            *turn = Turn::new(self.sender);
        }
        Ok(())
    }

    /// Sends one request.
    fn request(&mut self, msgs: &[(u32, u32)]) -> io::Result<()> {
        let begun = self.sender.caller.asks(Way::Stream, Some(self.number), false, self.gateway, msgs)?;
        if self.window.unanswered() == 0 {
            self.heard = Instant::now();
        }
        for (place, msg) in (0..).zip(msgs) {
            self.window.goes(*msg, Asked { call: begun.call, place });
        }
        let id = self.sender.caller.id;
        let entry = |&(n, inbox): &(u32, u32)| StreamSendEntry {
            correlation_id: u64::from(n),
            msg: Some(message(id, n, inbox)),
        };
        let wait_for = if begun.stored { WaitFor::Stored } else { WaitFor::Accepted }.into();
        let request = StreamSendMsgRequest { entries: msgs.iter().map(entry).collect(), wait_for };
        if let Some(requests) = &self.requests {
            // The channel is closed when the stream has ended; then the end of the responses says why.
            let _ = requests.send(request);
        }
        Ok(())
    }

    fn take(&mut self, reply: StreamSendMsgResponse) -> io::Result<()> {
        let now = Instant::now();
        (self.heard, self.worked) = (now, true);
        let mut calls: BTreeMap<u64, Vec<(u32, Outcome)>> = BTreeMap::new();
        for result in reply.results {
            let answer = of_result(result.result.unwrap_or_default());
            let n = u32::try_from(result.correlation_id).unwrap_or(u32::MAX);
            if let Some(asked) = self.window.is_told(n, answer.is_accepted(), answer.delay, now) {
                calls.entry(asked.call).or_default().push((asked.place, answer.outcome));
            }
        }
        calls.into_iter().try_for_each(|(call, results)| self.sender.caller.is_told(call, results))
    }

    /// Returns what the end of the responses means for the messages in flight.
    fn ended(&self, status: Option<Status>) -> (Answer, End) {
        match status {
            Some(status) => (of_status(&status), End::Broke { worked: self.worked, delay: delay(&status) }),
            None if self.requests.is_none() => (Answer::unknown("no result"), End::Wished),
            None => (Answer::unknown("no result"), End::Broke { worked: self.worked, delay: Duration::ZERO }),
        }
    }

    /// Records the outcome of all messages in flight when the stream has ended.
    fn is_over(&mut self, why: &Answer) -> io::Result<()> {
        let mut calls: BTreeMap<u64, Vec<(u32, Outcome)>> = BTreeMap::new();
        for asked in self.window.is_lost(Instant::now()) {
            calls.entry(asked.call).or_default().push((asked.place, why.outcome.clone()));
        }
        calls.into_iter().try_for_each(|(call, results)| self.sender.caller.is_told(call, results))
    }

    /// Whether a response is due.
    fn waits(&self) -> bool {
        self.window.unanswered() > 0 || self.requests.is_none()
    }

    /// Returns the latest time of the next action, if no response arrives.
    fn wake(&self, turn: &Turn) -> Instant {
        let look = Instant::now() + LOOK;
        let has_room = self.window.unanswered() + turn.size <= WINDOW && !self.sender.caller.load.is_stopping();
        let new = has_room.then_some(turn.at);
        let due = new.into_iter().chain(self.window.again()).min().filter(|_| self.requests.is_some());
        due.map_or(look, |due| due.min(look))
    }
}
