//! Limits the log lines of a lasting condition: the first occurrence is logged immediately, later ones at growing intervals
//! with the number of occurrences that were not logged. A condition that occurs a hundred times a second, or that callers
//! cause, must not flood the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The interval after the first line; each next one is twice as long.
const FIRST_INTERVAL: Duration = Duration::from_secs(10);
const MAX_INTERVAL: Duration = Duration::from_secs(600);
/// A condition is over if it did not occur for this long. Longer than the longest backoff between two attempts.
const QUIET: Duration = Duration::from_secs(120);
/// Maximum number of conditions that are counted separately. Further ones are counted together, so that texts that contain
/// data cannot grow the map.
const MAX_CONDITIONS: usize = 64;

/// The conditions of one line of code that logs, by name. It can be a `static` that all tasks share.
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
    /// Returns an empty set of conditions.
    pub const fn new() -> Self {
        Repeats(Mutex::new(BTreeMap::new()))
    }

    /// Counts an occurrence. Returns `None` if it must not be logged; otherwise the number of occurrences that were not
    /// logged since the previous line:
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

/// Returns the name under which a new condition is counted: its own if the map has capacity, otherwise the common one.
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

    /// Returns the lines of a condition that occurs at the interval `every` for `duration`: the second of each line, and the
    /// number of occurrences that were left out before it.
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
    fn condition_is_logged_immediately_and_then_more_rarely() {
        let (repeats, start) = (Repeats::new(), Instant::now());
        let lines = lines(&repeats, start, Duration::from_secs(1), Duration::from_secs(3600));
        assert_eq!(lines[..4], [(0, 0), (10, 9), (30, 19), (70, 39)]);
        assert_eq!(lines.last().map(|(_, left_out)| *left_out), Some(599));
        assert!(lines.len() < 15, "{lines:?}");
    }

    #[test]
    fn condition_that_was_over_is_logged_immediately() {
        let (repeats, start) = (Repeats::new(), Instant::now());
        lines(&repeats, start, Duration::from_secs(1), Duration::from_secs(15));
        assert_eq!(repeats.occurred_at("x", start + Duration::from_secs(20)), None);
        assert_eq!(repeats.occurred_at("x", start + Duration::from_secs(16) + 2 * QUIET), Some(6));
        assert_eq!(repeats.occurred_at("x", start + Duration::from_secs(17) + 2 * QUIET), None);
    }

    #[test]
    fn conditions_are_counted_separately_up_to_a_limit() {
        let (repeats, start) = (Repeats::new(), Instant::now());
        let logged = |from: usize, to: usize, now| {
            (from..to).filter(|i| repeats.occurred_at(&i.to_string(), now).is_some()).count()
        };
        assert_eq!(logged(0, MAX_CONDITIONS, start), MAX_CONDITIONS);
        assert_eq!(logged(0, MAX_CONDITIONS, start), 0);
        assert_eq!(logged(1000, 2000, start), 1, "the rest counts as one");
        assert_eq!(logged(2000, 2010, start + 2 * QUIET), 10, "conditions that are over are removed");
    }
}
