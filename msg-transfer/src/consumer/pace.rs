//! How long records wait in the client's queue: not at all at low load, and for some milliseconds under load, so that
//! fetches and batches grow (ADR 9).

use std::time::{Duration, Instant};

/// The number of records in the client's queue from which it starts no fetch (`queued.min.messages`).
///
/// It must not be so few that lone records fill the queue: the client checks the partitions one after the other. If the
/// consumer empties the queue meanwhile, the fetch starts without the partitions before, which then wait for its end.
pub(crate) const FULL: usize = 8;

/// The time from one consumption to the next under load.
const INTERVAL: Duration = Duration::from_millis(10);

/// The number of records in an `INTERVAL` from which there is load.
const BUSY: u32 = 8;

/// With this number of records there is no reason to wait for more.
const ENOUGH: usize = 200;

/// Decides how long records stay in the queue.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When records were consumed last.
    consumed: Option<Instant>,
    is_busy: bool,
}

impl Pace {
    /// Returns the time until which this number of records has to wait, if they have to.
    pub(crate) fn wait_until(&self, now: Instant, records: usize) -> Option<Instant> {
        let until = self.consumed? + INTERVAL;
        (self.is_busy && records < ENOUGH && now < until).then_some(until)
    }

    /// Notes that this number of records was consumed.
    pub(crate) fn consumed(&mut self, now: Instant, records: usize) {
        let since = self.consumed.replace(now).map_or(Duration::MAX, |before| now.duration_since(before));
        let records = u32::try_from(records).unwrap_or(u32::MAX);
        self.is_busy = INTERVAL.saturating_mul(records) >= since.saturating_mul(BUSY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn single_records_never_wait() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(pace.wait_until(now, 1), None);
            pace.consumed(now, 1);
            now += 2 * MILLI;
        }
        // Many records after a pause do not make the next one wait.
        now += 1000 * MILLI;
        pace.consumed(now, 100);
        assert_eq!(pace.wait_until(now + MILLI, 1), None);
    }

    #[test]
    fn records_wait_under_load_until_there_are_enough() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.consumed(start, 5);
        let next = start + 5 * MILLI;
        pace.consumed(next, 4);
        let due = next + INTERVAL;
        assert_eq!(pace.wait_until(next + MILLI, ENOUGH - 1), Some(due));
        assert_eq!(pace.wait_until(next + MILLI, ENOUGH), None);
        assert_eq!(pace.wait_until(due, 1), None);
        // The load ends.
        pace.consumed(due, 2);
        assert_eq!(pace.wait_until(due + MILLI, 1), None);
    }
}
