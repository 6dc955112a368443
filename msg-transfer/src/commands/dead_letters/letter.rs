//! A dead letter, as read from the table.

use std::time::SystemTime;

use msg_common::partition::Partition;
use msg_common::postgres::Object;
use msg_common::record::{self, DecodeError, Record};
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::commands::error::LetterError;
use crate::lane::headers::{Header, unpack};

/// The columns of a [`Summary`], with which every statement on dead letters starts.
pub(super) const SELECT_SUMMARY: &str = "
    SELECT topic_id, kafka_partition, kafka_offset, recv_id, msg_id, reason, detail, first_seen, replayed_at,
           coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0) + octet_length(headers), leader_epoch";

const RECORDS: &str = ", key, value, headers
    FROM dead_letters
    WHERE topic = $1 AND kafka_partition = $2 AND kafka_offset = $3 AND ($4::uuid IS NULL OR topic_id = $4)
      AND ($5::integer IS NULL OR leader_epoch = $5)
    ORDER BY topic_id, leader_epoch";

const AT_POSITIONS: &str = "
    WHERE (d.topic_id, d.kafka_partition, d.kafka_offset, d.leader_epoch) IN
        (SELECT * FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::integer[]))";

/// The position of the record in Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// A recreated topic has the same name and another ID.
    pub topic_id: Uuid,
    pub partition: Partition,
    pub offset: i64,
    /// If Kafka lost the tail of a log, another record has the same offset, with another leader epoch. -1
    /// if it is not known.
    pub leader_epoch: i32,
}

/// Runs a statement on the rows at these positions. It names the table `d`, and ends with [`AT_POSITIONS`].
pub(super) async fn execute_at(client: &Object, statement: &str, positions: &[Position]) -> Result<(), Error> {
    let topic_ids: Vec<Uuid> = positions.iter().map(|position| position.topic_id).collect();
    let partitions: Vec<Partition> = positions.iter().map(|position| position.partition).collect();
    let offsets: Vec<i64> = positions.iter().map(|position| position.offset).collect();
    let leader_epochs: Vec<i32> = positions.iter().map(|position| position.leader_epoch).collect();
    client
        .execute(&format!("{statement} {AT_POSITIONS}"), &[&topic_ids, &partitions, &offsets, &leader_epochs])
        .await?;
    Ok(())
}

/// A dead letter without the bytes of its record.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub position: Position,
    /// The inbox, if it is known.
    pub recv_id: Option<String>,
    /// The ID of the message, if it is known.
    pub msg_id: Option<Uuid>,
    pub reason: String,
    /// What is wrong with the record, in a sentence for operators.
    pub detail: String,
    pub first_seen: SystemTime,
    pub replayed_at: Option<SystemTime>,
    /// The bytes of key, value and headers together.
    pub bytes: i32,
}

impl Summary {
    /// Reads the columns of [`SELECT_SUMMARY`].
    pub(super) fn of(row: &Row) -> Self {
        Summary {
            position: Position {
                topic_id: row.get(0),
                partition: row.get(1),
                offset: row.get(2),
                leader_epoch: row.get(10),
            },
            recv_id: row.get(3),
            msg_id: row.get(4),
            reason: row.get(5),
            detail: row.get(6),
            first_seen: row.get(7),
            replayed_at: row.get(8),
            bytes: row.get(9),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub summary: Summary,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    headers: Vec<u8>,
}

impl Letter {
    /// Returns the dead letters at this position. There may be more than one if no topic ID is given and the topic was
    /// recreated, or if no leader epoch is given and Kafka lost the tail of the log.
    pub(super) async fn find(
        client: &Object,
        topic: &str,
        partition: Partition,
        offset: i64,
        topic_id: Option<Uuid>,
        leader_epoch: Option<i32>,
    ) -> Result<Vec<Letter>, Error> {
        let statement = client.prepare_cached(&format!("{SELECT_SUMMARY}{RECORDS}")).await?;
        let rows = client.query(&statement, &[&topic, &partition, &offset, &topic_id, &leader_epoch]).await?;
        let letter = |row: &Row| Letter {
            summary: Summary::of(row),
            key: row.get(11),
            value: row.get(12),
            headers: row.get(13),
        };
        Ok(rows.iter().map(letter).collect())
    }

    /// Returns the dead letter at this position, or `None` if it was deleted in the meantime.
    pub(super) async fn fetch(client: &Object, topic: &str, position: Position) -> Result<Option<Letter>, Error> {
        let Position { topic_id, partition, offset, leader_epoch } = position;
        let found = Letter::find(client, topic, partition, offset, Some(topic_id), Some(leader_epoch)).await?;
        Ok(found.into_iter().next())
    }

    /// Returns whether the record's value was not kept. If it were replayed, it would be another record.
    pub(super) fn has_lost_content(&self) -> bool {
        // Only a record that cannot be decoded may have had none.
        self.value.is_none() && self.summary.reason != "UNDECODABLE"
    }

    /// Unpacks the headers of the record.
    pub(super) fn headers(&self) -> Result<Vec<Header<'_>>, LetterError> {
        let Position { partition, offset, .. } = self.summary.position;
        unpack(&self.headers).map_err(|source| LetterError::Headers { partition, offset, source })
    }

    /// Decodes the record as a transfer of this build does.
    pub(super) fn decode(&self) -> Result<Record, DecodeError> {
        let headers = unpack(&self.headers).map_err(|error| DecodeError::Undecodable(error.to_string()))?;
        let version = headers.iter().rev().find(|header| header.key == record::VERSION_HEADER.as_bytes());
        let value = self.value.clone().map(Into::into);
        record::decode(self.key.as_deref(), version.and_then(|header| header.value), value)
    }
}
