//! The backoff between attempts to store, by the class of the error.

use std::time::Duration;

use machine::error::ErrorClass;
pub(crate) use msg_common::backoff::{Backoff, jittered};

/// The longest wait after a failure that ends only when an operator acts.
const LONGEST_FATAL: Duration = Duration::from_secs(15);

/// Returns the longest wait after `attempts` failed attempts, of which the last failed with `class`.
pub(crate) fn ceiling(class: ErrorClass, attempts: usize) -> Duration {
    let backoff = match class {
        ErrorClass::Fatal => Backoff::new(Duration::from_millis(50), LONGEST_FATAL),
        _ => Backoff::default(),
    };
    backoff.ceiling(u32::try_from(attempts).unwrap_or(u32::MAX))
}

/// Waits after `attempts` failed attempts, of which the last failed with `class`.
pub(crate) async fn wait(class: ErrorClass, attempts: usize) {
    tokio::time::sleep(jittered(ceiling(class, attempts))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fatal_errors_are_retried_more_rarely() {
        let longest = [ErrorClass::Transient, ErrorClass::Fatal].map(|class| ceiling(class, 1000));
        assert_eq!(longest, [Duration::from_secs(5), LONGEST_FATAL]);
    }
}
