//! When a producer that confirms nothing is replaced. librdkafka can stand still without an error: after the end of a log was
//! lost, say, it waits for its idempotent state to be renewed, and every record times out, of whichever partition.

use std::time::{Duration, Instant};

/// At most so many times the first patience.
const LONGEST: u32 = 16;

/// How long deliveries may all time out before the producer is replaced. It doubles while that does not help: then it is Kafka.
#[derive(Debug)]
pub(super) struct Patience {
    first: Duration,
    now: Duration,
    replaced: Option<Instant>,
}

impl Patience {
    pub(super) fn new(first: Duration) -> Self {
        Patience { first, now: first, replaced: None }
    }

    /// Whether the producer is to be replaced now; `since` is when deliveries began to time out, if all of them do.
    pub(super) fn is_over(&mut self, since: Option<Instant>, now: Instant) -> bool {
        let Some(since) = since else {
            *self = Patience::new(self.first);
            return false;
        };
        let since = self.replaced.map_or(since, |replaced| replaced.max(since));
        if now.saturating_duration_since(since) < self.now {
            return false;
        }
        self.replaced = Some(now);
        self.now = (2 * self.now).min(LONGEST * self.first);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producer_is_replaced_at_growing_intervals_while_nothing_is_confirmed() {
        let (mut patience, start) = (Patience::new(Duration::from_secs(30)), Instant::now());
        let replaced = |patience: &mut Patience, from: u64, since: Option<Instant>| {
            let seconds = from..from + 1000;
            seconds.filter(|second| patience.is_over(since, start + Duration::from_secs(*second))).collect::<Vec<_>>()
        };
        assert_eq!(replaced(&mut patience, 0, Some(start)), [30, 90, 210, 450, 930]);
        assert!(replaced(&mut patience, 1000, None).is_empty());
        let again = start + Duration::from_secs(2000);
        assert_eq!(replaced(&mut patience, 2000, Some(again))[0], 2030, "after a success it is the first time again");
    }
}
