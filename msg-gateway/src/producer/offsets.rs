//! Distinguishes the offsets that a broker returned from placeholders of librdkafka. After DUPLICATE_SEQUENCE_NUMBER, librdkafka counts the offsets of a batch from -1:
//! -1, 0, 1, ... (the batch is in the log; where is not known). After an implicit ack, the offset is -1001.

use std::cell::Cell;

use msg_common::partition::Partition;

thread_local! {
    /// librdkafka reports a batch as a whole and in order, in one event, and one thread handles an event: so the state belongs
    /// to the thread, and several threads that poll cannot mix two batches. What a thread remembers may be older than the
    /// last batch of the partition, which changes nothing: see [`judge`].
    static RUN: Cell<Run> = const { Cell::new(Run::None) };
}

/// Where the next record of a batch without real offsets would be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    None,
    Next { partition: Partition, offset: i64 },
}

/// Returns the offset of a confirmed record, or `None` if librdkafka made it up.
pub(crate) fn confirmed(partition: Partition, offset: i64) -> Option<i64> {
    RUN.with(|run| {
        let (real, next) = judge(run.get(), partition, offset);
        run.set(next);
        real
    })
}

/// Ends a run of made-up offsets: a batch is confirmed or fails as a whole.
pub(crate) fn failed() {
    RUN.set(Run::None);
}

/// A real batch cannot continue a run by chance: the `n` records of the run are in the log before it, so its first offset is `n` or
/// more, and the run continues with `n - 1`.
fn judge(run: Run, partition: Partition, offset: i64) -> (Option<i64>, Run) {
    let next = Run::Next { partition, offset: offset.saturating_add(1) };
    match offset {
        -1 => (None, next),
        _ if run == (Run::Next { partition, offset }) => (None, next),
        0.. => (Some(offset), Run::None),
        _ => (None, Run::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets of these reports of one partition.
    fn judged(reports: &[i64]) -> Vec<Option<i64>> {
        let mut run = Run::None;
        let judge = |offset: &i64| {
            let (real, next) = judge(run, 0, *offset);
            run = next;
            real
        };
        reports.iter().map(judge).collect()
    }

    #[test]
    fn offsets_counted_from_minus_one_are_absent() {
        assert_eq!(judged(&[-1, 0, 1, 2]), [None; 4]);
        assert_eq!(judged(&[-1, -1, 0]), [None; 3]);
    }

    #[test]
    fn offsets_of_implicit_acks_are_absent() {
        assert_eq!(judged(&[-1001, -1001, 5]), [None, None, Some(5)]);
    }

    #[test]
    fn real_batch_after_a_run_keeps_its_offsets() {
        assert_eq!(judged(&[-1, 0, 2, 3]), [None, None, Some(2), Some(3)]);
        assert_eq!(judged(&[0, 1, -1, 3]), [Some(0), Some(1), None, Some(3)]);
        assert_eq!(judge(Run::Next { partition: 0, offset: 7 }, 1, 7), (Some(7), Run::None));
    }
}
