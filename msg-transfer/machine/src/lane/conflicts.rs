//! The limit on conflicts that keep their content. A caller can cause any number of conflicts, and they must not halt a
//! partition (ADR 13). So above this limit their dead letters hold no content, and cost less than the rows of as many
//! messages.

use std::collections::{BTreeMap, BTreeSet};

use crate::consumer::RecordRef;
use crate::{Partition, RecordOffset};

/// The conflicts of each partition that keep their content.
#[derive(Debug)]
pub(super) struct Conflicts {
    limit: usize,
    window: i64,
    kept: BTreeMap<Partition, BTreeSet<RecordOffset>>,
}

impl Conflicts {
    /// Creates the limit: up to `limit` conflicts in any `window` offsets of a partition.
    pub(super) fn new(limit: usize, window: usize) -> Self {
        Conflicts { limit, window: i64::try_from(window).unwrap_or(i64::MAX), kept: BTreeMap::new() }
    }

    /// Returns whether this conflict keeps its content. The result stays the same when the record is retried.
    pub(super) fn keep(&mut self, record_ref: &RecordRef) -> bool {
        let kept = self.kept.entry(record_ref.partition).or_default();
        let (low, high) =
            (record_ref.offset.0.saturating_sub(self.window), record_ref.offset.0.saturating_add(self.window));
        // Offsets far above belong to a deleted topic with the same name.
        kept.retain(|offset| (low + 1..high).contains(&offset.0));
        if kept.contains(&record_ref.offset) {
            return true;
        }
        kept.len() < self.limit && kept.insert(record_ref.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: Partition, offset: i64) -> RecordRef {
        RecordRef { partition, epoch: 1, offset: RecordOffset(offset), bytes: 1 }
    }

    #[test]
    fn limited_number_in_a_window_keeps_content() {
        let mut conflicts = Conflicts::new(2, 100);
        assert!(conflicts.keep(&at(0, 10)) && conflicts.keep(&at(0, 11)));
        assert!(!conflicts.keep(&at(0, 12)));
        assert!(conflicts.keep(&at(0, 11)), "it is retried");
        assert!(conflicts.keep(&at(1, 12)), "another partition");
        assert!(conflicts.keep(&at(0, 110)), "the first one is out of the window");
        assert!(!conflicts.keep(&at(0, 110 - 1)));
        assert!(conflicts.keep(&at(0, 5)), "of a recreated topic");
        assert!(!Conflicts::new(0, 100).keep(&at(0, 1)));
    }
}
