//! Logs of a condition that lasts: at once when it starts, and then at growing intervals with the number of occurrences
//! that were not logged. What is retried a hundred times a second, or caused by callers, must not flood the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The interval after the first line; each next one is twice as long.
const FIRST_INTERVAL: Duration = Duration::from_secs(10);
const MAX_INTERVAL: Duration = Duration::from_secs(600);
/// A condition that did not occur for this long is over. Longer than the longest backoff between two attempts.
const QUIET: Duration = Duration::from_secs(120);
/// Conditions that are told apart. Above it the rest counts as one, so that texts with data in them cannot grow the map.
const MAX_CONDITIONS: usize = 64;

/// The conditions of one place that logs, by name. Can be a `static`, shared by all tasks that meet the same condition.
#[derive(Debug, Default)]
pub struct Repeats(Mutex<BTreeMap<String, Condition>>);

#[derive(Debug)]
struct Condition {
    interval: Duration,
    next_line: Instant,
    last: Instant,
    not_logged: u64,
}

impl Repeats {
    /// None has occurred yet.
    pub const fn new() -> Self {
        Repeats(Mutex::new(BTreeMap::new()))
    }

    /// Counts an occurrence. `Some` when it is to be logged, with the number of occurrences since the line before that were
    /// not:
    ///
    /// ```
    /// # static REPEATS: msg_common::repeat::Repeats = msg_common::repeat::Repeats::new();
    /// # let error = "broken pipe";
    /// if let Some(repeated) = REPEATS.occurred(error) {
    ///     tracing::warn!(error, repeated, "cannot accept a connection");
    /// }
    /// ```
    pub fn occurred(&self, condition: &str) -> Option<u64> {
        self.occurred_at(condition, Instant::now())
    }

    fn occurred_at(&self, name: &str, now: Instant) -> Option<u64> {
        let mut conditions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = if conditions.contains_key(name) { name } else { admit(&mut conditions, name, now) };
        match conditions.get_mut(name) {
            Some(condition) if !condition.is_over(now) => {
                condition.last = now;
                if now < condition.next_line {
                    condition.not_logged += 1;
                    return None;
                }
                condition.interval = (2 * condition.interval).min(MAX_INTERVAL);
                condition.next_line = now + condition.interval;
                Some(std::mem::take(&mut condition.not_logged))
            }
            earlier => {
                let not_logged = earlier.map_or(0, |condition| condition.not_logged);
                let (interval, next_line) = (FIRST_INTERVAL, now + FIRST_INTERVAL);
                conditions.insert(name.to_owned(), Condition { interval, next_line, last: now, not_logged: 0 });
                Some(not_logged)
            }
        }
    }
}

impl Condition {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) > QUIET
    }
}

/// The name under which a new condition is counted: its own where there is capacity.
fn admit<'a>(conditions: &mut BTreeMap<String, Condition>, name: &'a str, now: Instant) -> &'a str {
    if conditions.len() < MAX_CONDITIONS {
        return name;
    }
    conditions.retain(|_, condition| !condition.is_over(now));
    if conditions.len() < MAX_CONDITIONS { name } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a condition that occurs every `every` for `duration`: when, and how many were left out before.
    fn lines(repeats: &Repeats, start: Instant, every: Duration, duration: Duration) -> Vec<(u64, u64)> {
        let mut lines = Vec::new();
        let mut passed = Duration::ZERO;
        while passed <= duration {
            lines.extend(repeats.occurred_at("x", start + passed).map(|left_out| (passed.as_secs(), left_out)));
            passed += every;
        }
        lines
    }

    #[test]
    fn condition_is_logged_at_once_and_then_ever_more_rarely() {
        let (repeats, start) = (Repeats::new(), Instant::now());
        let lines = lines(&repeats, start, Duration::from_secs(1), Duration::from_secs(3600));
        assert_eq!(lines[..4], [(0, 0), (10, 9), (30, 19), (70, 39)]);
        assert_eq!(lines.last().map(|(_, left_out)| *left_out), Some(599));
        assert!(lines.len() < 15, "{lines:?}");
    }

    #[test]
    fn condition_that_was_over_is_logged_at_once() {
        let (repeats, start) = (Repeats::new(), Instant::now());
        lines(&repeats, start, Duration::from_secs(1), Duration::from_secs(15));
        assert_eq!(repeats.occurred_at("x", start + Duration::from_secs(20)), None);
        assert_eq!(repeats.occurred_at("x", start + Duration::from_secs(16) + 2 * QUIET), Some(6));
        assert_eq!(repeats.occurred_at("x", start + Duration::from_secs(17) + 2 * QUIET), None);
    }

    #[test]
    fn conditions_are_told_apart_up_to_a_limit() {
        let (repeats, start) = (Repeats::new(), Instant::now());
        let logged = |from: usize, to: usize, now| {
            (from..to).filter(|i| repeats.occurred_at(&i.to_string(), now).is_some()).count()
        };
        assert_eq!(logged(0, MAX_CONDITIONS, start), MAX_CONDITIONS);
        assert_eq!(logged(0, MAX_CONDITIONS, start), 0);
        assert_eq!(logged(1000, 2000, start), 1, "the rest counts as one");
        assert_eq!(logged(2000, 2010, start + 2 * QUIET), 10, "what is over makes way");
    }
}
