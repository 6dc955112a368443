//! Closes the connections of slow readers: each response has a time by which HTTP/2 must have written it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::response_permit::disconnect_slow_reader;

/// A slow reader is disconnected after the timeout and up to this part of it more.
const TICKS_PER_TIMEOUT: u64 = 8;
/// Maximum number of ticks that a response may have: the length of each connection's ring, at 4 bytes a tick.
const MAX_TICKS: u64 = 1000;

/// Counts the time in ticks, and closes the connections whose callers do not read.
///
/// Ticks are counted, not measured: a process that was stopped for a while must not close every connection when it resumes,
/// since no caller could read meanwhile.
#[derive(Debug)]
pub(crate) struct ReadTimer {
    tick: Duration,
    now: AtomicU64,
    /// The number of ticks of a response, and of an event of a watch, whose own stall timeout must expire first.
    response_ticks: u64,
    watch_ticks: u64,
    connections: Mutex<Vec<Weak<Unread>>>,
}

impl ReadTimer {
    /// Returns a timer with the timeout `response` for responses, and `watch_stall` more for events of watches.
    pub(crate) fn new(response: Duration, watch_stall: Duration) -> Arc<Self> {
        let tick = response.div_f64(TICKS_PER_TIMEOUT as f64).max(Duration::from_millis(1));
        let stall_ticks = (watch_stall.as_secs_f64() / tick.as_secs_f64()).ceil() as u64;
        let response_ticks = TICKS_PER_TIMEOUT + 1;
        let watch_ticks = (response_ticks + stall_ticks).min(MAX_TICKS);
        let (now, connections) = (AtomicU64::new(0), Mutex::default());
        Arc::new(ReadTimer { tick, now, response_ticks, watch_ticks, connections })
    }

    /// Adds a connection, which `cut` closes.
    pub(crate) fn connection(self: &Arc<Self>, cut: CancellationToken) -> Arc<Unread> {
        let ring = (0..=self.watch_ticks).map(|_| AtomicU32::new(0)).collect();
        let unread = Arc::new(Unread { timer: self.clone(), ring, cut });
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&unread));
        unread
    }

    /// Closes connections whose responses are not read, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut every = tokio::time::interval(self.tick);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => self.tick(),
                () = stop.cancelled() => return,
            }
        }
    }

    fn tick(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| match connection.upgrade() {
            Some(connection) => !connection.close_if_due(now),
            None => false,
        });
    }
}

/// The responses of one connection that are not written yet, by the tick by which they have to be.
#[derive(Debug)]
pub(crate) struct Unread {
    timer: Arc<ReadTimer>,
    ring: Box<[AtomicU32]>,
    cut: CancellationToken,
}

impl Unread {
    /// Counts a response, or a chunk of a stream, until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, of_watch: bool) -> UnreadGuard {
        let ticks = if of_watch { self.timer.watch_ticks } else { self.timer.response_ticks };
        let slot = self.slot(self.timer.now.load(Ordering::Relaxed) + ticks);
        self.ring[slot].fetch_add(1, Ordering::Relaxed);
        UnreadGuard { unread: self.clone(), slot }
    }

    fn slot(&self, tick: u64) -> usize {
        usize::try_from(tick % self.ring.len() as u64).expect("it is below a length")
    }

    /// Closes the connection if a response is due, and returns whether it did. The ring has more slots than any response has
    /// ticks, so a slot is checked before it is used again.
    fn close_if_due(&self, now: u64) -> bool {
        if self.ring[self.slot(now)].load(Ordering::Relaxed) == 0 {
            return false;
        }
        disconnect_slow_reader(&self.cut);
        true
    }
}

/// A response that is not written yet.
#[derive(Debug)]
pub(crate) struct UnreadGuard {
    unread: Arc<Unread>,
    slot: usize,
}

impl Drop for UnreadGuard {
    fn drop(&mut self) {
        self.unread.ring[self.slot].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(8);

    fn ticked(timer: &ReadTimer, ticks: u64) {
        (0..ticks).for_each(|_| timer.tick());
    }

    #[test]
    fn unread_response_closes_its_connection_and_no_other() {
        let timer = ReadTimer::new(TIMEOUT, 2 * TIMEOUT);
        let cuts = [CancellationToken::new(), CancellationToken::new()];
        let [slow, quick] = [0, 1].map(|i| timer.connection(cuts[i].clone()));
        ticked(&timer, 1000);
        let (_unread, read) = (slow.enter(false), quick.enter(false));
        ticked(&timer, TICKS_PER_TIMEOUT);
        drop(read);
        assert!(!cuts[0].is_cancelled(), "its time is not over");
        ticked(&timer, 1);
        assert_eq!(cuts.each_ref().map(CancellationToken::is_cancelled), [true, false]);
        ticked(&timer, 1000);
        assert!(!cuts[1].is_cancelled());
    }

    #[test]
    fn watch_event_has_the_stall_timeout_in_addition() {
        let timer = ReadTimer::new(TIMEOUT, 2 * TIMEOUT);
        let cut = CancellationToken::new();
        let connection = timer.connection(cut.clone());
        let _unread = connection.enter(true);
        ticked(&timer, 3 * TICKS_PER_TIMEOUT);
        assert!(!cut.is_cancelled());
        ticked(&timer, 1);
        assert!(cut.is_cancelled());
    }

    #[test]
    fn closed_connections_are_forgotten() {
        let timer = ReadTimer::new(TIMEOUT, TIMEOUT);
        let connections: Vec<_> = (0..3).map(|_| timer.connection(CancellationToken::new())).collect();
        ticked(&timer, 1);
        assert_eq!(timer.connections.lock().expect("no thread panicked").len(), 3);
        drop(connections);
        ticked(&timer, 1);
        assert_eq!(timer.connections.lock().expect("no thread panicked").len(), 0);
    }
}
