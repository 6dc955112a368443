//! Drives the machine of a watch: turns slots, permits, pages, queued inboxes and time into its events, and carries its
//! actions out with the feed, the budgets and the table.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use futures_util::future::BoxFuture;
use msg_common::proto::watch_msgs_response::Event;
use msg_common::proto::{Heartbeat, StoredMsg, WatchMsgsResponse};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::budget::Permit;
use crate::incoming::Lifetime;
use crate::metrics::answered;
use crate::read::pull::Query;
use crate::status::Failure;
use crate::watch::RETRY_INTERVAL;
use crate::watch::feed::FeedSlice;
use crate::watch::pending_inboxes::PendingInboxes;
use crate::watch::queries::CatchUpPermit;
use crate::watch::watched::{BufferedEvent, Watched};
use crate::watch::watcher::machine::{Action, End, Inboxes, Machine, Page, Settings, Source};

/// Maximum messages and bytes of one event, which may be exceeded by a single message. Small, because a stream whose
/// caller does not read holds that much.
const EVENT_ROWS: usize = 500;
const EVENT_BYTES: usize = 64 << 10;

/// A free slot in the channel to the caller.
type Slot<'a> = mpsc::Permit<'a, Arc<BufferedEvent>>;

impl Inboxes for Watched {
    fn pending(&self) -> &PendingInboxes {
        &self.pending
    }

    fn slice(&self, index: usize, cursor: i64, rows: usize, bytes: usize) -> FeedSlice {
        self.watches.feed.slice(&self.recv_ids[index], cursor, rows, bytes)
    }
}

/// The result of an action that was waited for. The machine waits for one at a time.
enum Completed {
    Memory(Permit),
    CatchUp(CatchUpPermit),
    /// The rows, or `None` if the query failed.
    Page(Option<Vec<StoredMsg>>, CatchUpPermit),
}

pub(in crate::watch) struct Watcher {
    watched: Watched,
    /// The last `seq` that the caller has, by index of the inbox.
    pub(in crate::watch) cursors: Vec<i64>,
    omit_content: bool,
    lifetime: Lifetime,
}

impl Watcher {
    pub(in crate::watch) fn new(watched: Watched, cursors: Vec<i64>, omit_content: bool, lifetime: Lifetime) -> Self {
        Watcher { watched, cursors, omit_content, lifetime }
    }

    pub(in crate::watch) async fn run(
        mut self,
        events: mpsc::Sender<Arc<BufferedEvent>>,
        end: Arc<OnceLock<Failure>>,
        disconnected: CancellationToken,
    ) {
        let failure = match self.serve(&events).await {
            End::Disconnected => None,
            End::ConnectionEnding => Some(Failure::StreamEnded),
            End::SlowReader => Some(Failure::SlowReader),
        };
        answered("WatchMsgs", failure.as_ref().map_or("OK", Failure::outcome));
        let Some(failure) = failure else { return };
        let is_slow = failure == Failure::SlowReader;
        // The stream reads it at its end, when `events` is dropped.
        let _ = end.set(failure);
        drop(events);
        let (lifetime, timeout) = (self.lifetime.clone(), self.watched.watches.response_read_timeout);
        drop(self);
        // The connection holds the stream's bytes until the stream or the connection is closed.
        if is_slow && tokio::time::timeout(timeout, disconnected.cancelled()).await.is_err() {
            lifetime.disconnect_slow_reader();
        }
    }

