//! Owns the senders: real gRPC through the gateway, each stream's messages one after the other, a failure repeated until
//! its outcome is known; and the history of all that was answered.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use msg_common::id::msg_id;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_common::proto::{ERROR_DOMAIN, Msg, SendMsgRequest, SendMsgResponse, WaitFor};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;
use uuid::Uuid;

use super::error::DemoError;
use super::plan::{Planned, Repeat};

/// HTTP/2 connections; the gateway serves each on a task of its own.
const CONNECTIONS: usize = 2;
/// A message that has no OK after this long ends the demo.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Where an error does not say when to come back.
const RETRY: Duration = Duration::from_millis(100);

/// A client of the gateway.
pub(crate) type Client = MsgGatewayClient<Channel>;

/// A message with an OK, and how it came to it.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// What was sent.
    pub(crate) msg: Msg,
    /// Its id, by the contract's recipe; the gateway answered with the same.
    pub(crate) msg_id: Uuid,
    /// When it was first sent.
    pub(crate) began: Instant,
    /// Its sends.
    pub(crate) delivery: Delivery,
    /// The sends of another body under the same id, if there were any.
    pub(crate) changed: Option<(Bytes, Delivery)>,
}

/// What became of the sends of one body.
#[derive(Debug, Clone, Default)]
pub(crate) struct Delivery {
    /// Every OK.
    pub(crate) acks: Vec<Ack>,
    /// How many sends ended as unknown: each may have left a record, too.
    pub(crate) unknown: u64,
}

/// An OK.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ack {
    /// Where it says that the record is.
    pub(crate) place: Place,
    /// When it was there.
    pub(crate) at: Instant,
    /// How long the call took.
    pub(crate) took: Duration,
}

impl Delivery {
    /// Both together.
    fn and(mut self, other: Delivery) -> Delivery {
        self.acks.extend(other.acks);
        self.unknown += other.unknown;
        self
    }
}

/// A record's place in the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The partition.
    pub(crate) partition: i32,
    /// The offset.
    pub(crate) offset: i64,
}

/// What was sent, and how it went.
#[derive(Debug)]
pub(crate) struct History {
    /// All messages.
    pub(crate) sent: Vec<Sent>,
    /// When the first was sent, by the clock that the database has, too.
    pub(crate) began: SystemTime,
    /// From then to the last OK.
    pub(crate) took: Duration,
}

/// Counts that are read while the senders run.
#[derive(Debug)]
pub(crate) struct Counters {
    /// Messages with an OK.
    pub(crate) messages: AtomicU64,
    /// Calls answered with OK, repeats on purpose included.
    pub(crate) oks: AtomicU64,
    /// Calls answered as certainly not sent.
    pub(crate) not_sent: AtomicU64,
    /// Calls whose outcome stayed unknown.
    pub(crate) unknown: AtomicU64,
    half: u64,
    /// Told once, when half of the messages have their OK.
    pub(crate) half_way: Notify,
}

impl Counters {
    /// For so many messages.
    pub(crate) fn new(messages: usize) -> Counters {
        Counters {
            messages: AtomicU64::new(0),
            oks: AtomicU64::new(0),
            not_sent: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            half: (messages as u64).div_ceil(2),
            half_way: Notify::new(),
        }
    }

    fn message_done(&self) {
        if self.messages.fetch_add(1, Ordering::Relaxed) + 1 == self.half {
            self.half_way.notify_one();
        }
    }
}

/// Opens the connections.
pub(crate) async fn connect(gateway: &str) -> Result<Vec<Client>, DemoError> {
    let endpoint = Endpoint::from_shared(format!("http://{gateway}"))?.tcp_nodelay(true);
    let mut clients = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let channel = endpoint.connect().await?;
        clients.push(MsgGatewayClient::new(channel).max_decoding_message_size(8 << 20));
    }
    Ok(clients)
}

/// Sends all streams, `at_once` of them at a time, and waits for every OK.
pub(crate) async fn send_all(
    clients: &[Client],
    streams: Vec<Vec<Planned>>,
    at_once: usize,
    counters: &Arc<Counters>,
) -> Result<History, DemoError> {
    let (began, clock) = (SystemTime::now(), Instant::now());
    let queue = Arc::new(Mutex::new(VecDeque::from(streams)));
    let mut senders = JoinSet::new();
    for number in 0..at_once {
        let client = clients[number % clients.len()].clone();
        let sender = Sender { client, counters: Arc::clone(counters) };
        senders.spawn(sender.run(Arc::clone(&queue)));
    }
    let mut sent = Vec::new();
    while let Some(ended) = senders.join_next().await {
        sent.extend(ended.expect("a sender does not panic")?);
    }
    Ok(History { sent, began, took: clock.elapsed() })
}

/// One task; it takes stream after stream.
struct Sender {
    client: Client,
    counters: Arc<Counters>,
}

impl Sender {
    async fn run(self, queue: Arc<Mutex<VecDeque<Vec<Planned>>>>) -> Result<Vec<Sent>, DemoError> {
        let mut sent = Vec::new();
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        while let Some(stream) = next() {
            for planned in stream {
                sent.push(self.send(planned).await?);
                self.counters.message_done();
            }
        }
        Ok(sent)
    }

