//! The backoff between attempts. It grows up to a limit, and is random so that not all tasks retry concurrently.

use std::time::Duration;

use machine::error::ErrorClass;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
/// For failures that end only when an operator acts.
const LONGEST_FATAL: Duration = Duration::from_secs(15);

/// An exponential backoff with full jitter.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: usize,
}

impl Backoff {
    /// Waits before the next attempt.
    pub(crate) async fn wait(&mut self) {
        self.attempts += 1;
        tokio::time::sleep(jittered(ceiling(ErrorClass::Transient, self.attempts))).await;
    }
}

/// Returns the longest wait after `attempts` failed attempts, of which the last failed with `class`.
pub(crate) fn ceiling(class: ErrorClass, attempts: usize) -> Duration {
    let longest = if class == ErrorClass::Fatal { LONGEST_FATAL } else { LONGEST };
    let exponent = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    (FIRST * 2_u32.pow(exponent)).min(longest)
}

/// Returns a random time up to `ceiling`.
pub(crate) fn jittered(ceiling: Duration) -> Duration {
    ceiling.mul_f64(rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_up_to_the_limit() {
        let ceilings = [1, 2, 3, 100].map(|attempts| ceiling(ErrorClass::Transient, attempts));
        assert_eq!(ceilings, [FIRST, 2 * FIRST, 4 * FIRST, LONGEST]);
        assert_eq!(ceiling(ErrorClass::Fatal, 1000), LONGEST_FATAL);
        assert!(jittered(LONGEST) <= LONGEST);
    }
}
