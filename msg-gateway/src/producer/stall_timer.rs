//! Decides when a stalled producer is replaced. librdkafka can stall without an error: for example, after the end of a
//! log was lost it waits for a new producer ID, and every record of every partition times out.

use std::time::{Duration, Instant};

/// The stall timeout grows up to this many times the first one.
const MAX_FACTOR: u32 = 16;

/// How long all deliveries may time out before the producer is replaced. The timeout doubles while a replacement does
/// not help, because then Kafka is the cause.
#[derive(Debug)]
pub(super) struct StallTimer {
    first: Duration,
    now: Duration,
    replaced: Option<Instant>,
}

impl StallTimer {
    pub(super) fn new(first: Duration) -> Self {
        StallTimer { first, now: first, replaced: None }
    }

    /// Returns whether to replace the producer now. `since` is when deliveries started to time out, if all of them do.
    pub(super) fn expired(&mut self, since: Option<Instant>, now: Instant) -> bool {
        let Some(since) = since else {
            *self = StallTimer::new(self.first);
            return false;
        };
        let since = self.replaced.map_or(since, |replaced| replaced.max(since));
        if now.saturating_duration_since(since) < self.now {
            return false;
        }
        self.replaced = Some(now);
        self.now = (2 * self.now).min(MAX_FACTOR * self.first);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_producer_is_replaced_at_growing_intervals() {
        let (mut timer, start) = (StallTimer::new(Duration::from_secs(30)), Instant::now());
        let replaced = |timer: &mut StallTimer, from: u64, since: Option<Instant>| {
            let seconds = from..from + 1000;
            seconds.filter(|second| timer.expired(since, start + Duration::from_secs(*second))).collect::<Vec<_>>()
        };
        assert_eq!(replaced(&mut timer, 0, Some(start)), [30, 90, 210, 450, 930]);
        assert!(replaced(&mut timer, 1000, None).is_empty());
        let again = start + Duration::from_secs(2000);
        assert_eq!(replaced(&mut timer, 2000, Some(again))[0], 2030, "after a success it is the first time again");
    }
}
