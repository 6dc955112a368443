//! How long records of each partition have waited while none was stored, as far as this process has seen it, and
//! whether there are records at all: an end offset also counts the marks of transactions.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use msg_common::partition::Partition;

use super::PartitionLag;

/// The partitions in which records wait. All times are of [`super::awake::Awake`].
#[derive(Debug, Default)]
pub(super) struct Observed {
    waiting: BTreeMap<Partition, Waiting>,
    probed: HashMap<Partition, Probed>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// The next offset of the progress row; `None` if it is not known, because no leader responds.
    next: Option<i64>,
    since: Duration,
}

/// What a consumer received from the first offset on that is not completed.
#[derive(Clone, Copy, Debug)]
struct Probed {
    from: i64,
    records: Records,
}

#[derive(Clone, Copy, Debug)]
enum Records {
    Found,
    NoneBelow(i64),
}

impl Observed {
    /// Updates the waiting partitions. A partition waits as long as its progress row does not move: the time between two
    /// calls counts as well, however long it is.
    pub(super) fn observe(&mut self, now: Duration, lags: &[PartitionLag], unreachable: &[Partition]) {
        for lag in lags {
            if self.probed.get(&lag.partition).is_some_and(|probed| probed.from != lag.unstored_from()) {
                self.probed.remove(&lag.partition);
            }
        }
        let behind = lags.iter().filter(|lag| self.first_wanted(lag) < lag.end);
        let behind = behind.map(|lag| (lag.partition, Some(lag.next())));
        let unreachable = unreachable.iter().map(|partition| (*partition, None));
        let waiting = behind.chain(unreachable).map(|(partition, next)| {
            let before = self.waiting.get(&partition).copied().unwrap_or(Waiting { next, since: now });
            // A leader that is unavailable for a moment stores nothing.
            let is_same = next.is_none() || before.next.is_none() || next == before.next;
            let since = if is_same { before.since } else { now };
            (partition, Waiting { next: next.or(before.next), since })
        });
        self.waiting = waiting.collect();
    }

    /// Updates whether a partition has a record, as a consumer found after this lag was read.
    pub(super) fn probed(&mut self, read: Duration, lag: &PartitionLag, has_record: bool) {
        let (partition, from) = (lag.partition, lag.unstored_from());
        if has_record {
            self.probed.insert(partition, Probed { from, records: Records::Found });
            return;
        }
        let before = self.first_wanted(lag);
        let end = lag.readable_end();
        self.probed.insert(partition, Probed { from, records: Records::NoneBelow(end) });
        if end >= lag.end {
            self.waiting.remove(&partition);
        } else if before > from
            && end > before
            && let Some(waiting) = self.waiting.get_mut(&partition)
        {
            // An open transaction begins further on than the one before.
            waiting.since = waiting.since.max(read);
        }
    }

    pub(super) fn waits(&self, now: Duration) -> impl Iterator<Item = (Partition, Duration)> {
        self.waiting.iter().map(move |(partition, waiting)| (*partition, now.saturating_sub(waiting.since)))
    }

    pub(super) fn wait(&self, now: Duration, partition: Partition) -> Option<Duration> {
        Some(now.saturating_sub(self.waiting.get(&partition)?.since))
    }

    /// Returns whether it is not known if this partition has a record.
    pub(super) fn needs_probe(&self, lag: &PartitionLag) -> bool {
        match self.probed.get(&lag.partition) {
            Some(Probed { from, records: Records::Found }) => *from != lag.unstored_from(),
            _ => self.first_wanted(lag) < lag.readable_end(),
        }
    }

    /// Returns the first offset of an open transaction, if no record of the partition can be received until it ends.
    pub(super) fn held_at(&self, lag: &PartitionLag) -> Option<i64> {
        (lag.readable_end() < lag.end && self.first_wanted(lag) >= lag.stable).then_some(lag.stable)
    }

    /// Returns the first offset that is not completed and may be a record.
    fn first_wanted(&self, lag: &PartitionLag) -> i64 {
        match self.probed.get(&lag.partition) {
            Some(Probed { from, records: Records::NoneBelow(end) }) if *from == lag.unstored_from() => *end.max(from),
            _ => lag.unstored_from(),
        }
    }

