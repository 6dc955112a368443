//! The rows that hints describe: which hints describe rows of this gateway's messages, and the rows whose waiter has no
//! delivery report yet.

use msg_common::hint;
use msg_common::postgres::TableIdentity;
use msg_common::proto::{HintedInbox, StoredHint, StoredPlacement};
use prost_types::Timestamp;
use uuid::Uuid;

/// The number of rows that are kept for waiters whose delivery report arrives after the hint.
const SLOTS: usize = 1 << 14;

/// The topic that the gateway writes to, and the table that it reads.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) topic_id: Uuid,
    pub(crate) table: TableIdentity,
}

/// A row that a hint describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HintedRow {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// The hash of the row's record.
    pub(crate) hash: u64,
    pub(crate) seq: i64,
    pub(crate) stored_time_us: i64,
}

impl Origin {
    /// Returns the `stored_time` of the rows that the hint describes, in microseconds since 1970. `None` if it describes
    /// none, or rows of another topic or in another table: another deployment may share the hints topic.
    pub(crate) fn stored_time_us(&self, hint: &StoredHint) -> Option<i64> {
        let rows = hint.rows.as_ref()?;
        let is_own = rows.topic_id == self.topic_id.as_bytes().as_slice() && hint::table(rows).is(&self.table);
        is_own.then_some(rows.stored_time_us)
    }
}

/// Returns the rows that are described of an inbox.
pub(crate) fn rows(inbox: &HintedInbox, stored_time_us: i64) -> impl Iterator<Item = HintedRow> + '_ {
    let HintedInbox { seq, partition, offsets, hashes, .. } = inbox;
    let before = i64::try_from(offsets.len()).ok().and_then(|count| seq.checked_sub(count));
    let described = if offsets.len() == hashes.len() { before.filter(|before| *before >= 0) } else { None };
    described.into_iter().flat_map(move |before| {
        let records = offsets.iter().zip(hashes).zip(1..);
        records.map(move |((offset, hash), number)| HintedRow {
            partition: *partition,
            offset: *offset,
            hash: *hash,
            seq: before + number,
            stored_time_us,
        })
    })
}

impl HintedRow {
    /// Returns the result of the waiter whose record made this row.
    pub(crate) fn placement(&self) -> StoredPlacement {
        const SECOND: i64 = 1_000_000;
        let micros = i32::try_from(self.stored_time_us.rem_euclid(SECOND)).expect("below a second");
        let stored_time = Timestamp { seconds: self.stored_time_us.div_euclid(SECOND), nanos: micros * 1000 };
        StoredPlacement { seq: self.seq, stored_time: Some(stored_time), duplicate: false }
    }
}

/// The rows that were hinted last. Each row has one slot, in which a later one replaces it: a waiter that does not find its
/// row here is looked up.
#[derive(Default)]
pub(crate) struct RecentRows(Vec<Option<HintedRow>>);

impl RecentRows {
    pub(crate) fn insert(&mut self, row: HintedRow) {
        if self.0.is_empty() {
            self.0.resize(SLOTS, None);
        }
        self.0[slot(row.hash)] = Some(row);
    }

    /// Returns the row in the slot of a record with this hash, which may be the row of another record.
    pub(crate) fn get(&self, hash: u64) -> Option<&HintedRow> {
        self.0.get(slot(hash))?.as_ref()
    }
}

fn slot(hash: u64) -> usize {
    usize::try_from(hash % SLOTS as u64).expect("it is below the number of slots")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{Duration, SystemTime};

    use msg_common::postgres::Identity;

    use super::*;

    pub(crate) fn origin() -> Origin {
        let server = Identity { system: Some("7".into()), timeline: Some("1".into()), started: Some("42".into()) };
        let table = TableIdentity { server, database: "app".into(), table: 16_385 };
        Origin { topic_id: Uuid::from_u128(9), table }
    }

    /// A hint of the gateway's own transfer about these rows of one inbox: the offset and the hash of each.
    pub(crate) fn hint(recv_id: &str, last_seq: i64, rows: &[(i64, u64)]) -> StoredHint {
        let (offsets, hashes) = rows.iter().copied().unzip();
        let recv_id = recv_id.to_owned();
        let inbox = HintedInbox { recv_id, seq: last_seq, partition: 3, offsets, hashes, ..HintedInbox::default() };
        let Origin { topic_id, table } = origin();
        StoredHint { inboxes: vec![inbox], rows: Some(hint::hinted_rows(topic_id, 1_700_000_000_123_456, table)) }
    }

    #[test]
    fn rows_of_another_topic_or_table_are_not_used() {
        let own = hint("bob", 1, &[(10, 1)]);
        assert_eq!(origin().stored_time_us(&own), Some(1_700_000_000_123_456));
        let rows = own.rows.clone().expect("it describes rows");
        let other = |change: &dyn Fn(&mut msg_common::proto::HintedRows)| {
            let mut rows = rows.clone();
            change(&mut rows);
            origin().stored_time_us(&StoredHint { rows: Some(rows), ..own.clone() })
        };
        assert_eq!(other(&|rows| rows.topic_id = Uuid::from_u128(10).as_bytes().to_vec().into()), None, "topic");
        assert_eq!(other(&|rows| rows.topic_id.clear()), None, "no topic");
        assert_eq!(other(&|rows| rows.system = "8".into()), None, "system");
        assert_eq!(other(&|rows| rows.timeline = "2".into()), None, "timeline");
        assert_eq!(other(&|rows| rows.started = "43".into()), None, "start");
        assert_eq!(other(&|rows| rows.started.clear()), None, "unknown start");
        assert_eq!(other(&|rows| rows.database = "other".into()), None, "database");
        assert_eq!(other(&|rows| rows.table = 16_386), None, "table");
        assert_eq!(other(&|rows| rows.system.clear()), Some(1_700_000_000_123_456), "the role may not read it");
        assert_eq!(origin().stored_time_us(&StoredHint { rows: None, ..own.clone() }), None, "an older transfer");
    }

    #[test]
    fn described_rows_have_consecutive_seqs_up_to_the_last() {
        let found = |hint: StoredHint| -> Vec<(i64, i64, u64)> {
            rows(&hint.inboxes[0], 1).map(|row| (row.seq, row.offset, row.hash)).collect()
        };
        assert_eq!(found(hint("bob", 7, &[(10, 1), (12, 2)])), [(6, 10, 1), (7, 12, 2)]);
        assert_eq!(found(hint("bob", 7, &[])), []);
        assert_eq!(found(hint("bob", 1, &[(10, 1), (12, 2)])), [], "a seq would be 0");
        let mut uneven = hint("bob", 7, &[(10, 1), (12, 2)]);
        uneven.inboxes[0].hashes.pop();
        assert_eq!(found(uneven), []);
    }

    #[test]
    fn stored_time_is_the_one_that_a_read_returns() {
        let own = hint("bob", 1, &[(10, 1)]);
        let row = rows(&own.inboxes[0], 1_700_000_000_123_456).next().expect("it is described");
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
        assert_eq!(row.placement().stored_time, Some(time.into()));
    }

    #[test]
    fn recent_rows_are_bounded() {
        let mut recent = RecentRows::default();
        assert_eq!(recent.get(1), None);
        let row = |hash| HintedRow { partition: 3, offset: 1, hash, seq: 1, stored_time_us: 1 };
        (0..100_000).for_each(|hash| recent.insert(row(hash)));
        assert_eq!((recent.0.len(), recent.get(99_999)), (SLOTS, Some(&row(99_999))));
    }
}