    async fn serve(&mut self, events: &mpsc::Sender<Arc<BufferedEvent>>) -> End {
        let cursors = std::mem::take(&mut self.cursors);
        let watcher = &*self;
        let mut machine = Machine::new(watcher.settings(), cursors, Instant::now());
        let mut operation = None;
        let mut sent = LastEvent::default();
        let mut closed = pin!(events.closed());
        let mut ending = pin!(watcher.lifetime.ending());
        let mut timer_at = machine.next_timeout();
        let mut timer = pin!(tokio::time::sleep_until(timer_at.into()));
        loop {
            if let Some(end) = watcher.act(&mut machine, &mut operation, &mut sent) {
                return end;
            }
            // A timer that is too early only costs a turn.
            if machine.next_timeout() < timer_at || timer.is_elapsed() {
                timer_at = machine.next_timeout();
                timer.as_mut().reset(timer_at.into());
            }
            tokio::select! {
                // A slot before the timer: a caller that has read is not slow, even if this task was late.
                biased;
                () = &mut closed => machine.disconnected(),
                () = &mut ending => machine.connection_ending(),
                Ok(slot) = events.reserve(), if machine.awaits_slot() => machine.reserved(slot),
                completed = completed(&mut operation) => {
                    operation = None;
                    match completed {
                        Completed::Memory(permit) => machine.memory(permit),
                        Completed::CatchUp(permit) => machine.catch_up(permit),
                        Completed::Page(rows, permit) => {
                            machine.page(&watcher.watched, rows, permit, Instant::now());
                        }
                    }
                }
                () = watcher.watched.pending.marked(), if machine.awaits_inbox() => {}
                () = &mut timer => {}
            }
        }
    }

    fn settings(&self) -> Settings {
        let options = &self.watched.watches.options;
        Settings {
            max_rows: EVENT_ROWS,
            max_bytes: EVENT_BYTES,
            omit_content: self.omit_content,
            heartbeat_interval: options.heartbeat_interval,
            stall_timeout: options.watch_stall_timeout,
            retry_interval: RETRY_INTERVAL,
        }
    }

    /// Carries out all actions that are due. Returns the end of the stream.
    fn act<'a>(
        &'a self,
        machine: &mut Machine<Slot<'_>>,
        operation: &mut Option<BoxFuture<'a, Completed>>,
        sent: &mut LastEvent,
    ) -> Option<End> {
        let watches = &self.watched.watches;
        loop {
            match machine.next_action(&self.watched, Instant::now()) {
                Action::AcquireMemory(bytes) => match watches.buffer.try_acquire(bytes) {
                    Ok(permit) => machine.memory(permit),
                    Err(_) => {
                        let acquired = async move { Completed::Memory(watches.buffer.acquire(bytes).await) };
                        *operation = Some(Box::pin(acquired));
                    }
                },
                Action::AcquireCatchUp => {
                    let acquired = async { Completed::CatchUp(watches.queries.acquire_catch_up().await) };
                    *operation = Some(Box::pin(acquired));
                }
                Action::ReadPage(page, permit) => *operation = Some(Box::pin(self.read(page, permit))),
                Action::SendHeartbeat(slot) => {
                    let time = Some(SystemTime::now().into());
                    sent.send(slot, Event::Heartbeat(Heartbeat { time }), None);
                }
                Action::SendMsgs { slot, msgs, source, memory } => {
                    let counter = match source {
                        Source::Cache => &watches.from_cache,
                        Source::Table => &watches.from_table,
                    };
                    counter.increment(msgs.msgs.len() as u64);
                    sent.send(slot, Event::Msgs(msgs), Some(memory));
                }
                Action::End(end) => {
                    if end == End::SlowReader {
                        sent.clear();
                    }
                    return Some(end);
                }
                Action::Wait => return None,
            }
        }
    }

    async fn read(&self, page: Page, permit: CatchUpPermit) -> Completed {
        let Page { index, cursor, max_rows, max_bytes } = page;
        let page_size = i32::try_from(max_rows).expect("it is small");
        let query = Query::after(self.watched.recv_ids[index].to_string(), cursor, page_size, self.omit_content);
        let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let page = self.watched.watches.queries.page(&permit, &query, max_bytes).await;
        Completed::Page(page.ok().map(|(rows, _)| rows), permit)
    }
}

async fn completed(operation: &mut Option<BoxFuture<'_, Completed>>) -> Completed {
    match operation {
        Some(operation) => operation.await,
        None => std::future::pending().await,
    }
}

/// The last event, which a caller that does not read leaves in the channel.
#[derive(Default)]
struct LastEvent(Option<Arc<BufferedEvent>>);

impl LastEvent {
    fn send(&mut self, slot: Slot<'_>, event: Event, permit: Option<Permit>) {
        let buffered = Arc::new(BufferedEvent::new(WatchMsgsResponse { event: Some(event) }, permit));
        self.0 = Some(buffered.clone());
        slot.send(buffered);
    }

    fn clear(&self) {
        self.0.iter().for_each(|buffered| buffered.clear());
    }
}
