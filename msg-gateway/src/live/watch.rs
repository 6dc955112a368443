//! WatchMsgs: one task a stream. It sends what is in the feed, and reads from the table what is not there any more.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use metrics::{Counter, counter};
use msg_common::limits::{Violation, check_id};
use msg_common::proto::watch_msgs_response::Event;
use msg_common::proto::{Heartbeat, StoredMsg, WatchMsgsRequest, WatchMsgsResponse, WatchedMsgs};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use crate::config::{Config, LiveOptions};
use crate::incoming::Lifetime;
use crate::live::feed::{Feed, size};
use crate::live::look::Looker;
use crate::live::mailbox::Mailbox;
use crate::live::pulse::{Interest, Pulse};
use crate::metrics::{WATCHED_MSGS, answered};
use crate::place::{Held, Place as ResponsePlace};
use crate::read::pull::Query;
use crate::status::Failure;

/// Most inboxes on one stream.
const MAX_INBOXES: usize = 1000;
/// Most messages, and bytes but for one message, of one event. Small: it is what a stream holds whose caller does not read.
const EVENT_ROWS: usize = 500;
const EVENT_BYTES: usize = 64 << 10;
/// How long to wait after the database did not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// All who watch.
pub struct Watches {
    feed: Arc<Feed>,
    looker: Arc<Looker>,
    pulse: Arc<Pulse>,
    options: LiveOptions,
    max_id_bytes: usize,
    /// How long a caller may leave an answer untaken.
    answer_timeout: Duration,
    /// Bytes of events that were made and not taken.
    buffered: Arc<Semaphore>,
    streams: AtomicUsize,
    inboxes: AtomicUsize,
    next: AtomicU64,
    from_cache: Counter,
    from_table: Counter,
}

impl Watches {
    /// Nobody watches yet.
    pub fn new(feed: Arc<Feed>, looker: Arc<Looker>, pulse: Arc<Pulse>, config: &Config) -> Self {
        let options = config.live.clone();
        let (max_id_bytes, answer_timeout) = (config.limits.max_id_bytes, config.server.answer_timeout);
        let buffered = Arc::new(Semaphore::new(most_permits(&options)));
        let (streams, inboxes, next) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
        let [from_cache, from_table] = ["CACHE", "TABLE"].map(|source| counter!(WATCHED_MSGS, "source" => source));
        Watches {
            feed,
            looker,
            pulse,
            options,
            max_id_bytes,
            answer_timeout,
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
        check(&request, self.max_id_bytes)?;
        let recv_ids: Vec<Arc<str>> = request.inboxes.iter().map(|inbox| inbox.recv_id.as_str().into()).collect();
        let place = Place::take(self, recv_ids.len())?;
        let mailbox = Arc::new(Mailbox::new(self.next.fetch_add(1, Ordering::Relaxed), recv_ids.len()));
        let interest = self.pulse.interest();
        // First the hints, then the table: what is stored in between comes twice at most, and is told apart by its seq.
        self.feed.enter(&mailbox, &recv_ids);
        let watched = Watched { mailbox, recv_ids, place, _interest: interest };
        let reached = self.looker.last_seqs(&watched.recv_ids).await?;
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
        let (events, received) = mpsc::channel(1);
        let end = Arc::new(OnceLock::new());
        let gone = CancellationToken::new();
        let unwritten = Held::new([]);
        let (given, gone_with) = (unwritten.clone(), gone.clone().drop_guard());
        let stream = WatchStream { received, unwritten: given, end: end.clone(), _gone: gone_with };
        let watcher = Watcher { watched, cursors, omit_content: request.omit_content, lifetime };
        tokio::spawn(watcher.run(events, end, gone));
        Ok((stream, unwritten))
    }
}

fn most_permits(options: &LiveOptions) -> usize {
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
struct Watched {
    mailbox: Arc<Mailbox>,
    recv_ids: Vec<Arc<str>>,
    place: Place,
    _interest: Interest,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.place.watches.feed.leave(&self.mailbox, &self.recv_ids);
    }
}

/// One stream's task.
struct Watcher {
    watched: Watched,
    /// The last seq that was sent of each inbox.
    cursors: Vec<i64>,
    omit_content: bool,
    lifetime: Lifetime,
}

impl Watcher {
    async fn run(mut self, events: mpsc::Sender<Arc<Parcel>>, end: Arc<OnceLock<Failure>>, gone: CancellationToken) {
        let lifetime = self.lifetime.clone();
        let failure = tokio::select! {
            failure = self.send_all(&events) => Some(failure),
            () = lifetime.ending() => Some(Failure::StreamEnded),
            () = events.closed() => None,
        };
        answered("WatchMsgs", failure.as_ref().map_or("OK", Failure::outcome));
        let Some(failure) = failure else { return };
        let is_slow = failure == Failure::SlowReader;
        // It is told when the stream is at its end, which is when `events` is dropped.
        let _ = end.set(failure);
        drop(events);
        let patience = self.watched.place.watches.answer_timeout;
        drop(self);
        // What its connection holds of it goes only with the stream, or else with the connection.
        if is_slow && tokio::time::timeout(patience, gone.cancelled()).await.is_err() {
            lifetime.end_for_silence();
        }
    }

