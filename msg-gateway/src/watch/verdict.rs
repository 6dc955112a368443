//! Decides what rows and dead letters mean for the callers that wait for STORED: those that a lookup found, and rows
//! that a hint describes. These are pure functions. No other code matches a row or a dead letter with a waiter.

use msg_common::proto::{DeadLetterReason, Placement, StoredPlacement};
use msg_common::table::Digest;

use crate::status::Failure;
use crate::watch::hinted_rows::HintedRow;
use crate::watch::message_key::MessageKey;
use crate::watch::queries::StoredRow;

pub(crate) type WaitResult = Result<StoredPlacement, Failure>;

/// A waiter's result, with its index in the lookup.
pub(crate) type Verdict = (usize, WaitResult);

/// The message that a waiter waits for.
#[derive(Clone, Debug)]
pub(crate) struct Awaited {
    pub(crate) id: u64,
    pub(crate) key: MessageKey,
    pub(crate) placement: Placement,
    pub(crate) digest: Digest,
    /// Whether the lookup also queries dead letters.
    pub(crate) may_be_dead: bool,
}

impl Awaited {
    /// Returns whether the waiter's record made this row that a hint describes. The hash stands for its ID and its send
    /// time.
    pub(crate) fn is_its_hinted_row(&self, row: &HintedRow) -> bool {
        let key = &self.key;
        (row.partition, Some(row.offset), row.hash) == (key.partition, key.offset, key.hash())
    }

    /// Returns whether the waiter's record made this row. A record that Kafka lost may have had the same offset, but
    /// its send time differs.
    fn is_its_row(&self, row: &StoredRow) -> bool {
        let key = &self.key;
        (row.partition, Some(row.offset), row.send_time) == (key.partition, key.offset, key.send_time)
    }

    /// Returns whether the waiter's record may have made this row, if Kafka confirmed it without an offset. Then only
    /// the send time identifies it.
    fn may_have_made(&self, row: &StoredRow) -> bool {
        let key = &self.key;
        key.offset.is_none() && (row.partition, row.send_time) == (key.partition, key.send_time)
    }
}

/// Returns the results of the waiters whose own record made the row, and the rows that other records made under the
/// same ID.
pub(crate) fn own_rows(awaited: &[Awaited], rows: Vec<StoredRow>) -> (Vec<Verdict>, Vec<StoredRow>) {
    let (own, others): (Vec<StoredRow>, _) = rows.into_iter().partition(|row| awaited[row.index].is_its_row(row));
    (own.iter().map(|row| (row.index, Ok(stored(row, false)))).collect(), others)
}

/// Returns the results of the waiters whose message is in another record's row. A message with different content has
/// no result yet: its record will be dead-lettered.
pub(crate) fn duplicates(awaited: &[Awaited], others: &[StoredRow], digests: &[(usize, Digest)]) -> Vec<Verdict> {
    let is_same = |row: &&StoredRow| {
        let its = digests.iter().find(|(index, _)| *index == row.index);
        its.is_some_and(|(_, digest)| *digest == awaited[row.index].digest)
    };
    let verdict = |row: &StoredRow| (row.index, Ok(stored(row, !awaited[row.index].may_have_made(row))));
    others.iter().filter(is_same).map(verdict).collect()
}

/// Returns the results of the waiters whose records were dead-lettered.
pub(crate) fn dead(awaited: &[Awaited], letters: Vec<(usize, String)>) -> Vec<Verdict> {
    let verdict = |(index, reason): (usize, String)| {
        let reason = DeadLetterReason::from_str_name(&format!("DEAD_LETTER_REASON_{reason}")).unwrap_or_default();
        (index, Err(Failure::DeadLettered(Box::new(awaited[index].placement.clone()), reason)))
    };
    letters.into_iter().map(verdict).collect()
}

