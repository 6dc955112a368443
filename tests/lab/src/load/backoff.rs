//! Owns the wait before a retry.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// The wait doubles from one failure to the next, with jitter.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff(FIRST)
    }
}

impl Backoff {
    /// Returns the wait, which is at least the requested one.
    pub(crate) fn next(&mut self, requested: Duration) -> Duration {
        let delay = self.0.mul_f64(rand::random_range(0.5..1.0)).max(requested);
        self.0 = (self.0 * 2).min(LONGEST);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_limit_and_is_at_least_as_requested() {
        let mut backoff = Backoff::default();
        for longest in [50, 100, 200, 400, 800, 1000, 1000] {
            let longest = Duration::from_millis(longest);
            let delay = backoff.next(Duration::ZERO);
            assert!(longest / 2 <= delay && delay <= longest, "{delay:?} of {longest:?}");
        }
        assert_eq!(backoff.next(Duration::from_secs(3)), Duration::from_secs(3));
    }
}