    /// Starts all times again, after an outage that is reported separately.
    pub(super) fn reset(&mut self) {
        *self = Observed::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn partition(partition: Partition, progress: i64, stable: i64, end: i64) -> PartitionLag {
        PartitionLag { partition, committed: None, progress: Some(progress), start: 0, stable, end, oldest: None }
    }

    /// Observes partitions at a second, and returns for how many seconds 0, 1 and 2 have waited.
    fn waited(
        observed: &mut Observed,
        second: u32,
        lags: &[PartitionLag],
        unreachable: &[Partition],
    ) -> Vec<Option<u64>> {
        observed.observe(second * SECOND, lags, unreachable);
        (0..3).map(|partition| observed.wait(second * SECOND, partition).map(|wait| wait.as_secs())).collect()
    }

    #[test]
    fn waiting_counts_only_without_progress() {
        let mut observed = Observed::default();
        let stored = |partition_number, progress, end| partition(partition_number, progress, end, end);
        let mut waited =
            |second, lags: &[PartitionLag], unreachable: &[Partition]| waited(&mut observed, second, lags, unreachable);
        assert_eq!(waited(0, &[stored(0, 5, 9), stored(1, 5, 5)], &[2]), [Some(0), None, Some(0)]);
        assert_eq!(waited(5, &[stored(0, 5, 9), stored(1, 5, 5)], &[2]), [Some(5), None, Some(5)]);
        assert_eq!(waited(10, &[stored(0, 5, 12), stored(1, 5, 6)], &[2]), [Some(10), Some(0), Some(10)]);
        assert_eq!(waited(15, &[stored(0, 6, 12), stored(1, 5, 6), stored(2, 0, 0)], &[]), [Some(0), Some(5), None]);
        // The lag could not be read for a while.
        assert_eq!(waited(40, &[stored(0, 6, 12)], &[1]), [Some(25), Some(30), None]);
        // The leader was unavailable for a moment.
        assert_eq!(waited(45, &[stored(0, 6, 12), stored(1, 5, 6)], &[]), [Some(30), Some(35), None]);
        assert_eq!(waited(50, &[stored(0, 6, 12), stored(1, 6, 7)], &[]), [Some(35), Some(0), None]);
    }

    #[test]
    fn offsets_without_records_do_not_wait() {
        let mut observed = Observed::default();
        let marks = partition(0, 5, 7, 7);
        assert_eq!(waited(&mut observed, 0, &[marks], &[])[0], Some(0));
        assert!(observed.needs_probe(&marks));
        observed.probed(2 * SECOND, &marks, false);
        assert_eq!(waited(&mut observed, 20, &[marks], &[])[0], None);
        assert!(!observed.needs_probe(&marks));
        // A record follows the marks: its time starts when it is seen.
        let record = partition(0, 5, 8, 8);
        assert_eq!(waited(&mut observed, 25, &[record], &[])[0], Some(0));
        assert!(observed.needs_probe(&record));
        observed.probed(26 * SECOND, &record, true);
        assert!(!observed.needs_probe(&record));
        assert_eq!((waited(&mut observed, 30, &[record], &[])[0], observed.held_at(&record)), (Some(5), None));
    }

    #[test]
    fn records_behind_an_open_transaction_wait() {
        let mut observed = Observed::default();
        let held = partition(0, 5, 5, 7);
        waited(&mut observed, 0, &[held], &[]);
        assert!(!observed.needs_probe(&held), "nothing can be received");
        assert_eq!((waited(&mut observed, 30, &[held], &[])[0], observed.held_at(&held)), (Some(30), Some(5)));
        // Marks are in front of the transaction.
        let mut observed = Observed::default();
        let behind_marks = partition(0, 3, 5, 7);
        waited(&mut observed, 0, &[behind_marks], &[]);
        assert!(observed.needs_probe(&behind_marks) && observed.held_at(&behind_marks).is_none());
        observed.probed(15 * SECOND, &behind_marks, false);
        assert_eq!(waited(&mut observed, 30, &[behind_marks], &[])[0], Some(30));
        assert_eq!(observed.held_at(&behind_marks), Some(5));
        // The transaction was aborted, and no record was behind it.
        let aborted = partition(0, 3, 8, 8);
        assert_eq!(waited(&mut observed, 32, &[aborted], &[])[0], Some(32));
        assert!(observed.needs_probe(&aborted) && observed.held_at(&aborted).is_none());
        observed.probed(33 * SECOND, &aborted, false);
        assert_eq!(waited(&mut observed, 34, &[aborted], &[])[0], None);
    }

    #[test]
    fn client_that_reads_uncommitted_records_is_not_held() {
        let observed = Observed::default();
        // It has stored records of the open transaction, and records behind its start.
        let ahead = partition(0, 8, 5, 9);
        assert_eq!((observed.held_at(&ahead), observed.needs_probe(&ahead)), (None, true));
    }
}
