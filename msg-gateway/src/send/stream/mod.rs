//! StreamSendMsg: entries come in as the caller sends them, and results go back as they are known.

mod entries;
mod order;
mod replies;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::Stream;
use metrics::gauge;
use msg_common::limits::MAX_REQUEST_MSGS;
use msg_common::proto::{StreamSendEntry, StreamSendMsgRequest};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use crate::arriving;
use crate::incoming::Lifetime;
use crate::layer::with_reason_of_transport;
use crate::metrics::{SEND_STREAMS, answered};
use crate::place::{Held, Place};
use crate::producer::Report;
use crate::send::stream::entries::{Entries, HeldUp};
use crate::send::stream::replies::Outlet;
pub use crate::send::stream::replies::Replies;
use crate::send::{Call, Sender, trace};
use crate::status::Failure;

/// Nothing happens for so long when nothing is due: a timer has to be set to something.
const NOTHING_DUE: Duration = Duration::from_secs(3600);

impl Sender {
    /// Begins a stream; a task of its own serves it until its end. The connection, and so the drain, waits for the reply's end.
    pub fn open_stream(
        self: &Arc<Self>,
        requests: impl Stream<Item = Result<StreamSendMsgRequest, Status>> + Send + 'static,
        call: Call<'_>,
        lifetime: Lifetime,
    ) -> Result<(Replies, Place), Failure> {
        let now = Instant::now();
        // Refused when it leaves no time at all.
        self.timing.answer_by(call.arrival, call.timeout, now)?;
        let place = self.streams.clone().try_acquire_owned();
        let place = place.map_err(|_| Failure::Overloaded("too many streams are open".into()))?;
        // A time-out may reach beyond what an Instant can hold.
        let left = call.timeout.and_then(|timeout| self.timing.before_deadline(timeout));
        let until = left.and_then(|left| call.arrival.checked_add(left));
        let traceparent = call.traceparent.filter(|value| trace::is_valid(value)).map(<[u8]>::to_vec);
        let unwritten = Held::new([place]);
        let (outlet, replies) = replies::channel(unwritten.clone());
        let (sender, reports) = mpsc::unbounded_channel();
        let this = self.clone();
        let entries = Entries::new(self.clone(), traceparent, until, sender);
        let until = until.map(|until| (until, Failure::StreamDeadline));
        tokio::spawn(async move {
            let open = gauge!(SEND_STREAMS);
            open.increment(1);
            Serving { sender: this, entries, reports, until }.run(requests, outlet, lifetime).await;
            open.decrement(1);
        });
        Ok((replies, unwritten))
    }
}

/// Counts how a stream ended.
fn ended(outcome: &'static str) {
    answered("StreamSendMsg", outcome);
}

struct Serving {
    sender: Arc<Sender>,
    entries: Entries,
    reports: mpsc::UnboundedReceiver<Report>,
    /// When the caller's deadline ends the stream, and how.
    until: Option<(Instant, Failure)>,
}

/// How a stream ends, once everything is answered.
type End = Result<(), Status>;

/// A request that was read, and waits for places for its results.
struct Ahead {
    request: StreamSendMsgRequest,
    /// None when they did not come in time.
    places: BoxFuture<'static, Option<OwnedSemaphorePermit>>,
    _held: arriving::Held,
}

