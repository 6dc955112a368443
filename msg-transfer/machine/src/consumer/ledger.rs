//! The ledger of one partition: which received records are completed, in any order, and how far the contiguous prefix
//! reaches.
//!
//! One record may stay incomplete for days. Completed records behind it are forgotten, so that the ledger does not
//! grow.

use std::collections::VecDeque;

use crate::{LeaderEpoch, NextOffset, Progress, RecordOffset};

/// A record's offset is not above that of the record before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfOrder;

/// The received records that the prefix has not reached. Offsets may have holes (transaction markers, compaction).
#[derive(Debug)]
pub(super) struct Ledger {
    open: VecDeque<Entry>,
    prefix: Progress,
    /// The end of the received records: the lowest offset that may be received next.
    last: Progress,
    /// The number of completed records in `open`.
    completed: usize,
}

#[derive(Debug)]
struct Entry {
    offset: RecordOffset,
    /// The prefix if all records before this one are completed: the offset after the record before it.
    before: Progress,
    completed: bool,
}

/// Completed entries that are kept before they are compared with the number of incomplete ones.
const SLACK: usize = 32;

impl Ledger {
    /// Creates a ledger whose first record will be at `start` or above.
    pub(super) fn new(start: Progress) -> Self {
        Ledger { open: VecDeque::new(), prefix: start, last: start, completed: 0 }
    }

    /// Adds the next received record. Fails if its offset is below the lowest one that may be received next.
    pub(super) fn receive(&mut self, offset: RecordOffset, leader_epoch: LeaderEpoch) -> Result<(), OutOfOrder> {
        if offset.0 < self.last.next.0 {
            return Err(OutOfOrder);
        }
        // Before the first one: the start, which need not be a record's.
        self.open.push_back(Entry { offset, before: self.last, completed: false });
        self.last = Progress { next: offset.next(), leader_epoch };
        Ok(())
    }

    /// Completes this record: it was stored or dead-lettered, and the COMMIT succeeded. Repeating it changes nothing.
    pub(super) fn complete(&mut self, offset: RecordOffset) {
        let at = self.open.partition_point(|entry| entry.offset < offset);
        match self.open.get_mut(at) {
            Some(entry) if entry.offset == offset && !entry.completed => entry.completed = true,
            _ => return,
        }
        self.completed += 1;
        while self.open.pop_front_if(|entry| entry.completed).is_some() {
            self.completed -= 1;
        }
        self.prefix = self.open.front().map_or(self.last, |first| first.before);
        if self.completed > SLACK + (self.open.len() - self.completed) {
            self.open.retain(|entry| !entry.completed);
            self.completed = 0;
        }
    }

    /// Returns the number of entries: at most twice the number of incomplete records, plus a constant.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Returns the lowest offset that may be received next.
    pub(super) fn expected(&self) -> NextOffset {
        self.last.next
    }

    /// Returns the offset of the last record received, or the one before the start.
    pub(super) fn highest(&self) -> Option<RecordOffset> {
        (self.last.next.0 > 0).then(|| RecordOffset(self.last.next.0 - 1))
    }

    /// Returns the contiguous prefix: every record below it is completed.
    pub(super) fn prefix(&self) -> Progress {
        self.prefix
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ledger_at(start: i64) -> Ledger {
        Ledger::new(Progress { next: NextOffset(start), leader_epoch: LeaderEpoch::UNKNOWN })
    }

    #[test]
    fn prefix_has_the_leader_epoch_of_its_last_record() {
        let mut ledger = ledger_at(5);
        for (offset, leader_epoch) in [(5, 2), (6, 4)] {
            ledger.receive(RecordOffset(offset), LeaderEpoch(leader_epoch)).expect("they ascend");
        }
        assert_eq!(ledger.prefix().leader_epoch, LeaderEpoch::UNKNOWN);
        ledger.complete(RecordOffset(5));
        assert_eq!(ledger.prefix(), Progress { next: NextOffset(6), leader_epoch: LeaderEpoch(2) });
        ledger.complete(RecordOffset(6));
        assert_eq!(ledger.prefix(), Progress { next: NextOffset(7), leader_epoch: LeaderEpoch(4) });
    }

    #[test]
    fn prefix_waits_for_the_first_open_record() {
        let mut ledger = ledger_at(10);
        for offset in [10, 11, 14] {
            ledger.receive(RecordOffset(offset), LeaderEpoch(1)).expect("they ascend");
        }
        ledger.complete(RecordOffset(11));
        ledger.complete(RecordOffset(14));
        assert_eq!(ledger.prefix().next, NextOffset(10));
        ledger.complete(RecordOffset(10));
        assert_eq!(ledger.prefix().next, NextOffset(15));
    }

    #[test]
    fn record_not_received_completes_nothing() {
        let mut ledger = ledger_at(0);
        ledger.receive(RecordOffset(5), LeaderEpoch(1)).expect("it is the first");
        for offset in [0, 4, 6] {
            ledger.complete(RecordOffset(offset));
        }
        assert_eq!(ledger.prefix().next, NextOffset(0));
    }

    /// One blocked inbox, and millions of other records behind it.
    #[test]
    fn blocked_record_does_not_let_ledger_grow() {
        let mut ledger = ledger_at(0);
        for offset in 0..100_000 {
            ledger.receive(RecordOffset(offset), LeaderEpoch(1)).expect("they ascend");
            if offset > 0 {
                ledger.complete(RecordOffset(offset));
            }
            assert!(ledger.open() <= 2 + 2 * SLACK, "{}", ledger.open());
        }
        assert_eq!(ledger.prefix().next, NextOffset(0));
        ledger.complete(RecordOffset(0));
        assert_eq!((ledger.prefix().next, ledger.open()), (NextOffset(100_000), 0));
    }

    #[test]
    fn record_below_the_expected_offset_is_rejected() {
        let mut ledger = ledger_at(3);
        assert_eq!(ledger.receive(RecordOffset(2), LeaderEpoch(1)), Err(OutOfOrder));
        ledger.receive(RecordOffset(3), LeaderEpoch(1)).expect("it is the start");
        assert_eq!(ledger.receive(RecordOffset(3), LeaderEpoch(1)), Err(OutOfOrder));
    }

    proptest! {
        /// Compares with the definition: the prefix ends after the last record before the first incomplete one.
        #[test]
        fn prefix_matches_its_definition(
            offsets in proptest::collection::btree_set(0..200i64, 0..60),
            order in proptest::collection::vec(0..200i64, 0..200),
        ) {
            let mut ledger = ledger_at(0);
            for offset in &offsets {
                ledger.receive(RecordOffset(*offset), LeaderEpoch(1)).expect("a set ascends");
            }
            let mut completed = BTreeSet::new();
            for offset in order {
                ledger.complete(RecordOffset(offset));
                completed.insert(offset);
                let done = offsets.iter().take_while(|offset| completed.contains(offset));
                let expected = done.last().map_or(0, |last| last + 1);
                prop_assert_eq!(ledger.prefix().next, NextOffset(expected));
            }
        }
    }
}
