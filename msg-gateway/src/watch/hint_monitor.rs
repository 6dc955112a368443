//! Knows whether a waiter or watcher needs hints, and whether hints are reliable.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// For how long hints count as unreliable after a row was found that had no hint.
const UNRELIABLE_FOR: Duration = Duration::from_secs(10);

/// The state that waiters and watchers share with the hint reader.
#[derive(Debug, Default)]
pub(crate) struct HintMonitor {
    interested: AtomicUsize,
    /// Whether the hints are read up to their end.
    caught_up: AtomicBool,
    unreliable_since: Mutex<Option<Instant>>,
    reader: Mutex<Option<Thread>>,
}

/// Keeps the hint reader reading until it is dropped.
#[derive(Debug)]
pub(crate) struct HintInterest(Arc<HintMonitor>);

impl HintMonitor {
    /// Registers a waiter or watcher, and wakes the hint reader for the first one.
    pub(crate) fn register_interest(self: &Arc<Self>) -> HintInterest {
        if self.interested.fetch_add(1, Ordering::Relaxed) == 0
            && let Some(reader) = &*self.reader.lock().unwrap_or_else(PoisonError::into_inner)
        {
            reader.unpark();
        }
        HintInterest(self.clone())
    }

    /// Returns whether a waiter or watcher exists.
    pub(crate) fn has_interest(&self) -> bool {
        self.interested.load(Ordering::Relaxed) > 0
    }

    /// Sets the thread that is unparked when the first waiter or watcher registers.
    pub(crate) fn set_reader_thread(&self, reader: Thread) {
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(reader);
    }

    /// Records whether the hints are read up to their end. Earlier hints were missed, so hints are unreliable for a
    /// while after each change.
    pub(crate) fn set_caught_up(&self, caught_up: bool) {
        if self.caught_up.swap(caught_up, Ordering::Relaxed) != caught_up {
            tracing::debug!(caught_up, "changed state of the hint reader");
            self.mark_unreliable();
        }
    }

    /// Records that a row was stored for a while without a hint.
    pub(crate) fn mark_unreliable(&self) {
        *self.unreliable_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns whether polling the table rarely is enough.
    pub(crate) fn is_reliable(&self) -> bool {
        let unreliable_since = *self.unreliable_since.lock().unwrap_or_else(PoisonError::into_inner);
        self.caught_up.load(Ordering::Relaxed) && unreliable_since.is_none_or(|when| when.elapsed() > UNRELIABLE_FOR)
    }
}

impl Drop for HintInterest {
    fn drop(&mut self) {
        self.0.interested.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_reliable_only_while_read_and_complete() {
        let monitor = HintMonitor::default();
        assert!(!monitor.is_reliable());
        let time_passes = || {
            let mut unreliable_since = monitor.unreliable_since.lock().expect("no thread panicked");
            *unreliable_since =
                unreliable_since.and_then(|when| when.checked_sub(UNRELIABLE_FOR + Duration::from_millis(1)));
        };
        monitor.set_caught_up(true);
        assert!(!monitor.is_reliable(), "earlier hints were missed");
        time_passes();
        monitor.set_caught_up(true);
        assert!(monitor.is_reliable());
        monitor.mark_unreliable();
        assert!(!monitor.is_reliable());
        time_passes();
        assert!(monitor.is_reliable());
        monitor.set_caught_up(false);
        time_passes();
        assert!(!monitor.is_reliable());
    }

    #[test]
    fn interest_lasts_until_it_is_dropped() {
        let monitor = Arc::new(HintMonitor::default());
        let (one, other) = (monitor.register_interest(), monitor.register_interest());
        drop(one);
        assert!(monitor.has_interest());
        drop(other);
        assert!(!monitor.has_interest());
    }
}
