//! Owns the parts of a hint that the transfer and the gateway must compute alike: the hash of a record, and the table that
//! holds its row.

use bytes::Bytes;
use uuid::Uuid;

use crate::postgres::{Identity, TableIdentity};
use crate::proto::HintedRows;

/// Returns the hash that stands for a record in a hint. It distinguishes records that had the same offset one after the
/// other, because Kafka lost the tail of its log. The send time is part of it: a message that is sent again has the same
/// ID.
pub fn record_hash(msg_id: Uuid, send_time_ms: i64) -> u64 {
    // The bits of an ID are random, or those of a SHA-256.
    let (high, low) = msg_id.as_u64_pair();
    high ^ low ^ send_time_ms.cast_unsigned()
}

/// Returns what the rows have in common that were stored in `table` at this time, from records of this topic.
pub fn hinted_rows(topic_id: Uuid, stored_time_us: i64, table: TableIdentity) -> HintedRows {
    let TableIdentity { server, database, table } = table;
    HintedRows {
        topic_id: Bytes::copy_from_slice(topic_id.as_bytes()),
        stored_time_us,
        system: server.system.unwrap_or_default(),
        timeline: server.timeline.unwrap_or_default(),
        started: server.started.unwrap_or_default(),
        database,
        table,
    }
}

/// Returns the table that the rows are in.
pub fn table(rows: &HintedRows) -> TableIdentity {
    let known = |part: &String| Some(part.clone()).filter(|part| !part.is_empty());
    let server =
        Identity { system: known(&rows.system), timeline: known(&rows.timeline), started: known(&rows.started) };
    TableIdentity { server, database: rows.database.clone(), table: rows.table }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_depends_on_each_part() {
        let (id, time) = (Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001), 1_700_000_000_123);
        let hash = record_hash(id, time);
        assert_eq!(record_hash(id, time), hash);
        assert_ne!(record_hash(id, time + 1), hash, "the message was sent again");
        for bit in 0..128 {
            assert_ne!(record_hash(Uuid::from_u128(id.as_u128() ^ (1 << bit)), time), hash, "bit {bit}");
        }
    }

    #[test]
    fn table_is_the_same_after_the_round_trip() {
        for known in [None, Some("7".to_owned())] {
            let server = Identity { system: known.clone(), timeline: known.clone(), started: Some("42".into()) };
            let stored = TableIdentity { server, database: "app".into(), table: 16_385 };
            assert_eq!(table(&hinted_rows(Uuid::max(), 1, stored.clone())), stored);
        }
    }
}