    /// Sends one message, and again what is to be sent again. Returns only when every outcome is known: what comes next in
    /// the stream comes after it in the inbox.
    async fn send(&self, Planned { msg, repeat }: Planned) -> Result<Sent, DemoError> {
        let msg_id = msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id);
        let began = Instant::now();
        let mut changed = None;
        let delivery = match repeat {
            Repeat::No => self.deliver(&msg, msg_id).await?,
            Repeat::InTurn => {
                let first = self.deliver(&msg, msg_id).await?;
                first.and(self.deliver(&msg, msg_id).await?)
            }
            Repeat::AtOnce => {
                let (one, other) = tokio::try_join!(self.deliver(&msg, msg_id), self.deliver(&msg, msg_id))?;
                one.and(other)
            }
            Repeat::Changed => {
                let first = self.deliver(&msg, msg_id).await?;
                let content = Bytes::from(format!("another body under the id {}", msg.client_msg_id));
                let other = Msg { content: content.clone(), ..msg.clone() };
                changed = Some((content, self.deliver(&other, msg_id).await?));
                first
            }
        };
        Ok(Sent { msg, msg_id, began, delivery, changed })
    }

    /// Calls until the answer is OK. The same request each time: after an unknown outcome that is harmless, and nothing
    /// else is.
    async fn deliver(&self, msg: &Msg, msg_id: Uuid) -> Result<Delivery, DemoError> {
        let give_up = Instant::now() + GIVE_UP;
        let mut client = self.client.clone();
        let mut unknown = 0;
        loop {
            let request = SendMsgRequest { msg: Some(msg.clone()), wait_for: WaitFor::Accepted.into() };
            let began = Instant::now();
            let status = match client.send_msg(request).await {
                Ok(response) => {
                    let at = Instant::now();
                    self.counters.oks.fetch_add(1, Ordering::Relaxed);
                    let place = place(response.into_inner(), msg_id)?;
                    return Ok(Delivery { acks: vec![Ack { place, at, took: at - began }], unknown });
                }
                Err(status) => status,
            };
            let delay = match outcome(&status) {
                Outcome::NotSent(delay) => {
                    self.counters.not_sent.fetch_add(1, Ordering::Relaxed);
                    delay
                }
                Outcome::Unknown => {
                    self.counters.unknown.fetch_add(1, Ordering::Relaxed);
                    unknown += 1;
                    RETRY
                }
                Outcome::Refused => return Err(failed(msg, status)),
            };
            if Instant::now() + delay > give_up {
                return Err(failed(msg, status));
            }
            tokio::time::sleep(delay).await;
        }
    }
}

/// Where the record is, if the answer names the message that was sent.
fn place(answer: SendMsgResponse, msg_id: Uuid) -> Result<Place, DemoError> {
    let placement = answer.placement.unwrap_or_default();
    if placement.msg_id == msg_id.to_string() {
        // Below 0: Kafka confirmed the record without its offset.
        return Ok(Place { partition: placement.partition, offset: placement.offset.unwrap_or(-1) });
    }
    Err(DemoError::Answer(format!("an OK names message {:?}, but the recipe gives {msg_id}", placement.msg_id)))
}

fn failed(msg: &Msg, status: Status) -> DemoError {
    let call = format!("SendMsg of {} to {}", msg.client_msg_id, msg.recv_id);
    DemoError::Call { call, status: Box::new(status) }
}

/// What an error says about the message.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Certainly not sent; when to try again.
    NotSent(Duration),
    /// It may be there.
    Unknown,
    /// Certainly not sent, and the same request will not do better.
    Refused,
}

fn outcome(status: &Status) -> Outcome {
    let details = status.get_error_details();
    let reason = details.error_info().filter(|info| info.domain == ERROR_DOMAIN).map(|info| info.reason.as_str());
    match reason {
        Some("NOT_SENT") => Outcome::NotSent(details.retry_info().and_then(|info| info.retry_delay).unwrap_or(RETRY)),
        // Without our reason it is somebody else's error.
        Some("OUTCOME_UNKNOWN") | None => Outcome::Unknown,
        Some(_) => Outcome::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tonic::Code;
    use tonic_types::ErrorDetails;

    #[test]
    fn an_error_says_what_became_of_the_message() {
        let with = |reason: &str, delay: Option<Duration>| {
            let mut details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, [] as [(String, String); 0]);
            details.set_retry_info(delay);
            Status::with_error_details(Code::Unavailable, "no", details)
        };
        let delay = Duration::from_millis(700);
        assert_eq!(outcome(&with("NOT_SENT", Some(delay))), Outcome::NotSent(delay));
        assert_eq!(outcome(&with("NOT_SENT", None)), Outcome::NotSent(RETRY));
        assert_eq!(outcome(&with("OUTCOME_UNKNOWN", None)), Outcome::Unknown);
        assert_eq!(outcome(&with("INVALID_FIELDS", None)), Outcome::Refused);
        assert_eq!(outcome(&Status::unavailable("connection refused")), Outcome::Unknown);
    }

    #[test]
    fn half_way_is_told_once() {
        for (messages, half) in [(1, 1), (2, 1), (3, 2), (4, 2)] {
            let counters = Counters::new(messages);
            for _ in 0..messages {
                counters.message_done();
            }
            assert_eq!(counters.half, half);
            assert!(counters.half_way.notified().now_or_never().is_some());
            assert!(counters.half_way.notified().now_or_never().is_none());
        }
    }
}