impl Serving {
    /// Serves the stream until its last reply is taken.
    async fn run(
        self,
        requests: impl Stream<Item = Result<StreamSendMsgRequest, Status>>,
        outlet: Outlet,
        lifetime: Lifetime,
    ) {
        let Serving { sender, mut entries, mut reports, mut until } = self;
        let Outlet { replies, gone: all_taken } = outlet;
        let mut requests = pin!(requests);
        let mut all_taken = pin!(all_taken);
        let mut ahead: Option<Ahead> = None;
        let mut ending = pin!(lifetime.ending());
        let mut timer_at = Instant::now() + NOTHING_DUE;
        let mut timer = pin!(tokio::time::sleep_until(timer_at.into()));
        let mut ready = Vec::new();
        let mut end: Option<(End, &'static str)> = None;
        loop {
            if let Some((end, outcome)) = end.take_if(|_| entries.are_done()) {
                ended(outcome);
                let last = async move {
                    if let Err(status) = end {
                        let _ = replies.send(Err(status)).await;
                    }
                    drop(replies);
                    let _ = all_taken.await;
                };
                last.await;
                return;
            }
            if end.is_some() {
                // It was not taken, and the end says so.
                ahead = None;
            }
            let due = until.iter().map(|(until, _)| *until).chain(entries.look_at()).min();
            if let Some(due) = due.filter(|due| *due != timer_at) {
                timer_at = due;
                timer.as_mut().reset(due.into());
            }
            tokio::select! {
                // Reports first and requests last: results go out together, and what is in flight falls before it rises.
                biased;
                _ = &mut all_taken => return ended("CANCELLED"),
                _ = reports.recv_many(&mut ready, MAX_REQUEST_MSGS), if entries.are_open() => {
                    ready.drain(..).for_each(|report| entries.report(report));
                }
                Some(stored) = entries.stored.next(), if !entries.stored.is_empty() => entries.stored(stored),
                Ok(place) = replies.reserve(), if !entries.results.is_empty() => {
                    place.send(Ok(entries.reply()));
                }
                () = &mut ending, if end.is_none() => end = Some(ended_by(Failure::StreamEnded)),
                () = &mut timer => {
                    let now = Instant::now();
                    entries.look(now);
                    if let Some((_, failure)) = until.take_if(|(until, _)| *until <= now) && end.is_none() {
                        end = Some(ended_by(failure));
                    }
                    timer_at = now + NOTHING_DUE;
                    timer.as_mut().reset(timer_at.into());
                }
                () = room(entries.held_up.as_ref()) => entries.try_again(),
                places = places(ahead.as_mut()) => if let Some(Ahead { request, .. }) = ahead.take() {
                    end = match places {
                        Some(places) => entries.take(request, places).err().map(ended_by),
                        None => Some(ended_by(results_not_taken())),
                    };
                },
                request = requests.next(), if end.is_none() && ahead.is_none() && entries.have_room() => match request {
                    Some(Ok(request)) => {
                        let taken = match sender.results.clone().try_acquire_many_owned(results_of(&request)) {
                            Ok(places) => entries.take(request, places),
                            Err(_) => sender.read_ahead(request).map(|read| ahead = Some(read)),
                        };
                        end = taken.err().map(ended_by);
                    }
                    Some(Err(status)) => end = Some(broken_by(status)),
                    None => end = Some((Ok(()), "OK")),
                },
            }
        }
    }
}

impl Sender {
    /// Places for the results of a request. Whoever takes no results must not make the gateway read on: what is read and has
    /// no places yet is counted as what waits for room in flight.
    fn read_ahead(&self, request: StreamSendMsgRequest) -> Result<Ahead, Failure> {
        let held = self.held_up.hold(memory_of(&request.entries)).ok_or_else(results_not_taken)?;
        let places =
            tokio::time::timeout(self.timing.max_wait, self.results.clone().acquire_many_owned(results_of(&request)));
        let places = Box::pin(async move { places.await.ok().and_then(Result::ok) });
        Ok(Ahead { request, places, _held: held })
    }
}

/// What entries take in memory, decoded: an attribute of a few bytes is two texts in a tree.
fn memory_of<'a>(entries: impl IntoIterator<Item = &'a StreamSendEntry>) -> usize {
    const ATTRIBUTE_BYTES: usize = 160;
    let of = |entry: &StreamSendEntry| {
        let attributes = entry.msg.as_ref().map_or(0, |msg| msg.attributes.len());
        entry.encoded_len() + size_of::<StreamSendEntry>() + attributes * ATTRIBUTE_BYTES
    };
    entries.into_iter().map(of).sum()
}

fn results_of(request: &StreamSendMsgRequest) -> u32 {
    u32::try_from(request.entries.len().min(MAX_REQUEST_MSGS)).expect("it is small")
}

fn results_not_taken() -> Failure {
    Failure::Overloaded("too many results of streams are not taken".into())
}

async fn places(ahead: Option<&mut Ahead>) -> Option<OwnedSemaphorePermit> {
    match ahead {
        Some(ahead) => ahead.places.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn room(held_up: Option<&HeldUp>) {
    match held_up {
        Some(held_up) => held_up.room.freed().await,
        None => std::future::pending().await,
    }
}

fn ended_by(failure: Failure) -> (End, &'static str) {
    let outcome = failure.outcome();
    (Err(failure.into()), outcome)
}

/// The transport's errors reach us as a request that cannot be read. Ours are among them: a request that takes too long to
/// arrive, for instance.
fn broken_by(status: Status) -> (End, &'static str) {
    if status.details().is_empty() {
        return (Err(with_reason_of_transport(&status)), "BAD_REQUEST");
    }
    (Err(status), "NOT_SENT")
}
