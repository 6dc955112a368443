//! Decides when readiness has to report that the lag is not known, and with which text.

use std::time::Duration;

use msg_common::error::chain;

use super::LagError;

/// Since when the lag is not known. All times are of [`super::awake::Awake`].
#[derive(Debug)]
pub(super) struct Unknown {
    /// When the lag was last known, or the watchdog was started.
    since: Duration,
    /// What was reported since then.
    reported: Option<Source>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Kafka,
    Database,
    Silence,
}

impl Unknown {
    pub(super) fn new(now: Duration) -> Self {
        Unknown { since: now, reported: None }
    }

    pub(super) fn known(&mut self, now: Duration) {
        *self = Unknown::new(now);
    }

    /// Returns for how long the lag is not known.
    pub(super) fn lasts(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    /// Records that the reason of another component is reported instead.
    pub(super) fn reported_by_another(&mut self) {
        self.reported = None;
    }

    /// Returns the reason to report, if the lag is not known for the stall timeout. Returns it only once for Kafka and for
    /// the database, because each change of a reason is logged, and an error's text may differ each time.
    pub(super) fn reason(
        &mut self,
        now: Duration,
        stall_timeout: Duration,
        error: Option<&LagError>,
    ) -> Option<String> {
        let (source, reason) = match error {
            Some(LagError::Kafka(error)) => (Source::Kafka, chain(error)),
            Some(LagError::Database(error)) => {
                (Source::Database, format!("the progress rows cannot be read from the database: {}", chain(error)))
            }
            None => (Source::Silence, "Kafka or the database does not respond".to_owned()),
        };
        let is_late = self.lasts(now) >= stall_timeout;
        // Silence says less than any error.
        let is_known = self.reported == Some(source) || (source == Source::Silence && self.reported.is_some());
        if !is_late || is_known {
            return None;
        }
        self.reported = Some(source);
        Some(reason)
    }
}

#[cfg(test)]
mod tests {
    use msg_common::kafka::{ClientError, RequestError};

    use super::*;

    #[test]
    fn unknown_lag_is_reported_once_for_each_source() {
        let seconds = Duration::from_secs;
        let kafka = LagError::Kafka(RequestError::of_topic("describe it", "msgs")(ClientError::TimedOut));
        let mut unknown = Unknown::new(seconds(1));
        let mut reason = |now, error| unknown.reason(seconds(now), seconds(30), error);
        assert_eq!(reason(30, Some(&kafka)), None);
        assert!(reason(31, None).is_some_and(|reason| reason.contains("does not respond")));
        assert!(reason(32, Some(&kafka)).is_some_and(|reason| reason.starts_with("cannot describe it of topic msgs")));
        assert_eq!((reason(33, Some(&kafka)), reason(34, None)), (None, None));
        unknown.known(seconds(40));
        assert_eq!(unknown.reason(seconds(69), seconds(30), Some(&kafka)), None);
        assert!(unknown.reason(seconds(70), seconds(30), Some(&kafka)).is_some());
        unknown.reported_by_another();
        assert!(unknown.reason(seconds(71), seconds(30), Some(&kafka)).is_some());
    }
}
