//! WatchMsgs: who watches, how a watch opens, and what its caller reads. Each has a task of its own, in `watcher`.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use metrics::{Counter, counter};
use msg_common::limits::{Violation, check_id};
use msg_common::proto::{WatchMsgsRequest, WatchMsgsResponse};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use crate::config::{Config, LiveOptions};
use crate::incoming::Lifetime;
use crate::live::feed::Feed;
use crate::live::look::Looker;
use crate::live::mailbox::Mailbox;
use crate::live::pulse::{Interest, Pulse};
use crate::live::watcher::Watcher;
use crate::metrics::WATCHED_MSGS;
use crate::place::{Held, Place as ResponsePlace};
use crate::status::Failure;

/// Most inboxes on one stream.
const MAX_INBOXES: usize = 1000;

/// All who watch.
pub struct Watches {
    pub(super) feed: Arc<Feed>,
    pub(super) looker: Arc<Looker>,
    pulse: Arc<Pulse>,
    pub(super) options: LiveOptions,
    max_id_bytes: usize,
    /// How long a caller may leave an answer untaken.
    pub(super) response_read_timeout: Duration,
    /// Bytes of events that were made and not taken.
    pub(super) buffered: Arc<Semaphore>,
    streams: AtomicUsize,
    inboxes: AtomicUsize,
    next: AtomicU64,
    pub(super) from_cache: Counter,
    pub(super) from_table: Counter,
}

impl Watches {
    /// Nobody watches yet.
    pub fn new(feed: Arc<Feed>, looker: Arc<Looker>, pulse: Arc<Pulse>, config: &Config) -> Self {
        let options = config.live.clone();
        let (max_id_bytes, response_read_timeout) = (config.limits.max_id_bytes, config.server.response_read_timeout);
        let buffered = Arc::new(Semaphore::new(most_permits(&options)));
        let (streams, inboxes, next) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
        let [from_cache, from_table] = ["CACHE", "TABLE"].map(|source| counter!(WATCHED_MSGS, "source" => source));
        Watches {
            feed,
            looker,
            pulse,
            options,
            max_id_bytes,
            response_read_timeout,
            buffered,
            streams,
            inboxes,
            next,
            from_cache,
            from_table,
        }
    }

    /// Streams, and inboxes over all of them.
    pub fn taken(&self) -> (usize, usize) {
        (self.streams.load(Ordering::Relaxed), self.inboxes.load(Ordering::Relaxed))
    }

    /// Begins to watch. From the answer on nothing is missed.
    pub async fn open(
        self: &Arc<Self>,
        request: WatchMsgsRequest,
        lifetime: Lifetime,
    ) -> Result<(WatchStream, ResponsePlace), Failure> {
        let looker = self.looker.clone();
        let last_seqs = async move |recv_ids: Vec<Arc<str>>| looker.last_seqs(&recv_ids).await;
        let watcher = self.watcher(request, lifetime, last_seqs).await?;
        let (events, received) = mpsc::channel(1);
        let end = Arc::new(OnceLock::new());
        let gone = CancellationToken::new();
        let unwritten = Held::new([]);
        let (given, gone_with) = (unwritten.clone(), gone.clone().drop_guard());
        let stream = WatchStream { received, unwritten: given, end: end.clone(), _gone: gone_with };
        tokio::spawn(watcher.run(events, end, gone));
        Ok((stream, unwritten))
    }

    /// A watcher from where the table is, as `last_seqs` finds it.
    async fn watcher<F: Future<Output = Result<Vec<i64>, Failure>>>(
        self: &Arc<Self>,
        request: WatchMsgsRequest,
        lifetime: Lifetime,
        last_seqs: impl FnOnce(Vec<Arc<str>>) -> F,
    ) -> Result<Watcher, Failure> {
        check(&request, self.max_id_bytes)?;
        let recv_ids: Vec<Arc<str>> = request.inboxes.iter().map(|inbox| inbox.recv_id.as_str().into()).collect();
        let place = Place::take(self, recv_ids.len())?;
        let mailbox = Arc::new(Mailbox::new(self.next.fetch_add(1, Ordering::Relaxed), recv_ids.len()));
        let interest = self.pulse.interest();
        // First the hints, then the table: what is stored in between comes twice at most, and is told apart by its seq.
        self.feed.enter(&mailbox, &recv_ids);
        let watched = Watched { mailbox, recv_ids, place, _interest: interest };
        let reached = last_seqs(watched.recv_ids.clone()).await?;
        let mut cursors = Vec::with_capacity(reached.len());
        for (number, (inbox, seq)) in request.inboxes.iter().zip(reached).enumerate() {
            let tip = self.feed.reaches(&watched.recv_ids[number], seq);
            // Not the tip of others, who may know of what is not there any more.
            let cursor = inbox.after_seq.unwrap_or(seq);
            cursors.push(cursor);
            if cursor < tip {
                watched.mailbox.mark(number);
            }
        }
        Ok(Watcher::new(watched, cursors, request.omit_content, lifetime))
    }
}

