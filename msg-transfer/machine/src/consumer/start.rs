//! The start offset of a partition: it is resolved before anything is fetched, and never left to `auto.offset.reset`.

use crate::{LeaderEpoch, NextOffset, Progress};

/// The offsets from which the start offset of a partition is resolved.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The group's committed offset, if it has one.
    pub committed: Option<NextOffset>,
    /// The progress row of this topic, with the same topic ID.
    pub progress: Option<Progress>,
    /// Which records below the progress row the log still has.
    pub kept: Kept,
    /// The offset of the oldest record in the log, or the end offset if the log is empty.
    pub low: NextOffset,
    /// The offset after the last record of the log.
    pub high: NextOffset,
}

/// Where a log ends, or differs from the records that were consumed, as its leader reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The row has no leader epoch, or the broker does not report it: only the end offset counts.
    Unknown,
    /// The log has no record of the row's leader epoch or of an earlier one.
    Nothing,
    /// The records of the row's leader epoch and of all earlier ones end here. The last of them has this leader epoch.
    UpTo(Progress),
}

/// The result of resolving the start offset of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is fetched from this position.
    At(Progress),
    /// It is halted for this reason.
    Halt(String),
}

/// The records of a log whose tail Kafka lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The first lost offset. Other records have, or will get, the offsets from here on.
    pub from: NextOffset,
    /// The offset after the last lost one. If it is not above `from`, some records were lost, and it is not known
    /// which.
    pub to: NextOffset,
    /// The progress row that is beyond the lost records.
    pub row: Progress,
    /// The progress row that has to replace `row` before anything is fetched.
    pub lowered: Progress,
}

impl Lost {
    /// Returns the number of lost offsets, 0 if it is not known.
    pub fn count(&self) -> u64 {
        u64::try_from(self.to.0 - self.from.0).unwrap_or(0)
    }
}

/// How a partition starts, and the records that Kafka lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub start: Start,
    /// The lost records. `None` if the partition is halted.
    pub lost: Option<Lost>,
}

impl From<Start> for Decision {
    fn from(start: Start) -> Self {
        Decision { start, lost: None }
    }
}

/// Resolves the start offset of a partition.
///
/// The progress row is written before the offset is committed. So a row that is behind the committed offset, or
/// missing, means that the database was restored to an earlier point: all records since then are consumed again, and
/// none that is still in the table is stored twice. With `accept_loss`, a partition whose next records are deleted
/// starts with the oldest one in the log.
///
/// If Kafka lost the tail of the log, the partition continues where the log differs from the consumed records: no
/// record that was accepted after the loss is skipped.
pub fn resolve(known: Known, accept_loss: bool) -> Decision {
    let unknown = |next| Progress { next, leader_epoch: LeaderEpoch::UNKNOWN };
    let wanted = match (known.committed, known.progress) {
        (Some(committed), Some(progress)) if committed < progress.next => unknown(committed),
        (_, Some(progress)) => progress,
        // No row: this database has never stored a record of this partition.
        (_, None) => unknown(NextOffset(0)),
    };
    let lost = known.lost();
    let wanted = match lost {
        Some(lost) if lost.lowered.next <= wanted.next => lost.lowered,
        _ => wanted,
    };
    if wanted.next >= known.low {
        return Decision { start: Start::At(wanted), lost };
    }
    if accept_loss {
        let oldest = unknown(known.low);
        let lost = lost.map(|lost| Lost { lowered: oldest, ..lost });
        return Decision { start: Start::At(oldest), lost };
    }
    Start::Halt(format!(
        "offset {} is wanted but the oldest record kept is {}: records may have been deleted before they were \
         stored; --start-at-oldest continues without them",
        wanted.next, known.low
    ))
    .into()
}

