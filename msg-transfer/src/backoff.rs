//! Waiting between attempts: longer each time, up to a limit, and at random so that not all come back at once.

use std::time::Duration;

use machine::failure::Class;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
/// Nothing changes before somebody has looked.
const LONGEST_FATAL: Duration = Duration::from_secs(15);

/// Exponential, with full jitter.
#[derive(Debug, Default)]
pub struct Backoff {
    attempts: usize,
}

impl Backoff {
    /// Waits.
    pub async fn wait(&mut self) {
        self.attempts += 1;
        tokio::time::sleep(jittered(ceiling(Class::Transient, self.attempts))).await;
    }
}

/// The longest time to wait after so many attempts have failed, the last one like this.
pub fn ceiling(class: Class, attempts: usize) -> Duration {
    let longest = if class == Class::Fatal { LONGEST_FATAL } else { LONGEST };
    let doubled = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    (FIRST * 2_u32.pow(doubled)).min(longest)
}

/// Any time up to it.
pub fn jittered(ceiling: Duration) -> Duration {
    ceiling.mul_f64(rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_up_to_the_limit() {
        let ceilings = [1, 2, 3, 100].map(|attempts| ceiling(Class::Transient, attempts));
        assert_eq!(ceilings, [FIRST, 2 * FIRST, 4 * FIRST, LONGEST]);
        assert_eq!(ceiling(Class::Fatal, 1000), LONGEST_FATAL);
        assert!(jittered(LONGEST) <= LONGEST);
    }
}