/// Permits of the buffer, one a byte.
pub(super) fn most_permits(options: &LiveOptions) -> usize {
    options.watch_buffer_bytes.min(u32::MAX as usize)
}

/// Whether the request breaks a rule.
pub fn check(request: &WatchMsgsRequest, max_id_bytes: usize) -> Result<(), Failure> {
    let count = request.inboxes.len();
    let mut violations = Vec::new();
    let mut violate = |field: String, description: String| violations.push(Violation { field, description });
    if !(1..=MAX_INBOXES).contains(&count) {
        violate("inboxes".into(), format!("has {count} entries; 1 to {MAX_INBOXES} are taken"));
        return Err(Failure::Invalid(violations));
    }
    let mut seen = HashSet::with_capacity(count);
    for (i, inbox) in request.inboxes.iter().enumerate() {
        let field = format!("inboxes[{i}].recv_id");
        if let Some(violation) = check_id(&field, &inbox.recv_id, max_id_bytes) {
            violate(violation.field, violation.description);
        } else if !seen.insert(&inbox.recv_id) {
            violate(field, "is there twice".into());
        }
        if inbox.after_seq.is_some_and(|seq| seq < 0) {
            violate(format!("inboxes[{i}].after_seq"), "must not be negative".into());
        }
    }
    if violations.is_empty() { Ok(()) } else { Err(Failure::Invalid(violations)) }
}

/// A stream's place among the others.
struct Place {
    watches: Arc<Watches>,
    inboxes: usize,
}

impl Place {
    fn take(watches: &Arc<Watches>, inboxes: usize) -> Result<Self, Failure> {
        // Added first: two at once cannot both take the last place.
        let streams = watches.streams.fetch_add(1, Ordering::Relaxed);
        let before = watches.inboxes.fetch_add(inboxes, Ordering::Relaxed);
        let place = Place { watches: watches.clone(), inboxes };
        if streams >= watches.options.max_watchers {
            return Err(Failure::Overloaded("too many watch".into()));
        }
        if before + inboxes > watches.options.max_watched_inboxes {
            return Err(Failure::Overloaded("too many inboxes are watched".into()));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.watches.streams.fetch_sub(1, Ordering::Relaxed);
        self.watches.inboxes.fetch_sub(self.inboxes, Ordering::Relaxed);
    }
}

/// What is known to the feed of one stream, until it is dropped.
pub(super) struct Watched {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) recv_ids: Vec<Arc<str>>,
    place: Place,
    _interest: Interest,
}

impl Watched {
    pub(super) fn watches(&self) -> &Arc<Watches> {
        &self.place.watches
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.place.watches.feed.leave(&self.mailbox, &self.recv_ids);
    }
}

/// An event on its way, with the permit for its bytes.
pub(super) struct Parcel(Mutex<(Option<WatchMsgsResponse>, Option<OwnedSemaphorePermit>)>);

impl Parcel {
    pub(super) fn new(event: WatchMsgsResponse, permit: Option<OwnedSemaphorePermit>) -> Self {
        Parcel(Mutex::new((Some(event), permit)))
    }

    fn take(&self) -> (Option<WatchMsgsResponse>, Option<OwnedSemaphorePermit>) {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (None, None);
    }
}

/// What the caller reads.
pub struct WatchStream {
    received: mpsc::Receiver<Arc<Parcel>>,
    /// The permits of the events that are with the connection, which releases them as it writes.
    unwritten: ResponsePlace,
    end: Arc<OnceLock<Failure>>,
    _gone: DropGuard,
}

impl Stream for WatchStream {
    type Item = Result<WatchMsgsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(parcel) = ready!(self.received.poll_recv(cx)) else {
                let end = std::mem::take(&mut self.end);
                return Poll::Ready(end.get().map(|failure| Err(failure.clone().into())));
            };
            let (event, permit) = parcel.take();
            permit.into_iter().for_each(|permit| self.unwritten.add(permit));
            if let Some(event) = event {
                return Poll::Ready(Some(Ok(event)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