impl Known {
    fn lost(&self) -> Option<Lost> {
        let row = self.progress?;
        let (from, lowered) = match self.kept {
            Kept::UpTo(kept) => (kept.next, kept),
            // It is unknown how many of the consumed records are left, so all are consumed again. None is stored twice.
            Kept::Unknown | Kept::Nothing => {
                let next = self.low.min(self.high);
                (self.high, Progress { next, leader_epoch: LeaderEpoch::UNKNOWN })
            }
        };
        let is_lost = from < row.next || self.kept == Kept::Nothing && self.low <= row.next;
        is_lost.then_some(Lost { from: from.min(row.next), to: row.next, row, lowered })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: i64 = -1;

    fn at(next: i64, leader_epoch: i32) -> Progress {
        Progress { next: NextOffset(next), leader_epoch: LeaderEpoch(leader_epoch) }
    }

    fn known(committed: i64, progress: i64, low: i64, high: i64) -> Known {
        Known {
            committed: (committed >= 0).then_some(NextOffset(committed)),
            progress: (progress >= 0).then_some(at(progress, -1)),
            kept: Kept::Unknown,
            low: NextOffset(low),
            high: NextOffset(high),
        }
    }

    fn start(committed: i64, progress: i64, low: i64, high: i64) -> Option<i64> {
        match resolve(known(committed, progress, low, high), false).start {
            Start::At(from) => Some(from.next.0),
            Start::Halt(_) => None,
        }
    }

    #[test]
    fn start_offset_is_resolved_in_each_case() {
        for (case, committed, progress, low, high, expected) in [
            ("a fresh group on a fresh topic", NONE, NONE, 0, 0, Some(0)),
            ("a fresh group, the topic's first record exists", NONE, NONE, 0, 9, Some(0)),
            ("a fresh group, the topic's first record is deleted", NONE, NONE, 3, 9, None),
            ("both agree", 5, 5, 0, 9, Some(5)),
            ("the commit was lost", 4, 5, 0, 9, Some(4)),
            ("the database was restored", 5, 2, 0, 9, Some(2)),
            ("the database was restored to before the first row", 5, NONE, 0, 9, Some(0)),
            ("the same, and those records are deleted", 5, NONE, 1, 9, None),
            ("the group's offsets expired", NONE, 5, 0, 9, Some(5)),
            ("all are consumed", 9, 9, 9, 9, Some(9)),
            ("the next record is deleted", 5, 5, 6, 9, None),
            ("the next record is the oldest one", 6, 6, 6, 9, Some(6)),
            ("Kafka lost records, and it is not known which", 9, 9, 0, 8, Some(0)),
            ("the same, and the oldest ones are deleted", 9, 9, 3, 8, Some(3)),
        ] {
            assert_eq!(start(committed, progress, low, high), expected, "{case}");
        }
    }

    #[test]
    fn accepted_loss_starts_at_the_oldest_record() {
        assert_eq!(resolve(known(NONE, NONE, 3, 9), true).start, Start::At(at(3, -1)));
    }

    /// Returns a partition whose progress row has next offset 100 and leader epoch 3.
    fn consumed_to_100(committed: i64, kept: Kept, high: i64) -> Known {
        Known { progress: Some(at(100, 3)), kept, ..known(committed, NONE, 0, high) }
    }

    #[test]
    fn lost_tail_is_found_by_leader_epoch_or_end_offset() {
        let up_to = |next, leader_epoch| Kept::UpTo(at(next, leader_epoch));
        for (case, committed, kept, high, expected, lost) in [
            ("nothing is lost", 100, up_to(100, 3), 120, at(100, 3), None),
            ("another leader follows", 100, up_to(130, 3), 140, at(100, 3), None),
            ("the end offset that consumers see is behind", 100, up_to(100, 3), 90, at(100, 3), None),
            ("the log ends below", 100, up_to(80, 3), 80, at(80, 3), Some((80, 100))),
            ("new records, still below", 100, up_to(80, 2), 90, at(80, 2), Some((80, 100))),
            ("new records, already above", 100, up_to(80, 3), 140, at(80, 3), Some((80, 100))),
            ("the committed offset is below the loss", 70, up_to(80, 3), 140, at(70, -1), Some((80, 100))),
            ("the committed offset is in the loss", 90, up_to(80, 3), 140, at(80, 3), Some((80, 100))),
            ("by the end offset alone", 100, Kept::Unknown, 80, at(0, -1), Some((80, 100))),
            ("not found by the end offset alone", 100, Kept::Unknown, 140, at(100, 3), None),
            ("another log", 100, Kept::Nothing, 80, at(0, -1), Some((80, 100))),
            ("another log, already above", 100, Kept::Nothing, 140, at(0, -1), Some((100, 100))),
        ] {
            let decision = resolve(consumed_to_100(committed, kept, high), false);
            assert_eq!(decision.start, Start::At(expected), "{case}");
            assert_eq!(decision.lost.map(|lost| (lost.from.0, lost.to.0)), lost, "{case}");
        }
    }

    #[test]
    fn lowered_row_ends_at_the_kept_records() {
        let lost = |committed| resolve(consumed_to_100(committed, Kept::UpTo(at(80, 2)), 140), false).lost;
        for committed in [70, 100] {
            let lost = lost(committed).expect("20 are");
            assert_eq!((lost.row, lost.lowered, lost.count()), (at(100, 3), at(80, 2), 20));
        }
    }

    #[test]
    fn records_deleted_after_a_loss_halt_the_partition() {
        let known = Known { low: NextOffset(85), ..consumed_to_100(100, Kept::UpTo(at(80, 3)), 140) };
        let halted = resolve(known, false);
        assert!(matches!(halted.start, Start::Halt(_)) && halted.lost.is_none());
        let accepted = resolve(known, true);
        assert_eq!(accepted.start, Start::At(at(85, -1)));
        assert_eq!(accepted.lost.map(|lost| lost.lowered), Some(at(85, -1)));
    }
}
