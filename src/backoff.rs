//! The backoff between attempts: exponential up to a limit, and random so that not all tasks retry concurrently.

use std::time::Duration;

/// Failures in a row, and the wait after each. Its ceiling doubles from `first` to `longest`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Creates a backoff without failures.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest, failures: 0 }
    }

    /// Returns the longest wait after this number of failures in a row.
    pub fn ceiling(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        (self.first * 2_u32.pow(doublings)).min(self.longest)
    }

    /// Counts a failure. Returns how long to wait before the next attempt.
    pub fn failed(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        jittered(self.ceiling(self.failures))
    }

    /// Counts a failure, and waits before the next attempt.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.failed()).await;
    }
}

/// The backoff of requests to a database or a broker that may be available again soon.
impl Default for Backoff {
    fn default() -> Self {
        Backoff::new(Duration::from_millis(50), Duration::from_secs(5))
    }
}

/// Returns a random time up to `ceiling`.
pub fn jittered(ceiling: Duration) -> Duration {
    ceiling.mul_f64(rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_up_to_the_limit() {
        let (first, longest) = (Duration::from_millis(50), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, longest);
        let ceilings = [0, 1, 2, 3, 100].map(|failures| backoff.ceiling(failures));
        assert_eq!(ceilings, [first, first, 2 * first, 4 * first, longest]);
        assert!(backoff.failed() <= first && backoff.failed() <= 2 * first);
        assert_eq!(backoff.failures, 2);
    }
}
