//! Where to start a partition: decided before anything is fetched, never left to `auto.offset.reset`.

use crate::NextOffset;

/// What is known of a partition when it is assigned.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The group's committed offset.
    pub committed: Option<NextOffset>,
    /// The database's progress row for this very topic.
    pub progress: Option<NextOffset>,
    /// The oldest record that is kept, or the end if none is.
    pub low: NextOffset,
    /// The end.
    pub high: NextOffset,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Begin here.
    At(NextOffset),
    /// Begin nowhere, for this reason.
    Halt(String),
}

/// Decides.
///
/// The progress row is written before the offset is committed, so a row that is behind, or missing beside a committed
/// offset, means that the database was restored to an earlier point: everything since is read again, and what is
/// still there is not stored twice. `accept_loss` lets a partition whose records are already deleted begin with the oldest
/// that is left.
pub fn resolve(known: Known, accept_loss: bool) -> Start {
    let beginning = NextOffset(0);
    let wanted = match (known.committed, known.progress) {
        (Some(committed), Some(progress)) => committed.min(progress),
        (None, Some(progress)) => progress,
        // No row: this database has never had anything of this partition.
        (_, None) => beginning,
    };
    if wanted > known.high {
        return Start::Halt(format!(
            "offset {wanted} is wanted but the partition ends at {}: records were lost in Kafka",
            known.high
        ));
    }
    if wanted >= known.low {
        return Start::At(wanted);
    }
    if accept_loss {
        return Start::At(known.low);
    }
    Start::Halt(format!(
        "offset {wanted} is wanted but the oldest record kept is {}: records may have been deleted before they were \
         stored; --start-at-oldest goes on without them",
        known.low
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(committed: i64, progress: i64, low: i64, high: i64) -> Option<i64> {
        let some = |offset: i64| (offset >= 0).then_some(NextOffset(offset));
        let known = Known {
            committed: some(committed),
            progress: some(progress),
            low: NextOffset(low),
            high: NextOffset(high),
        };
        match resolve(known, false) {
            Start::At(offset) => Some(offset.0),
            Start::Halt(_) => None,
        }
    }

    #[test]
    fn each_case() {
        const NONE: i64 = -1;
        for (case, committed, progress, low, high, expected) in [
            ("a fresh group on a fresh topic", NONE, NONE, 0, 0, Some(0)),
            ("a fresh group, the topic's start is there", NONE, NONE, 0, 9, Some(0)),
            ("a fresh group, the topic's start is gone", NONE, NONE, 3, 9, None),
            ("both agree", 5, 5, 0, 9, Some(5)),
            ("the commit was lost", 4, 5, 0, 9, Some(4)),
            ("the database was restored", 5, 2, 0, 9, Some(2)),
            ("the database was restored to before the first row", 5, NONE, 0, 9, Some(0)),
            ("the same, and those records are gone", 5, NONE, 1, 9, None),
            ("the group's offsets expired", NONE, 5, 0, 9, Some(5)),
            ("all read", 9, 9, 9, 9, Some(9)),
            ("the wanted record is deleted", 5, 5, 6, 9, None),
            ("the wanted record is just there", 6, 6, 6, 9, Some(6)),
            ("Kafka lost records", 9, 9, 0, 8, None),
        ] {
            assert_eq!(start(committed, progress, low, high), expected, "{case}");
        }
    }

    #[test]
    fn a_loss_can_be_accepted() {
        let known = Known { committed: None, progress: None, low: NextOffset(3), high: NextOffset(9) };
        assert_eq!(resolve(known, true), Start::At(NextOffset(3)));
    }
}