fn stored(row: &StoredRow, duplicate: bool) -> StoredPlacement {
    StoredPlacement { seq: row.seq, stored_time: Some(row.stored_time.into()), duplicate }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use msg_common::proto::{Msg, StoredHint};
    use uuid::Uuid;

    use super::*;
    use crate::watch::hinted_rows::{self, tests::hint};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn msg(content: &str) -> Msg {
        Msg { send_id: "alice".into(), content: content.as_bytes().to_vec().into(), ..Msg::default() }
    }

    fn awaited(offset: i64, content: &str) -> Awaited {
        let offset = Some(offset).filter(|offset| *offset >= 0);
        let placement = Placement { partition: 3, offset, send_time: Some(NOW.into()), ..Placement::default() };
        let key = MessageKey { recv_id: "bob".into(), msg_id: Uuid::nil(), send_time: NOW, partition: 3, offset };
        Awaited { id: 0, key, placement, digest: Digest::of(&msg(content)), may_be_dead: true }
    }

    fn row(index: usize, offset: i64, seq: i64) -> StoredRow {
        StoredRow { index, seq, stored_time: NOW, send_time: NOW, partition: 3, offset }
    }

    fn digest(index: usize, content: &str) -> (usize, Digest) {
        (index, Digest::of(&msg(content)))
    }

    fn seqs(verdicts: &[Verdict]) -> Vec<(usize, i64, bool)> {
        let seq = |(index, result): &Verdict| {
            let stored = result.as_ref().expect("it is stored");
            (*index, stored.seq, stored.duplicate)
        };
        verdicts.iter().map(seq).collect()
    }

    #[test]
    fn row_of_own_record_differs_from_another_records() {
        let awaited = [awaited(10, "a"), awaited(11, "b"), awaited(12, "c"), awaited(13, "d")];
        let (own, others) = own_rows(&awaited, vec![row(3, 13, 8), row(1, 5, 6), row(2, 12, 7)]);
        assert_eq!(seqs(&own), [(3, 8, false), (2, 7, false)]);
        assert_eq!(others.iter().map(|row| row.index).collect::<Vec<_>>(), [1]);
        let elsewhere = StoredRow { partition: 4, ..row(0, 10, 9) };
        assert!(own_rows(&awaited, vec![elsewhere]).0.is_empty(), "the same offset of another partition");
        let reused = StoredRow { send_time: NOW + std::time::Duration::from_millis(1), ..row(0, 10, 9) };
        assert!(
            own_rows(&awaited, vec![reused]).0.is_empty(),
            "an offset that another record had before Kafka lost it"
        );
    }

    #[test]
    fn hinted_row_is_its_own_only_at_its_position_and_with_its_hash() {
        let own = awaited(10, "a");
        let of = |hint: StoredHint| hinted_rows::rows(&hint.inboxes[0], 1).next().expect("it is described");
        let row = of(hint("bob", 7, &[(10, own.key.hash())]));
        assert!(own.is_its_hinted_row(&row));
        assert!(!own.is_its_hinted_row(&HintedRow { partition: 4, ..row }), "another partition");
        assert!(!own.is_its_hinted_row(&HintedRow { offset: 11, ..row }), "another offset");
        assert!(!awaited(-1, "a").is_its_hinted_row(&row), "an offset that is not known");
        let later = MessageKey { send_time: NOW + std::time::Duration::from_millis(1), ..own.key.clone() };
        assert!(!Awaited { key: later, ..own.clone() }.is_its_hinted_row(&row), "a message that was sent again");
        let other = MessageKey { msg_id: Uuid::from_u128(1), ..own.key.clone() };
        assert!(!Awaited { key: other, ..own }.is_its_hinted_row(&row), "an offset that another record had");
    }

    #[test]
    fn record_without_an_offset_is_known_by_its_send_time() {
        let awaited = [awaited(-1, "a")];
        let result = |row: StoredRow, content| {
            let (own, others) = own_rows(&awaited, vec![row]);
            assert!(own.is_empty());
            seqs(&duplicates(&awaited, &others, &[digest(0, content)]))
        };
        let later = StoredRow { send_time: NOW + std::time::Duration::from_millis(1), ..row(0, 10, 9) };
        assert_eq!(result(later, "a"), [(0, 9, true)]);
        assert_eq!(result(row(0, 10, 9), "a"), [(0, 9, false)]);
        assert_eq!(result(row(0, 10, 9), "b"), []);
    }

    #[test]
    fn duplicate_is_found_by_content_of_the_same_waiter() {
        let awaited = [awaited(10, "a"), awaited(11, "b"), awaited(12, "c"), awaited(13, "d")];
        // In any order, and only for some of the waiters.
        let others = [row(3, 1, 31), row(1, 2, 11), row(2, 3, 21)];
        let found = [digest(1, "b"), digest(2, "not c"), digest(3, "d")];
        assert_eq!(seqs(&duplicates(&awaited, &others, &found)), [(3, 31, true), (1, 11, true)]);
        // A row that was purged between the two queries is no duplicate yet.
        assert!(duplicates(&awaited, &others, &[]).is_empty());
    }

    #[test]
    fn stored_pending_and_dead_lettered_are_distinguished() {
        let awaited = [awaited(10, "stored"), awaited(11, "pending"), awaited(12, "dead")];
        let (own, others) = own_rows(&awaited, vec![row(0, 10, 1)]);
        assert_eq!((seqs(&own), others.len()), (vec![(0, 1, false)], 0));
        let verdicts = dead(&awaited, vec![(2, "REJECTED_BY_DATABASE".into())]);
        let Some((2, Err(Failure::DeadLettered(placement, reason)))) = verdicts.first().cloned() else {
            panic!("{verdicts:?}")
        };
        assert_eq!((verdicts.len(), placement.offset, reason), (1, Some(12), DeadLetterReason::RejectedByDatabase));
    }
}
