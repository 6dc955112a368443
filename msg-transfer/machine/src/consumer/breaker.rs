//! The dead-letter limit: halts a partition before too many of its records become dead letters. The cause is then
//! something else than the records.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::{NextOffset, RecordOffset};

/// The dead-letter limit. It is exceeded by more than `count` dead letters in the last `window` offsets that are also
/// more than `percent` of these offsets.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub count: usize,
    pub percent: usize,
    pub window: usize,
}

/// The dead letters of one partition in the window. It counts offsets, so a record that is consumed again is counted
/// once.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    topic_id: Uuid,
    counted: BTreeSet<RecordOffset>,
    /// The last record that would have exceeded the limit.
    over_limit: Option<RecordOffset>,
    /// Dead letters up to this offset do not count.
    forgiven: Option<RecordOffset>,
}

impl Breaker {
    /// Returns the breaker of a partition that an operator resumed: the records that exceeded the limit are forgiven.
    /// Otherwise a batch with more dead letters than the limit could never be stored.
    pub(super) fn resumed(self) -> Self {
        let forgiven = self.over_limit.max(self.forgiven);
        Breaker { topic_id: self.topic_id, forgiven, ..Breaker::default() }
    }

    /// Starts with the recent dead letters in the database.
    pub(super) fn begin(&mut self, topic_id: Uuid, recent: impl IntoIterator<Item = RecordOffset>) {
        if self.topic_id != topic_id {
            // The topic was recreated: these are other records.
            *self = Breaker { topic_id, ..Breaker::default() };
        }
        self.counted = recent.into_iter().collect();
    }

    /// Forgets records from this offset on: Kafka lost them, and other records get their offsets.
    pub(super) fn lost_from(&mut self, next: NextOffset) {
        let last = (next.0 > 0).then(|| RecordOffset(next.0 - 1));
        self.forgiven = self.forgiven.min(last);
        self.over_limit = self.over_limit.min(last);
    }

    /// Counts these dead letters, or fails with the reason if they would exceed the limit. `highest` is the last record
    /// received.
    pub(super) fn admit(&mut self, dead: &[RecordOffset], highest: RecordOffset, limit: Limit) -> Result<(), String> {
        let window = i64::try_from(limit.window).unwrap_or(i64::MAX);
        let from = RecordOffset(highest.0.saturating_sub(window - 1).max(0));
        self.counted = self.counted.split_off(&from);
        let counts = |offset: &&RecordOffset| self.forgiven < Some(**offset) && !self.counted.contains(offset);
        let more: BTreeSet<_> = dead.iter().filter(counts).copied().collect();
        let count = self.counted.len() + more.len();
        let seen = usize::try_from(highest.0 - from.0 + 1).unwrap_or(limit.window);
        if !more.is_empty() && count > limit.count && count * 100 > limit.percent * seen {
            self.over_limit = more.last().copied().max(self.over_limit);
            return Err(format!(
                "{count} of the last {seen} records would be dead letters, more than {} and {} %: nothing is skipped; \
                 fix the cause, raise --dead-letter-limit, or accept them with `msg-transfer resume`",
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
    fn limit_admits_its_count_and_counts_repeats_once() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            breaker.admit(&offsets(0..3), RecordOffset(9), LIMIT).expect("3 are not more than 3");
        }
        breaker.admit(&offsets(3..4), RecordOffset(9), LIMIT).expect_err("the fourth of ten");
        breaker.admit(&offsets(0..3), RecordOffset(9), LIMIT).expect("they were counted already");
    }

    #[test]
    fn limit_admits_a_small_percentage() {
        let mut breaker = Breaker::default();
        breaker.admit(&offsets(0..10), RecordOffset(99), LIMIT).expect("ten in a hundred");
        breaker.admit(&offsets(10..11), RecordOffset(99), LIMIT).expect_err("eleven in a hundred");
    }

    #[test]
    fn limit_forgets_dead_letters_below_the_window() {
        let mut breaker = Breaker::default();
        breaker.begin(Uuid::nil(), offsets(0..10));
        breaker.admit(&offsets(109..119), RecordOffset(109), LIMIT).expect("the others are too old");
    }

    /// A batch of more than the limit can be admitted in no other way.
    #[test]
    fn resume_admits_the_records_that_were_over_the_limit() {
        let mut breaker = Breaker::default();
        breaker.admit(&offsets(0..5), RecordOffset(9), LIMIT).expect_err("five in one batch");
        let mut breaker = breaker.resumed();
        breaker.admit(&offsets(0..5), RecordOffset(9), LIMIT).expect("the operator resumed after those");
        breaker.admit(&offsets(5..9), RecordOffset(9), LIMIT).expect_err("those are later");
        breaker.begin(Uuid::max(), []);
        breaker.admit(&offsets(0..5), RecordOffset(9), LIMIT).expect_err("those are of another topic");
    }
}
