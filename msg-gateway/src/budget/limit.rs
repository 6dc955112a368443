//! One limit of a budget: its maximum, its metric, and its error text.

use std::fmt::{self, Display, Formatter};

use metrics::Gauge;

use crate::quota::Quota;
use crate::status::Failure;

/// The maximum of items, or of their size.
#[derive(Debug)]
pub(crate) struct Limit {
    max: usize,
    text: Text,
    /// Whether an amount above the maximum gets its permit if no other permit is held.
    admits_larger_alone: bool,
    gauge: Gauge,
    /// Whether each change sets the gauge.
    is_immediate: bool,
    /// The quota, if the limit is that of one holder.
    quota: Option<Quota>,
}

/// The parts of the error text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Text {
    /// The items or their unit, and what they do: "messages are in flight".
    what: &'static str,
    retry: &'static str,
    /// The setting that raises the limit; `None` if there is none.
    setting: Option<&'static str>,
}

impl Limit {
    /// Creates a limit that no setting can raise. `what` completes "5 of 5 …".
    pub(crate) fn new(max: usize, what: &'static str) -> Self {
        let text = Text { what, retry: "retry after the delay", setting: None };
        Limit { max, text, admits_larger_alone: false, gauge: Gauge::noop(), is_immediate: false, quota: None }
    }

    pub(crate) fn of_setting(max: usize, what: &'static str, setting: &'static str) -> Self {
        let limit = Limit::new(max, what);
        Limit { text: Text { setting: Some(setting), ..limit.text }, ..limit }
    }

    /// The advice to the caller, if it is another one than to retry after the delay.
    pub(crate) fn with_retry(self, retry: &'static str) -> Self {
        Limit { text: Text { retry, ..self.text }, ..self }
    }

    /// Admits an amount above the maximum if no other permit is held. Otherwise it would be rejected on every retry.
    pub(crate) fn admitting_larger_alone(self) -> Self {
        Limit { admits_larger_alone: true, ..self }
    }

    /// Shows the amount in this gauge, which is set every second: with each message would cost more.
    pub(crate) fn with_gauge(self, gauge: Gauge) -> Self {
        Limit { gauge, ..self }
    }

    /// Shows the amount in this gauge, which is set with each change.
    pub(crate) fn with_immediate_gauge(self, gauge: Gauge) -> Self {
        Limit { gauge, is_immediate: true, ..self }
    }

    /// Makes it the limit of one holder.
    pub(super) fn with_quota(self, quota: Quota) -> Self {
        Limit { quota: Some(quota), ..self }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn show(&self, used: usize, all: bool) {
        if all || self.is_immediate {
            self.gauge.set(used as f64);
        }
    }

    /// Returns whether `amount` more fit. Nothing always fits.
    pub(super) fn fits(&self, used: usize, amount: usize) -> bool {
        amount == 0
            || used.checked_add(amount).is_some_and(|sum| sum <= self.max)
            || (self.admits_larger_alone && used == 0)
    }

    pub(super) fn reached(&self, used: usize, needed: usize) -> LimitReached {
        LimitReached { text: self.text, max: self.max, used, needed, quota: self.quota }
    }
}

/// The limit that an operation has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitReached {
    text: Text,
    max: usize,
    used: usize,
    needed: usize,
    quota: Option<Quota>,
}

impl LimitReached {
    #[cfg(test)]
    pub(crate) fn quota(&self) -> Option<Quota> {
        self.quota
    }

    #[cfg(test)]
    pub(crate) fn is_of(&self, setting: &str) -> bool {
        self.text.setting == Some(setting)
    }
}

impl Display for LimitReached {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let LimitReached { text: Text { what, retry, setting }, max, used, needed, .. } = self;
        write!(f, "{used} of {max} {what}")?;
        if used < max {
            match used.saturating_add(*needed) > *max {
                true => write!(f, ", and this call needs {needed}")?,
                false => f.write_str(", and other calls wait")?,
            }
        }
        write!(f, "; {retry}")?;
        match setting {
            Some(setting) => write!(f, ", or raise {setting}"),
            None => Ok(()),
        }
    }
}

impl From<LimitReached> for Failure {
    fn from(reached: LimitReached) -> Self {
        match reached.quota {
            Some(quota) => quota.exceeded(quota.retry_after(), reached.to_string()),
            None => Failure::Overloaded(reached.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_usage_and_the_setting_to_raise() {
        let limit = Limit::of_setting(10, "calls are open", "MAX_OPEN_CALLS");
        for (used, needed, expected) in [
            (10, 1, "10 of 10 calls are open; retry after the delay, or raise MAX_OPEN_CALLS"),
            (8, 3, "8 of 10 calls are open, and this call needs 3; retry after the delay, or raise MAX_OPEN_CALLS"),
            (8, 1, "8 of 10 calls are open, and other calls wait; retry after the delay, or raise MAX_OPEN_CALLS"),
        ] {
            assert_eq!(limit.reached(used, needed).to_string(), expected);
        }
        let fixed = Limit::new(2, "streams are open").with_retry("use another gateway");
        assert_eq!(fixed.reached(2, 1).to_string(), "2 of 2 streams are open; use another gateway");
    }
}
