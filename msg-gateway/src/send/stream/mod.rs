//! StreamSendMsg: the caller sends entries, and gets their results as they become known.

mod entries;
mod failed_entries;
mod replies;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::Stream;
use msg_common::limits::MAX_REQUEST_MSGS;
use msg_common::proto::{StreamSendEntry, StreamSendMsgRequest};
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

use crate::budget::{LimitReached, Permit};
use crate::incoming::Lifetime;
use crate::metrics::answered;
use crate::producer::Report;
use crate::response_permit::ResponsePermit;
use crate::router::with_reason_of_transport;
use crate::send::stream::entries::{BlockedEntries, Entries};
use crate::send::stream::replies::ReplySender;
pub(crate) use crate::send::stream::replies::ReplyStream;
use crate::send::{Call, Sender, trace};
use crate::status::Failure;

/// A timer has to be set to some time, even if nothing is due.
const NOTHING_DUE: Duration = Duration::from_secs(3600);

impl Sender {
    /// Opens a stream, which a task of its own serves. The connection, and so the drain, waits until its last reply
    /// was read.
    pub(crate) fn open_stream(
        self: &Arc<Self>,
        requests: impl Stream<Item = Result<StreamSendMsgRequest, Status>> + Send + 'static,
        call: Call<'_>,
        lifetime: Lifetime,
    ) -> Result<(ReplyStream, Arc<ResponsePermit>), Failure> {
        let now = Instant::now();
        // Reject the call if its deadline leaves no time at all.
        self.timing.respond_by(call.arrival, call.timeout, now)?;
        let permit = self.budgets.send_streams.try_acquire(1)?;
        // A timeout may reach beyond what an Instant can hold.
        let left = call.timeout.and_then(|timeout| self.timing.before_deadline(timeout));
        let until = left.and_then(|left| call.arrival.checked_add(left));
        let traceparent = call.traceparent.filter(|value| trace::is_valid(value)).map(<[u8]>::to_vec);
        let unwritten = ResponsePermit::new([permit]);
        let (reply_sender, replies) = replies::channel(unwritten.clone());
        let (sender, reports) = mpsc::unbounded_channel();
        let this = self.clone();
        let entries = Entries::new(self.clone(), traceparent, until, sender);
        let until = until.map(|until| (until, Failure::StreamDeadline));
        let serving = Serving { sender: this, entries, reports, until };
        tokio::spawn(serving.run(requests, reply_sender, lifetime));
        Ok((replies, unwritten))
    }
}

fn ended(outcome: &'static str) {
    answered("StreamSendMsg", outcome);
}

struct Serving {
    sender: Arc<Sender>,
    entries: Entries,
    reports: mpsc::UnboundedReceiver<Report>,
    /// When the caller's deadline ends the stream, and the error for that.
    until: Option<(Instant, Failure)>,
}

/// How a stream ends, after every entry has a result.
type End = Result<(), Status>;

/// A request that was read, and waits for permits for its results.
struct PendingRequest {
    request: StreamSendMsgRequest,
    /// An error if they were not available in time.
    permits: BoxFuture<'static, Result<Permit, LimitReached>>,
    _permit: Permit,
}

