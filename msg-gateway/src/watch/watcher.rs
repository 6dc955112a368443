//! The task of one WatchMsgs stream: sends rows from the feed, and reads rows that are not cached any more from the
//! table.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use msg_common::proto::watch_msgs_response::Event;
use msg_common::proto::{Heartbeat, StoredMsg, WatchMsgsResponse, WatchedMsgs};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::budget::Permit;
use crate::incoming::Lifetime;
use crate::metrics::answered;
use crate::read::pull::Query;
use crate::status::Failure;
use crate::watch::RETRY_INTERVAL;
use crate::watch::feed::size;
use crate::watch::queries::CatchUpPermit;
use crate::watch::watched::{BufferedEvent, Watched};

/// Maximum messages and bytes of one event, which may be exceeded by a single message. Small, because a stream whose
/// caller does not read holds that much.
const EVENT_ROWS: usize = 500;
const EVENT_BYTES: usize = 64 << 10;

/// The task of one stream.
pub(super) struct Watcher {
    watched: Watched,
    /// The last `seq` that was sent, by index of the inbox.
    pub(super) cursors: Vec<i64>,
    omit_content: bool,
    lifetime: Lifetime,
}

impl Watcher {
    pub(super) fn new(watched: Watched, cursors: Vec<i64>, omit_content: bool, lifetime: Lifetime) -> Self {
        Watcher { watched, cursors, omit_content, lifetime }
    }

    pub(super) async fn run(
        mut self,
        events: mpsc::Sender<Arc<BufferedEvent>>,
        end: Arc<OnceLock<Failure>>,
        disconnected: CancellationToken,
    ) {
        let lifetime = self.lifetime.clone();
        let failure = tokio::select! {
            failure = self.send_all(&events) => Some(failure),
            () = lifetime.ending() => Some(Failure::StreamEnded),
            () = events.closed() => None,
        };
        answered("WatchMsgs", failure.as_ref().map_or("OK", Failure::outcome));
        let Some(failure) = failure else { return };
        let is_slow = failure == Failure::SlowReader;
        // The stream reads it at its end, when `events` is dropped.
        let _ = end.set(failure);
        drop(events);
        let timeout = self.watched.watches.response_read_timeout;
        drop(self);
        // The connection holds the stream's bytes until the stream or the connection is closed.
        if is_slow && tokio::time::timeout(timeout, disconnected.cancelled()).await.is_err() {
            lifetime.disconnect_slow_reader();
        }
    }

    /// Sends events until the caller has not read for the stall timeout. Heartbeats continue while the next messages
    /// wait for a permit.
    async fn send_all(&mut self, events: &mpsc::Sender<Arc<BufferedEvent>>) -> Failure {
        let watches = self.watched.watches.clone();
        let options = &watches.options;
        let mut sent = Sent::default();
        // The first event is always a heartbeat: it shows the caller that the watch has started.
        let Ok(slot) = events.reserve().await else { std::future::pending().await };
        sent.send(Some(slot), heartbeat(), None);
        let mut heartbeat_at = Instant::now() + options.heartbeat_interval;
        loop {
            let Ok(slot) = tokio::time::timeout(options.watch_stall_timeout, events.reserve()).await else {
                return sent.slow_reader();
            };
            let Ok(slot) = slot else { std::future::pending().await };
            let (mut slot, mut event, mut stalled_at) = (Some(slot), None, Instant::now());
            // Gather only when a slot is free: messages that arrive meanwhile are in the same event. The future is kept
            // when a heartbeat is sent in between, because it may have waited for its catch-up permit for long.
            let gathering = self.gather();
            tokio::pin!(gathering);
            while event.is_none() || slot.is_none() {
                tokio::select! {
                    gathered = &mut gathering, if event.is_none() => event = Some(gathered),
                    reserved = events.reserve(), if slot.is_none() => match reserved {
                        Ok(reserved) => slot = Some(reserved),
                        Err(_) => std::future::pending().await,
                    },
                    () = tokio::time::sleep_until(stalled_at), if slot.is_none() => return sent.slow_reader(),
                    () = tokio::time::sleep_until(heartbeat_at), if slot.is_some() => {
                        let now = Instant::now();
                        (heartbeat_at, stalled_at) = (now + options.heartbeat_interval, now + options.watch_stall_timeout);
                        sent.send(slot.take(), heartbeat(), None);
                    }
                }
            }
            if let Some((event, permit)) = event {
                sent.send(slot, event, permit);
                heartbeat_at = Instant::now() + options.heartbeat_interval;
            }
        }
    }