    async fn send_all(&mut self, events: &mpsc::Sender<Arc<Parcel>>) -> Failure {
        let watches = self.watched.place.watches.clone();
        let options = &watches.options;
        // What may still lie with a caller who does not read: one event that waits, and one that was taken before it.
        let mut last: [Option<Arc<Parcel>>; 2] = [None, None];
        let mut event = Some((heartbeat(), None));
        loop {
            // Not before there is room: what comes meanwhile goes with the same event.
            let Ok(slot) = tokio::time::timeout(options.watch_stall_timeout, events.reserve()).await else {
                last.iter().flatten().for_each(|parcel| parcel.clear());
                return Failure::SlowReader;
            };
            let Ok(slot) = slot else { std::future::pending().await };
            if event.is_none() {
                event = self.gather().await;
            }
            if let Some((event, permit)) = event.take() {
                let parcel = Arc::new(Parcel::new(event, permit));
                last = [last[1].take(), Some(parcel.clone())];
                slot.send(parcel);
            }
            if tokio::time::timeout(options.heartbeat_interval, self.watched.mailbox.marked()).await.is_err() {
                event = Some((heartbeat(), None));
            }
        }
    }

    /// The next messages, with the permit for their bytes, which is there before they are. A heartbeat when there is no
    /// permit for a while, because others take nothing; `None` when there is nothing to send after all.
    async fn gather(&mut self) -> Option<(WatchMsgsResponse, Option<OwnedSemaphorePermit>)> {
        let watches = self.watched.place.watches.clone();
        let mut bytes = EVENT_BYTES;
        loop {
            let permits = u32::try_from(bytes.min(most_permits(&watches.options))).expect("no more than that");
            let permit = watches.buffered.clone().acquire_many_owned(permits);
            let Ok(permit) = tokio::time::timeout(watches.options.heartbeat_interval, permit).await else {
                return Some((heartbeat(), None));
            };
            let mut permit = permit.expect("it is never closed");
            match self.gather_up_to(bytes).await {
                Gathered::Nothing => return None,
                // One message that is larger: its permit, and then again. Nobody holds one while it waits for another.
                Gathered::TooLarge(larger) => bytes = larger,
                Gathered::Event(event, size) => {
                    let unused = permit.num_permits().saturating_sub(size);
                    drop(permit.split(unused));
                    return Some((event, Some(permit)));
                }
            }
        }
    }

    async fn gather_up_to(&mut self, most: usize) -> Gathered {
        let watches = self.watched.place.watches.clone();
        let (mut msgs, mut bytes, mut behind) = (Vec::new(), 0, false);
        while msgs.len() < EVENT_ROWS && bytes < most {
            let Some(place) = self.watched.mailbox.next() else { break };
            let recv_id = &self.watched.recv_ids[place];
            let cursor = &mut self.cursors[place];
            let mut taken = watches.feed.take(recv_id, *cursor, EVENT_ROWS - msgs.len(), most - bytes);
            if taken.tip <= *cursor {
                continue;
            }
            let from_table = taken.rows.is_empty();
            if from_table && msgs.is_empty() {
                let page_size = i32::try_from(EVENT_ROWS).expect("it is small");
                let query = Query::after(recv_id.to_string(), *cursor, page_size, self.omit_content);
                // Boxed: it is seldom, and would be most of what an idle watcher's task takes.
                let page = Box::pin(watches.looker.page(&query, i64::try_from(most).unwrap_or(i64::MAX))).await;
                let Ok((rows, _)) = page else {
                    self.watched.mailbox.mark(place);
                    tokio::time::sleep(PAUSE).await;
                    return Gathered::Nothing;
                };
                // It counts bytes in another way.
                let mut sum = 0;
                let fits = rows.into_iter().enumerate().take_while(|(number, row)| {
                    sum += size(row);
                    *number == 0 || sum <= most
                });
                taken.rows = fits.map(|(_, row)| Arc::new(row)).collect();
            }
            let size: usize = taken.rows.iter().map(|row| size(row)).sum();
            if taken.rows.is_empty() || bytes + size > most {
                // What does not fit, or has to come from the table, goes next time; what is not there at all is not waited for.
                if !from_table || !msgs.is_empty() || size > 0 {
                    self.watched.mailbox.mark(place);
                }
                match msgs.is_empty() {
                    true if size > most => return Gathered::TooLarge(size),
                    true => continue,
                    false => break,
                }
            }
            let source = if from_table { &watches.from_table } else { &watches.from_cache };
            source.increment(taken.rows.len() as u64);
            bytes += size;
            *cursor = taken.rows.last().map_or(*cursor, |last| last.seq);
            if *cursor < taken.tip {
                behind = true;
                self.watched.mailbox.mark(place);
            }
            msgs.extend(taken.rows.iter().map(|row| copy(row, self.omit_content)));
            if from_table {
                break;
            }
        }
        if msgs.is_empty() {
            return Gathered::Nothing;
        }
        Gathered::Event(WatchMsgsResponse { event: Some(Event::Msgs(WatchedMsgs { msgs, behind })) }, bytes)
    }
}

enum Gathered {
    /// There is nothing to send.
    Nothing,
    /// So many bytes are needed for the next message alone.
    TooLarge(usize),
    /// An event, and its bytes.
    Event(WatchMsgsResponse, usize),
}

fn copy(row: &StoredMsg, omit_content: bool) -> StoredMsg {
    let mut row = row.clone();
    if let Some(msg) = row.msg.as_mut().filter(|_| omit_content) {
        msg.content.clear();
    }
    row
}

fn heartbeat() -> WatchMsgsResponse {
    WatchMsgsResponse { event: Some(Event::Heartbeat(Heartbeat { time: Some(SystemTime::now().into()) })) }
}

/// An event on its way, with the permit for its bytes.
struct Parcel(Mutex<(Option<WatchMsgsResponse>, Option<OwnedSemaphorePermit>)>);

impl Parcel {
    fn new(event: WatchMsgsResponse, permit: Option<OwnedSemaphorePermit>) -> Self {
        Parcel(Mutex::new((Some(event), permit)))
    }

    fn take(&self) -> (Option<WatchMsgsResponse>, Option<OwnedSemaphorePermit>) {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn clear(&self) {
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
