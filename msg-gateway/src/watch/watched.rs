//! What the WatchMsgs streams share: their limits, their inboxes in the feed, and the events that are not read yet.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{Counter, counter};
use msg_common::proto::WatchMsgsResponse;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{Config, WatchOptions};
use crate::metrics::WATCHED_MSGS;
use crate::status::Failure;
use crate::watch::feed::Feed;
use crate::watch::hint_monitor::{HintInterest, HintMonitor};
use crate::watch::pending_inboxes::PendingInboxes;
use crate::watch::queries::WatchQueries;

/// The budgets and the feed that all watch streams share.
pub(crate) struct Watches {
    pub(super) feed: Arc<Feed>,
    pub(super) queries: Arc<WatchQueries>,
    pub(super) monitor: Arc<HintMonitor>,
    pub(super) options: WatchOptions,
    pub(super) max_id_bytes: usize,
    /// How long a caller may leave a response unread.
    pub(super) response_read_timeout: Duration,
    /// Bytes of events that were created and not read.
    pub(super) buffered: Arc<Semaphore>,
    streams: AtomicUsize,
    inboxes: AtomicUsize,
    pub(super) next: AtomicU64,
    pub(super) from_cache: Counter,
    pub(super) from_table: Counter,
}

impl Watches {
    pub(crate) fn new(feed: Arc<Feed>, queries: Arc<WatchQueries>, monitor: Arc<HintMonitor>, config: &Config) -> Self {
        let options = config.watch.clone();
        let (max_id_bytes, response_read_timeout) = (config.limits.max_id_bytes, config.server.response_read_timeout);
        let buffered = Arc::new(Semaphore::new(max_permits(&options)));
        let (streams, inboxes, next) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
        let [from_cache, from_table] = ["CACHE", "TABLE"].map(|source| counter!(WATCHED_MSGS, "source" => source));
        Watches {
            feed,
            queries,
            monitor,
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

    /// Returns the number of streams, and of inboxes over all of them.
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.streams.load(Ordering::Relaxed), self.inboxes.load(Ordering::Relaxed))
    }
}

/// The permits of the event buffer, one per byte.
pub(super) fn max_permits(options: &WatchOptions) -> usize {
    options.watch_buffer_bytes.min(u32::MAX as usize)
}

/// A stream's permit for itself and its inboxes.
pub(super) struct WatchPermit {
    watches: Arc<Watches>,
    inboxes: usize,
}

impl WatchPermit {
    pub(super) fn acquire(watches: &Arc<Watches>, inboxes: usize) -> Result<Self, Failure> {
        // Increment before the check. With check-then-increment, two concurrent calls could both get the last permit.
        let streams = watches.streams.fetch_add(1, Ordering::Relaxed);
        let before = watches.inboxes.fetch_add(inboxes, Ordering::Relaxed);
        let permit = WatchPermit { watches: watches.clone(), inboxes };
        if streams >= watches.options.max_watchers {
            return Err(Failure::Overloaded(
                "too many watch streams are open; retry after the delay, or raise MAX_WATCHERS".into(),
            ));
        }
        if before + inboxes > watches.options.max_watched_inboxes {
            return Err(Failure::Overloaded(
                "too many inboxes are watched; retry after the delay, or raise MAX_WATCHED_INBOXES".into(),
            ));
        }
        Ok(permit)
    }
}

impl Drop for WatchPermit {
    fn drop(&mut self) {
        self.watches.streams.fetch_sub(1, Ordering::Relaxed);
        self.watches.inboxes.fetch_sub(self.inboxes, Ordering::Relaxed);
    }
}

/// The subscription of one stream, which ends when it is dropped.
pub(super) struct Watched {
    pub(super) pending: Arc<PendingInboxes>,
    pub(super) recv_ids: Vec<Arc<str>>,
    pub(super) permit: WatchPermit,
    pub(super) _interest: HintInterest,
}

impl Watched {
    pub(super) fn watches(&self) -> &Arc<Watches> {
        &self.permit.watches
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.permit.watches.feed.unsubscribe(&self.pending, &self.recv_ids);
    }
}

/// An event that the caller has not read, with the permit for its bytes.
pub(super) struct BufferedEvent(Mutex<(Option<WatchMsgsResponse>, Option<OwnedSemaphorePermit>)>);

impl BufferedEvent {
    pub(super) fn new(event: WatchMsgsResponse, permit: Option<OwnedSemaphorePermit>) -> Self {
        BufferedEvent(Mutex::new((Some(event), permit)))
    }

    pub(super) fn take(&self) -> (Option<WatchMsgsResponse>, Option<OwnedSemaphorePermit>) {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (None, None);
    }
}
