//! Decides whether a producer that replaced one with a fatal error counts as working. A new producer has no error, also if
//! what made the last one fail lasts.

use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

/// A producer without a fatal error for this time counts as working, so that a send can test it: a gateway that is not
/// ready may get no sends.
const TRUSTED_AFTER: Duration = Duration::from_secs(30);

/// The doubt about the current producer.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// When a producer last failed.
    failed: Option<Instant>,
    /// Since when the current producer is in doubt.
    since: Option<Instant>,
}

impl Doubt {
    /// A producer that failed with this fatal error was replaced. Returns whether the new one counts as working.
    /// `confirmed_since` returns whether a record was confirmed since a time.
    pub(super) fn replaced(&mut self, code: Code, now: Instant, confirmed_since: impl Fn(Instant) -> bool) -> bool {
        let again = |failed| now.saturating_duration_since(failed) < TRUSTED_AFTER && !confirmed_since(failed);
        let lasts = is_missing_right(code) || self.failed.is_some_and(again);
        self.failed = Some(now);
        self.since = lasts.then_some(now);
        !lasts
    }

    /// Returns whether the doubt about the current producer has just ended.
    pub(super) fn ends(&mut self, now: Instant, confirmed_since: impl Fn(Instant) -> bool) -> bool {
        let over = |since: Instant| now.saturating_duration_since(since) >= TRUSTED_AFTER || confirmed_since(since);
        self.since.take_if(|since| over(*since)).is_some()
    }
}

/// Returns whether the error lasts until an operator grants a right.
fn is_missing_right(code: Code) -> bool {
    matches!(
        code,
        Code::ClusterAuthorizationFailed | Code::TopicAuthorizationFailed | Code::TransactionalIdAuthorizationFailed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_failure_that_does_not_last_is_forgiven() {
        let (mut doubt, start) = (Doubt::default(), Instant::now());
        assert!(doubt.replaced(Code::OutOfOrderSequenceNumber, start, |_| false));
        assert!(!doubt.ends(start + 2 * TRUSTED_AFTER, |_| true), "there is none");
        assert!(doubt.replaced(Code::OutOfOrderSequenceNumber, start + TRUSTED_AFTER, |_| false));
        let soon = start + TRUSTED_AFTER + Duration::from_secs(1);
        assert!(doubt.replaced(Code::OutOfOrderSequenceNumber, soon, |_| true), "the last one has delivered");
        assert!(!doubt.replaced(Code::OutOfOrderSequenceNumber, soon, |_| false), "each producer fails");
    }

    #[test]
    fn doubt_about_a_right_ends_with_a_delivery_or_in_time() {
        let (mut doubt, start) = (Doubt::default(), Instant::now());
        for confirmed in [true, false] {
            assert!(!doubt.replaced(Code::ClusterAuthorizationFailed, start, |_| true));
            assert!(!doubt.ends(start + TRUSTED_AFTER / 2, |_| false));
            let after = if confirmed { TRUSTED_AFTER / 2 } else { TRUSTED_AFTER };
            assert!(doubt.ends(start + after, |_| confirmed));
            assert!(!doubt.ends(start + after, |_| confirmed), "it has ended already");
        }
    }
}
