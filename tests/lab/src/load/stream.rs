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

use super::BACKOFF;
use super::outcome::{MsgResult, delay, of_result, of_status};
use super::sender::{Sender, is_past};
use super::window::{RequestEntry, Window};
use crate::history::{Outcome, Way};
use crate::message::message;

/// Maximum number of messages in flight; as many more may wait for a retry.
const WINDOW: usize = 200;
/// Maximum number of messages of one request.
const LARGEST: usize = 20;
const INBOXES: usize = 3;
/// How many seconds a stream is used.
const LIFETIME: std::ops::Range<f64> = 5.0..15.0;
/// The share of streams that are dropped at their end; the others are closed.
const DROPPED: f64 = 0.2;
/// A stream with messages in flight is dropped if no response arrives for this long.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

enum End {
    Intended,
    /// The stream could not be opened, or it broke; `delay` is how long the gateway requests to wait.
    Broken {
        worked: bool,
        delay: Duration,
    },
}

/// Sends on one stream after the other.
pub(crate) async fn run(mut sender: Sender) -> io::Result<()> {
    let mut backoff = BACKOFF;
    let mut window = Window::default();
    let mut turn = Turn::new(&mut sender);
    while !(sender.caller.load.is_stopping() && window.is_empty()) {
        match one(&mut sender, &mut window, &mut turn).await? {
            End::Intended => backoff = BACKOFF,
            End::Broken { worked, delay } => {
                if worked {
                    backoff = BACKOFF;
                }
                sleep(backoff.failed().max(delay)).await;
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
    let opened =
        timeout(sender.caller.load.local_timeout(), client.stream_send_msg(UnboundedReceiverStream::new(received)));
    let responses = match opened.await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Ok(End::Broken { worked: false, delay: delay(&status) }),
        Err(_) => return Ok(End::Broken { worked: false, delay: Duration::ZERO }),
    };
    let number = sender.caller.stream();
    let lifetime = Duration::from_secs_f64(sender.caller.rng.random_range(LIFETIME));
    let mut stream = Stream {
        sender,
        window,
        gateway,
        number,
        requests: Some(requests),
        responses,
        until: Instant::now() + lifetime,
        last_response: Instant::now(),
        worked: false,
    };
    let (why, end) = stream.run(turn).await?;
    stream.record_end(&why)?;
    Ok(end)
}

struct Stream<'a> {
    sender: &'a mut Sender,
    window: &'a mut Window,
    gateway: u8,
    number: u64,
    /// None when this side is closed. The channel buffers what the gateway does not read yet: never more than the
    /// window.
    requests: Option<UnboundedSender<StreamSendMsgRequest>>,
    responses: Streaming<StreamSendMsgResponse>,
    until: Instant,
    /// When the last expected response arrived, or when the sender started to wait for one.
    last_response: Instant,
    worked: bool,
}

impl Stream<'_> {
    /// Sends and receives until the end. Returns the outcome of all messages in flight, and how the stream ended.
    async fn run(&mut self, turn: &mut Turn) -> io::Result<(MsgResult, End)> {
        loop {
            if self.requests.is_some() {
                let stopping = self.sender.caller.load.is_stopping();
                if is_past(self.until) && self.sender.caller.rng.random_bool(DROPPED) {
                    return Ok((MsgResult::unknown("dropped by the client"), End::Intended));
                }
                if is_past(self.until) || (stopping && self.window.is_empty()) {
                    self.requests = None;
                    self.last_response = Instant::now();
                } else {
                    self.send(turn, stopping)?;
                }
            }
            if self.waits() && is_past(self.last_response + RESPONSE_TIMEOUT) {
                let broke = End::Broken { worked: false, delay: Duration::ZERO };
                return Ok((MsgResult::unknown("stalled"), broke));
            }
            match timeout_at(self.wake(turn), self.responses.message()).await {
                Err(_) => {}
                Ok(Ok(Some(response))) => self.receive(response)?,
                Ok(ended) => return Ok(self.ended(ended.err())),
            }
        }
    }

    /// Sends what has to be sent again, and new messages as far as the window and the rate allow.
    fn send(&mut self, turn: &mut Turn, stopping: bool) -> io::Result<()> {
        for msgs in self.window.due(Instant::now()).chunks(LARGEST) {
            self.request(msgs)?;
        }
        while !stopping && is_past(turn.at) && self.window.in_flight() + turn.size <= WINDOW {
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
                msgs.push(self.sender.next_message(inbox));
            }
            self.request(&msgs)?;
            *turn = Turn::new(self.sender);
        }
        Ok(())
    }

    fn request(&mut self, msgs: &[(u32, u32)]) -> io::Result<()> {
        let recorded = self.sender.caller.record_request(Way::Stream, Some(self.number), false, self.gateway, msgs)?;
        if self.window.in_flight() == 0 {
            self.last_response = Instant::now();
        }
        for (index, msg) in (0..).zip(msgs) {
            self.window.add(*msg, RequestEntry { call: recorded.call, index });
        }
        let id = self.sender.caller.id;
        let entry = |&(n, inbox): &(u32, u32)| StreamSendEntry {
            correlation_id: u64::from(n),
            msg: Some(message(id, n, inbox)),
        };
        let wait_for = if recorded.stored { WaitFor::Stored } else { WaitFor::Accepted }.into();
        let request = StreamSendMsgRequest { entries: msgs.iter().map(entry).collect(), wait_for };
        if let Some(requests) = &self.requests {
            // The channel is closed when the stream has ended; then the end of the responses says why.
            let _ = requests.send(request);
        }
        Ok(())
    }

    fn receive(&mut self, response: StreamSendMsgResponse) -> io::Result<()> {
        let now = Instant::now();
        (self.last_response, self.worked) = (now, true);
        let mut calls: BTreeMap<u64, Vec<(u32, Outcome)>> = BTreeMap::new();
        for entry in response.results {
            let result = of_result(entry.result.unwrap_or_default());
            let n = u32::try_from(entry.correlation_id).unwrap_or(u32::MAX);
            if let Some(entry) = self.window.receive(n, result.is_accepted(), result.delay, now) {
                calls.entry(entry.call).or_default().push((entry.index, result.outcome));
            }
        }
        calls.into_iter().try_for_each(|(call, results)| self.sender.caller.record_outcomes(call, results))
    }

    /// Returns what the end of the responses means for the messages in flight.
    fn ended(&self, status: Option<Status>) -> (MsgResult, End) {
        match status {
            Some(status) => (of_status(&status), End::Broken { worked: self.worked, delay: delay(&status) }),
            None if self.requests.is_none() => (MsgResult::unknown("no result"), End::Intended),
            None => (MsgResult::unknown("no result"), End::Broken { worked: self.worked, delay: Duration::ZERO }),
        }
    }

    /// Records the outcome of all messages in flight when the stream has ended.
    fn record_end(&mut self, why: &MsgResult) -> io::Result<()> {
        let mut calls: BTreeMap<u64, Vec<(u32, Outcome)>> = BTreeMap::new();
        for entry in self.window.end_stream(Instant::now()) {
            calls.entry(entry.call).or_default().push((entry.index, why.outcome.clone()));
        }
        calls.into_iter().try_for_each(|(call, results)| self.sender.caller.record_outcomes(call, results))
    }

    fn waits(&self) -> bool {
        self.window.in_flight() > 0 || self.requests.is_none()
    }

    /// Returns the latest time of the next action, if no response arrives.
    fn wake(&self, turn: &Turn) -> Instant {
        let check = Instant::now() + CHECK_INTERVAL;
        let has_capacity = self.window.in_flight() + turn.size <= WINDOW && !self.sender.caller.load.is_stopping();
        let new = has_capacity.then_some(turn.at);
        let due = new.into_iter().chain(self.window.retry_at()).min().filter(|_| self.requests.is_some());
        due.map_or(check, |due| due.min(check))
    }
}
