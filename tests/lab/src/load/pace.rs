//! Owns the rate at which new messages are started.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How much unused time may be caught up on.
const BURST: Duration = Duration::from_millis(100);

/// A rate in messages a second, which all senders share in the order of their requests.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The time from one message to the next, in seconds.
    gap: f64,
    next: Mutex<Instant>,
}

impl Pace {
    pub(crate) fn new(rate: f64) -> Pace {
        Pace { gap: 1.0 / rate, next: Mutex::new(Instant::now()) }
    }

    /// Returns when this number of messages may be sent.
    pub(crate) fn reserve(&self, messages: usize) -> Instant {
        self.reserve_at(Instant::now(), messages)
    }

    fn reserve_at(&self, now: Instant, messages: usize) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = now.checked_sub(BURST).map_or(*next, |earliest| next.max(earliest));
        *next = at + Duration::from_secs_f64(self.gap * messages as f64);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_spaced_and_idle_time_is_not_saved_up() {
        let pace = Pace::new(100.0);
        let started = Instant::now();
        *pace.next.lock().expect("no other thread has the lock") = started;
        let after = |millis| started + Duration::from_millis(millis);
        assert_eq!(pace.reserve_at(started, 1), started);
        assert_eq!(pace.reserve_at(started, 20), after(10));
        assert_eq!(pace.reserve_at(started, 1), after(210));
        assert_eq!(pace.reserve_at(after(10_000), 1), after(9_900));
        assert_eq!(pace.reserve_at(after(10_000), 1), after(9_910));
    }
}
