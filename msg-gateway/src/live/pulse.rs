//! Whether anybody waits for what is stored, and whether hints tell of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// For so long hints are not relied on after something was found that no hint told of.
const DOUBT: Duration = Duration::from_secs(10);

/// What is shared between those who wait and the reader of the hints.
#[derive(Debug, Default)]
pub struct Pulse {
    interested: AtomicUsize,
    /// The hints are read up to their end.
    live: AtomicBool,
    doubted: Mutex<Option<Instant>>,
    reader: Mutex<Option<Thread>>,
}

/// Somebody waits; until it is dropped.
#[derive(Debug)]
pub struct Interest(Arc<Pulse>);

impl Pulse {
    /// Somebody waits from now on.
    pub fn interest(self: &Arc<Self>) -> Interest {
        if self.interested.fetch_add(1, Ordering::Relaxed) == 0
            && let Some(reader) = &*self.reader.lock().unwrap_or_else(PoisonError::into_inner)
        {
            reader.unpark();
        }
        Interest(self.clone())
    }

    /// Whether anybody waits.
    pub fn is_wanted(&self) -> bool {
        self.interested.load(Ordering::Relaxed) > 0
    }

    /// This thread is unparked when somebody begins to wait.
    pub fn read_by(&self, reader: Thread) {
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(reader);
    }

    /// Whether the hints are read up to their end. Those that came before that were missed, so at first they are in doubt.
    pub fn set_live(&self, live: bool) {
        if self.live.swap(live, Ordering::Relaxed) != live {
            tracing::debug!(live, "reading hints");
            self.doubt();
        }
    }

    /// Something was stored for a while, and no hint told of it.
    pub fn doubt(&self) {
        *self.doubted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether looking at the table now and then is enough.
    pub fn is_reliable(&self) -> bool {
        let doubted = *self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        self.live.load(Ordering::Relaxed) && doubted.is_none_or(|when| when.elapsed() > DOUBT)
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.interested.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_relied_on_only_while_they_are_read_and_complete() {
        let pulse = Pulse::default();
        assert!(!pulse.is_reliable());
        let time_passes = || {
            let mut doubted = pulse.doubted.lock().expect("nobody panics");
            *doubted = doubted.and_then(|when| when.checked_sub(DOUBT + Duration::from_millis(1)));
        };
        pulse.set_live(true);
        assert!(!pulse.is_reliable(), "what came before was missed");
        time_passes();
        pulse.set_live(true);
        assert!(pulse.is_reliable());
        pulse.doubt();
        assert!(!pulse.is_reliable());
        time_passes();
        assert!(pulse.is_reliable());
        pulse.set_live(false);
        time_passes();
        assert!(!pulse.is_reliable());
    }

    #[test]
    fn interest_lasts_until_it_is_dropped() {
        let pulse = Arc::new(Pulse::default());
        let (one, other) = (pulse.interest(), pulse.interest());
        drop(one);
        assert!(pulse.is_wanted());
        drop(other);
        assert!(!pulse.is_wanted());
    }
}