    /// Returns the next messages, with the permit for their bytes, which is acquired before they are read. Waits
    /// without limit.
    async fn gather(&mut self) -> (WatchMsgsResponse, Option<Permit>) {
        let watches = self.watched.watches.clone();
        let mut bytes = EVENT_BYTES;
        let mut catch_up = None;
        loop {
            self.watched.pending.marked().await;
            let mut permit = watches.buffer.acquire(bytes).await;
            match self.gather_up_to(bytes, catch_up.as_ref()).await {
                Gathered::Nothing => (bytes, catch_up) = (EVENT_BYTES, None),
                // A single larger message: acquire a permit of its size and gather again. No watcher holds a permit of
                // the buffer while it waits for another one or to catch up: watchers that catch up must not block
                // those that have caught up.
                Gathered::TooLarge(larger) => bytes = larger,
                Gathered::Catchup => {
                    drop(permit);
                    catch_up = Some(watches.queries.acquire_catch_up().await);
                }
                Gathered::Failed => {
                    drop(permit);
                    (bytes, catch_up) = (EVENT_BYTES, None);
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                Gathered::Event(event, size) => {
                    permit.shrink(size);
                    return (event, Some(permit));
                }
            }
        }
    }

    async fn gather_up_to(&mut self, max_bytes: usize, catch_up: Option<&CatchUpPermit>) -> Gathered {
        let watches = self.watched.watches.clone();
        // A large message is sent alone. Otherwise a stream could get many small messages in an event of that size.
        let max_rows = if max_bytes > EVENT_BYTES { 1 } else { EVENT_ROWS };
        let (mut msgs, mut bytes, mut behind) = (Vec::new(), 0, false);
        while msgs.len() < max_rows && bytes < max_bytes {
            let Some(index) = self.watched.pending.next() else { break };
            let (recv_id, cursor) = (&self.watched.recv_ids[index], self.cursors[index]);
            let mut slice = watches.feed.slice(recv_id, cursor, max_rows - msgs.len(), max_bytes - bytes);
            if slice.tip <= cursor {
                continue;
            }
            let from_table = slice.rows.is_empty();
            if from_table {
                if !msgs.is_empty() {
                    self.watched.pending.put_back(index);
                    break;
                }
                let Some(catch_up) = catch_up else {
                    self.watched.pending.put_back(index);
                    return Gathered::Catchup;
                };
                // Boxed: it is rare, and would be most of the memory of an idle watcher's task.
                let Some(rows) = Box::pin(self.page(catch_up, index, max_bytes, max_rows)).await else {
                    self.watched.pending.put_back(index);
                    return Gathered::Failed;
                };
                slice.rows = rows;
                // A row that does not exist at all is not waited for.
                if slice.rows.is_empty() {
                    continue;
                }
            }
            let size: usize = slice.rows.iter().map(|row| size(row)).sum();
            if bytes + size > max_bytes {
                if msgs.is_empty() {
                    self.watched.pending.put_back(index);
                    return Gathered::TooLarge(size);
                }
                self.watched.pending.put_back(index);
                break;
            }
            let source = if from_table { &watches.from_table } else { &watches.from_cache };
            source.increment(slice.rows.len() as u64);
            bytes += size;
            let cursor = slice.rows.last().map_or(cursor, |last| last.seq);
            self.cursors[index] = cursor;
            if cursor < slice.tip {
                behind = true;
                self.watched.pending.mark(index);
            }
            msgs.extend(slice.rows.iter().map(|row| copy(row, self.omit_content)));
            if from_table {
                break;
            }
        }
        if msgs.is_empty() {
            return Gathered::Nothing;
        }
        Gathered::Event(WatchMsgsResponse { event: Some(Event::Msgs(WatchedMsgs { msgs, behind })) }, bytes)
    }

    /// Returns the next rows of an inbox from the table: up to `max_bytes`, and at least one. `None` if the query
    /// failed.
    async fn page(
        &self,
        catch_up: &CatchUpPermit,
        index: usize,
        max_bytes: usize,
        max_rows: usize,
    ) -> Option<Vec<Arc<StoredMsg>>> {
        let watches = &self.watched.watches;
        let page_size = i32::try_from(max_rows).expect("it is small");
        let recv_id = self.watched.recv_ids[index].to_string();
        let query = Query::after(recv_id, self.cursors[index], page_size, self.omit_content);
        let page = watches.queries.page(catch_up, &query, i64::try_from(max_bytes).unwrap_or(i64::MAX)).await;
        let (rows, _) = page.ok()?;
        // The query counts bytes differently.
        let mut sum = 0;
        let fits = rows.into_iter().enumerate().take_while(|(number, row)| {
            sum += size(row);
            *number == 0 || sum <= max_bytes
        });
        Some(fits.map(|(_, row)| Arc::new(row)).collect())
    }
}

enum Gathered {
    Nothing,
    /// The next rows have to be read from the table, and that needs a catch-up permit.
    Catchup,
    Failed,
    /// The next message alone needs this many bytes.
    TooLarge(usize),
    /// An event and its bytes.
    Event(WatchMsgsResponse, usize),
}

/// The events that a caller who does not read may still hold: one in the channel, and one that was received before it.
#[derive(Default)]
struct Sent([Option<Arc<BufferedEvent>>; 2]);

impl Sent {
    fn send(
        &mut self,
        slot: Option<mpsc::Permit<'_, Arc<BufferedEvent>>>,
        event: WatchMsgsResponse,
        permit: Option<Permit>,
    ) {
        let Some(slot) = slot else { return };
        let buffered = Arc::new(BufferedEvent::new(event, permit));
        self.0 = [self.0[1].take(), Some(buffered.clone())];
        slot.send(buffered);
    }

    fn slow_reader(&self) -> Failure {
        self.0.iter().flatten().for_each(|buffered| buffered.clear());
        Failure::SlowReader
    }
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
