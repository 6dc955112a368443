//! What the WatchMsgs streams share: their limits, their inboxes in the feed, and the events that are not read yet.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{Counter, counter};
use msg_common::proto::WatchMsgsResponse;

use crate::budget::{Budget, Budgets, Permit};
use crate::config::{Config, WatchOptions};
use crate::metrics::WATCHED_MSGS;
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
    pub(super) buffer: Arc<Budget>,
    /// The streams, and the inboxes of all of them.
    pub(super) budget: Arc<Budget>,
    /// The streams of each caller and of each tenant.
    pub(super) by_caller: Arc<Budget>,
    pub(super) by_tenant: Arc<Budget>,
    pub(super) next: AtomicU64,
    pub(super) from_cache: Counter,
    pub(super) from_table: Counter,
}

impl Watches {
    pub(crate) fn new(
        feed: Arc<Feed>,
        queries: Arc<WatchQueries>,
        monitor: Arc<HintMonitor>,
        budgets: &Budgets,
        config: &Config,
    ) -> Self {
        let options = config.watch.clone();
        let (max_id_bytes, response_read_timeout) = (config.limits.max_id_bytes, config.server.response_read_timeout);
        let [from_cache, from_table] = ["CACHE", "TABLE"].map(|source| counter!(WATCHED_MSGS, "source" => source));
        Watches {
            feed,
            queries,
            monitor,
            options,
            max_id_bytes,
            response_read_timeout,
            buffer: budgets.watch_buffer.clone(),
            budget: budgets.watches.clone(),
            by_caller: budgets.watches_by_caller.clone(),
            by_tenant: budgets.watches_by_tenant.clone(),
            next: AtomicU64::new(0),
            from_cache,
            from_table,
        }
    }
}

/// The subscription of one stream, which ends when it is dropped.
pub(super) struct Watched {
    pub(super) pending: Arc<PendingInboxes>,
    pub(super) recv_ids: Vec<Arc<str>>,
    pub(super) watches: Arc<Watches>,
    pub(super) _permit: Permit,
    pub(super) _interest: HintInterest,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watches.feed.unsubscribe(&self.pending, &self.recv_ids);
    }
}

/// An event that the caller has not read, with the permit for its bytes.
pub(super) struct BufferedEvent(Mutex<(Option<WatchMsgsResponse>, Option<Permit>)>);

impl BufferedEvent {
    pub(super) fn new(event: WatchMsgsResponse, permit: Option<Permit>) -> Self {
        BufferedEvent(Mutex::new((Some(event), permit)))
    }

    pub(super) fn take(&self) -> (Option<WatchMsgsResponse>, Option<Permit>) {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (None, None);
    }
}
