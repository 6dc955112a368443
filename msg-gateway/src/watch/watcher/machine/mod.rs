//! Decides what one watcher gets, and when: which rows are read next, from the cache or from the table, when a
//! heartbeat is due, and when and why the stream ends. It has no I/O and no clock, and nothing in here waits.
//!
//! After each event, the driver requests actions and carries them out until [`Action::Wait`]. The result of an action
//! is an event, too: the action names its method.

mod gathering;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use msg_common::proto::WatchedMsgs;

use crate::budget::Permit;
use crate::watch::feed::FeedSlice;
use crate::watch::pending_inboxes::PendingInboxes;
use crate::watch::queries::CatchUpPermit;
use crate::watch::watcher::machine::gathering::Gathering;

/// What the watcher has in common with the feed, all of it in memory. An inbox is known by its index.
pub(super) trait Inboxes {
    /// Returns the queue of the inboxes that have rows for the watcher. The feed may queue an inbox at any time.
    fn pending(&self) -> &PendingInboxes;
    /// Returns the cached rows after `cursor`: up to `rows` and up to `bytes`, and at least one if one is cached.
    fn slice(&self, index: usize, cursor: i64, rows: usize, bytes: usize) -> FeedSlice;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) max_rows: usize,
    /// Maximum bytes of one event. A larger message is in an event of its own.
    pub(super) max_bytes: usize,
    pub(super) omit_content: bool,
    /// With no event for this long, a heartbeat is sent.
    pub(super) heartbeat_interval: Duration,
    /// If the caller reads no event for this long, the stream ends.
    pub(super) stall_timeout: Duration,
    /// The wait after a failed read of the table.
    pub(super) retry_interval: Duration,
}

/// What the driver has to do. `S` is a slot: the capacity for one event in the channel to the caller.
pub(super) enum Action<S> {
    /// Acquire a permit for this many bytes of the buffer, without a timeout. [`Machine::memory`].
    AcquireMemory(usize),
    /// Acquire a permit to read the table, without a timeout. [`Machine::catch_up`].
    AcquireCatchUp,
    /// Read rows from the table. [`Machine::page`].
    ReadPage(Page, CatchUpPermit),
    SendHeartbeat(S),
    /// Send messages, which came from this source. `memory` is the permit for their bytes.
    SendMsgs {
        slot: S,
        msgs: WatchedMsgs,
        source: Source,
        memory: Permit,
    },
    /// End the stream, and cancel the operation in progress.
    End(End),
    Wait,
}

/// The rows to read: those of an inbox after `cursor`, up to `max_rows` and `max_bytes`, and at least one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) index: usize,
    pub(super) cursor: i64,
    pub(super) max_rows: usize,
    pub(super) max_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Cache,
    Table,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The caller has closed the stream.
    Disconnected,
    /// The gateway drains, or the connection has reached its age.
    ConnectionEnding,
    SlowReader,
}

/// Where the next event goes.
enum Outlet<S> {
    Free(S),
    /// The caller has not read the last event. At `stalled_at` the stream ends.
    Full {
        stalled_at: Instant,
    },
}

/// The state of one watch. It drops a permit when its purpose ends, so that no release can be forgotten.
pub(super) struct Machine<S> {
    settings: Settings,
    /// The last `seq` that was gathered, by index of the inbox.
    cursors: Vec<i64>,
    gathering: Gathering,
    outlet: Outlet<S>,
    heartbeat_at: Instant,
    /// Set until the driver gets [`Action::End`].
    end: Option<End>,
}

impl<S> Machine<S> {
    /// Creates the machine of a stream that starts at these cursors.
    pub(super) fn new(settings: Settings, cursors: Vec<i64>, now: Instant) -> Self {
        let outlet = Outlet::Full { stalled_at: now + settings.stall_timeout };
        Machine { settings, cursors, gathering: Gathering::Opening, outlet, heartbeat_at: now, end: None }
    }

    pub(super) fn next_action(&mut self, inboxes: &impl Inboxes, now: Instant) -> Action<S> {
        if let Outlet::Full { stalled_at } = self.outlet
            && stalled_at <= now
        {
            self.end_with(End::SlowReader);
        }
        if let Some(end) = self.end.take() {
            return Action::End(end);
        }
        // Messages first: a heartbeat is for a caller that gets none.
        if let Some(action) = self.gather(inboxes, now) {
            return action;
        }
        if self.heartbeat_at <= now
            && let Some(slot) = self.use_slot(now)
        {
            self.gathering.opened();
            return Action::SendHeartbeat(slot);
        }
        Action::Wait
    }

    /// Returns whether the next event needs a slot. [`Machine::reserved`] is the event when there is one.
    pub(super) fn awaits_slot(&self) -> bool {
        matches!(self.outlet, Outlet::Full { .. })
    }

    /// Returns whether to request actions again when an inbox is queued.
    pub(super) fn awaits_inbox(&self) -> bool {
        matches!(self.gathering, Gathering::AwaitingInbox)
    }

    /// Returns the time at which to request actions again.
    pub(super) fn next_timeout(&self) -> Instant {
        let outlet = match self.outlet {
            Outlet::Free(_) => self.heartbeat_at,
            Outlet::Full { stalled_at } => stalled_at,
        };
        self.gathering.retry_at().map_or(outlet, |retry_at| retry_at.min(outlet))
    }

    /// Handles the capacity for one more event: the caller has read the last one.
    pub(super) fn reserved(&mut self, slot: S) {
        self.outlet = Outlet::Free(slot);
    }

    pub(super) fn memory(&mut self, memory: Permit) {
        self.gathering.memory(memory);
    }

    pub(super) fn catch_up(&mut self, permit: CatchUpPermit) {
        self.gathering.catch_up(permit);
    }

    /// Ends the stream, because the caller has closed it.
    pub(super) fn disconnected(&mut self) {
        self.end_with(End::Disconnected);
    }

    /// Ends the stream, because the gateway drains or the connection has reached its age.
    pub(super) fn connection_ending(&mut self) {
        self.end_with(End::ConnectionEnding);
    }

    /// The first end counts.
    fn end_with(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// Returns the slot for an event that is sent now, if there is one.
    fn use_slot(&mut self, now: Instant) -> Option<S> {
        if self.awaits_slot() {
            return None;
        }
        self.heartbeat_at = now + self.settings.heartbeat_interval;
        let full = Outlet::Full { stalled_at: now + self.settings.stall_timeout };
        match std::mem::replace(&mut self.outlet, full) {
            Outlet::Free(slot) => Some(slot),
            Outlet::Full { .. } => None,
        }
    }
}