impl Serving {
    /// Serves the stream until its last reply was read.
    async fn run(
        self,
        requests: impl Stream<Item = Result<StreamSendMsgRequest, Status>>,
        reply_sender: ReplySender,
        lifetime: Lifetime,
    ) {
        let Serving { sender, mut entries, mut reports, mut until } = self;
        let ReplySender { replies, done: all_read } = reply_sender;
        let mut requests = pin!(requests);
        let mut all_read = pin!(all_read);
        let mut pending: Option<PendingRequest> = None;
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
                    let _ = all_read.await;
                };
                last.await;
                return;
            }
            if end.is_some() {
                // The request was not accepted, and the end of the stream says so.
                pending = None;
            }
            let due = until.iter().map(|(until, _)| *until).chain(entries.next_timeout()).min();
            if let Some(due) = due.filter(|due| *due != timer_at) {
                timer_at = due;
                timer.as_mut().reset(due.into());
            }
            tokio::select! {
                // Reports first and requests last: then a reply has many results, and permits in flight are released
                // before more are acquired.
                biased;
                _ = &mut all_read => return ended("CANCELLED"),
                _ = reports.recv_many(&mut ready, MAX_REQUEST_MSGS), if entries.are_open() => {
                    ready.drain(..).for_each(|report| entries.report(report));
                }
                Some(stored) = entries.stored.next(), if !entries.stored.is_empty() => entries.stored(stored),
                Ok(slot) = replies.reserve(), if !entries.results.is_empty() => {
                    slot.send(Ok(entries.reply()));
                }
                () = &mut ending, if end.is_none() => end = Some(ended_by(Failure::StreamEnded)),
                () = &mut timer => {
                    let now = Instant::now();
                    entries.expire(now);
                    if let Some((_, failure)) = until.take_if(|(until, _)| *until <= now) && end.is_none() {
                        end = Some(ended_by(failure));
                    }
                    timer_at = now + NOTHING_DUE;
                    timer.as_mut().reset(timer_at.into());
                }
                () = capacity(entries.blocked.as_ref()) => entries.retry_blocked(),
                permits = permits(pending.as_mut()) => if let Some(PendingRequest { request, .. }) = pending.take() {
                    end = match permits {
                        Ok(permits) => entries.accept(request, permits).err().map(ended_by),
                        Err(reached) => Some(ended_by(reached.into())),
                    };
                },
                request = requests.next(), if end.is_none() && pending.is_none() && entries.have_capacity() => match request {
                    Some(Ok(request)) => {
                        let accepted = match sender.budgets.stream_results.try_acquire(results_of(&request)) {
                            Ok(permits) => entries.accept(request, permits),
                            Err(_) => sender.await_permits(request).map(|read| pending = Some(read)),
                        };
                        end = accepted.err().map(ended_by);
                    }
                    Some(Err(status)) => end = Some(broken_by(status)),
                    None => end = Some((Ok(()), "OK")),
                },
            }
        }
    }
}

impl Sender {
    /// Waits for permits for the results of a request. A caller that reads no results must not make the gateway read
    /// on, so a request without permits counts among the requests that wait for capacity.
    fn await_permits(&self, request: StreamSendMsgRequest) -> Result<PendingRequest, Failure> {
        let memory = self.budgets.blocked_requests.try_acquire(memory_of(&request.entries));
        let (results, count) = (self.budgets.stream_results.clone(), results_of(&request));
        let _permit = memory.map_err(|_| results.reached(count))?;
        let by = Instant::now() + self.timing.max_wait;
        let permits = Box::pin(async move { results.acquire_by(count, by).await });
        Ok(PendingRequest { request, permits, _permit })
    }
}

/// Returns the memory of decoded entries: an attribute of a few bytes is two strings in a tree.
fn memory_of<'a>(entries: impl IntoIterator<Item = &'a StreamSendEntry>) -> usize {
    const ATTRIBUTE_BYTES: usize = 160;
    let of = |entry: &StreamSendEntry| {
        let attributes = entry.msg.as_ref().map_or(0, |msg| msg.attributes.len());
        entry.encoded_len() + size_of::<StreamSendEntry>() + attributes * ATTRIBUTE_BYTES
    };
    entries.into_iter().map(of).sum()
}

fn results_of(request: &StreamSendMsgRequest) -> usize {
    request.entries.len().min(MAX_REQUEST_MSGS)
}

async fn permits(pending: Option<&mut PendingRequest>) -> Result<Permit, LimitReached> {
    match pending {
        Some(pending) => pending.permits.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn capacity(blocked: Option<&BlockedEntries>) {
    match blocked {
        Some(blocked) => blocked.capacity.released().await,
        None => std::future::pending().await,
    }
}

fn ended_by(failure: Failure) -> (End, &'static str) {
    let outcome = failure.outcome();
    (Err(failure.into()), outcome)
}

/// Ends the stream with an error of the transport, which comes as a request that cannot be read. Some are the
/// gateway's own errors: for example, a request that was not received in time.
fn broken_by(status: Status) -> (End, &'static str) {
    if status.details().is_empty() {
        return (Err(with_reason_of_transport(&status)), "BAD_REQUEST");
    }
    (Err(status), "NOT_SENT")
}
