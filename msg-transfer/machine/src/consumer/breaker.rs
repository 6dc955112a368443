//! Stops a partition before too many of its records are kept aside: what is wrong then is not the records.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::{NextOffset, RecordOffset};

/// When it is too many. All three together.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// More than so many …
    pub count: usize,
    /// … which are more than so many in a hundred …
    pub percent: usize,
    /// … of the last so many offsets.
    pub window: usize,
}

/// The dead letters of one partition, as far as the window reaches. It counts offsets, so a record that comes again is
/// counted once.
#[derive(Debug, Default)]
pub struct Breaker {
    topic_id: Uuid,
    counted: BTreeSet<RecordOffset>,
    /// The last record that was refused.
    refused: Option<RecordOffset>,
    /// Up to here they pass uncounted.
    forgiven: Option<RecordOffset>,
}

impl Breaker {
    /// After somebody has looked: what was refused passes, or a batch with more than the limit would be refused for ever.
    pub fn resumed(self) -> Self {
        let forgiven = self.refused.max(self.forgiven);
        Breaker { topic_id: self.topic_id, forgiven, ..Breaker::default() }
    }

    /// Begins with what the database knows of the time before.
    pub fn begin(&mut self, topic_id: Uuid, recent: impl IntoIterator<Item = RecordOffset>) {
        if self.topic_id != topic_id {
            // Made anew: these are other records.
            *self = Breaker { topic_id, ..Breaker::default() };
        }
        self.counted = recent.into_iter().collect();
    }

    /// From this offset on, Kafka lost the records that were counted or refused: other records have their offsets.
    pub fn lost_from(&mut self, next: NextOffset) {
        let last = (next.0 > 0).then(|| RecordOffset(next.0 - 1));
        self.forgiven = self.forgiven.min(last);
        self.refused = self.refused.min(last);
    }

    /// May these be kept aside too? `highest` is the last record received. If not, nothing is counted, and why is said.
    pub fn admit(&mut self, asked: &[RecordOffset], highest: RecordOffset, limit: Limit) -> Result<(), String> {
        let window = i64::try_from(limit.window).unwrap_or(i64::MAX);
        let from = RecordOffset(highest.0.saturating_sub(window - 1).max(0));
        self.counted = self.counted.split_off(&from);
        let counts = |offset: &&RecordOffset| self.forgiven < Some(**offset) && !self.counted.contains(offset);
        let more: BTreeSet<_> = asked.iter().filter(counts).copied().collect();
        let count = self.counted.len() + more.len();
        let seen = usize::try_from(highest.0 - from.0 + 1).unwrap_or(limit.window);
        if !more.is_empty() && count > limit.count && count * 100 > limit.percent * seen {
            self.refused = more.last().copied().max(self.refused);
            return Err(format!(
                "{count} of the last {seen} records would be dead letters, more than {} and {} %: nothing is skipped; \
                 mend the cause, raise --dead-letter-limit, or go on with `msg-transfer resume`",
                limit.count, limit.percent
            ));
        }
        self.counted.extend(more);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { count: 3, percent: 10, window: 100 };

    fn offsets(range: std::ops::Range<i64>) -> Vec<RecordOffset> {
        range.map(RecordOffset).collect()
    }

    #[test]
    fn up_to_the_limit_they_pass_and_a_repeat_is_none() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            breaker.admit(&offsets(0..3), RecordOffset(9), LIMIT).expect("3 are not more than 3");
        }
        breaker.admit(&offsets(3..4), RecordOffset(9), LIMIT).expect_err("the fourth of ten");
        breaker.admit(&offsets(0..3), RecordOffset(9), LIMIT).expect("they were counted already");
    }

    #[test]
    fn a_small_share_passes() {
        let mut breaker = Breaker::default();
        breaker.admit(&offsets(0..10), RecordOffset(99), LIMIT).expect("ten in a hundred");
        breaker.admit(&offsets(10..11), RecordOffset(99), LIMIT).expect_err("eleven in a hundred");
    }

    #[test]
    fn what_the_window_has_passed_is_forgotten() {
        let mut breaker = Breaker::default();
        breaker.begin(Uuid::nil(), offsets(0..10));
        breaker.admit(&offsets(109..119), RecordOffset(109), LIMIT).expect("the others are too old");
    }

    /// A batch of more than the limit can pass no other way.
    #[test]
    fn what_was_refused_passes_once_somebody_has_looked() {
        let mut breaker = Breaker::default();
        breaker.admit(&offsets(0..5), RecordOffset(9), LIMIT).expect_err("five at once");
        let mut breaker = breaker.resumed();
        breaker.admit(&offsets(0..5), RecordOffset(9), LIMIT).expect("those were looked at");
        breaker.admit(&offsets(5..9), RecordOffset(9), LIMIT).expect_err("those were not");
        breaker.begin(Uuid::max(), []);
        breaker.admit(&offsets(0..5), RecordOffset(9), LIMIT).expect_err("nor were those of another topic");
    }
}
