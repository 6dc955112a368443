//! A dead letter as it is in the table.

use std::time::SystemTime;

use msg_common::partition::Partition;
use msg_common::postgres::Object;
use msg_common::record::{self, DecodeError, Record};
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::commands::error::LetterError;
use crate::lane::headers::{Header, unpack};

const SELECT: &str = "
    SELECT topic_id, kafka_partition, kafka_offset, recv_id, msg_id, reason, detail, first_seen, replayed_at,
           coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0) + octet_length(headers),
           leader_epoch, key, value, headers
    FROM dead_letters
    WHERE topic = $1 AND kafka_partition = $2 AND kafka_offset = $3 AND ($4::uuid IS NULL OR topic_id = $4)
      AND ($5::integer IS NULL OR leader_epoch = $5)
    ORDER BY topic_id, leader_epoch";

/// Where the record lies in Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// A topic made anew under the same name has another.
    pub topic_id: Uuid,
    /// In which partition.
    pub partition: Partition,
    /// At which offset.
    pub offset: i64,
    /// If Kafka lost the tail of a log, another record has the same offset, with another leader epoch. -1 where it is not known.
    pub leader_epoch: i32,
}

/// All but the record's bytes.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    /// Where it lies.
    pub place: Place,
    /// Its inbox, where it is known.
    pub recv_id: Option<String>,
    /// Its id, where it is known.
    pub msg_id: Option<Uuid>,
    /// Why it is here.
    pub reason: String,
    /// A sentence about it.
    pub detail: String,
    /// When it came.
    pub first_seen: SystemTime,
    /// When it was sent again.
    pub replayed_at: Option<SystemTime>,
    /// Of key, value and headers.
    pub bytes: i32,
}

impl Summary {
    /// From the columns that every statement here begins with.
    pub(super) fn of(row: &Row) -> Self {
        Summary {
            place: Place { topic_id: row.get(0), partition: row.get(1), offset: row.get(2), leader_epoch: row.get(10) },
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

/// With the record's bytes.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    /// The rest.
    pub summary: Summary,
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    headers: Vec<u8>,
}

impl Letter {
    /// Those at this place: more than one without a topic's id, when the topic was made anew, or without a leader epoch, when
    /// Kafka lost the tail of the log.
    pub(super) async fn find(
        client: &Object,
        topic: &str,
        partition: Partition,
        offset: i64,
        topic_id: Option<Uuid>,
        leader_epoch: Option<i32>,
    ) -> Result<Vec<Letter>, Error> {
        let statement = client.prepare_cached(SELECT).await?;
        let rows = client.query(&statement, &[&topic, &partition, &offset, &topic_id, &leader_epoch]).await?;
        let letter = |row: &Row| Letter {
            summary: Summary::of(row),
            key: row.get(11),
            value: row.get(12),
            headers: row.get(13),
        };
        Ok(rows.iter().map(letter).collect())
    }

    /// The one that this is about; `None` if it is gone meanwhile.
    pub(super) async fn fetch(client: &Object, topic: &str, place: Place) -> Result<Option<Letter>, Error> {
        let Place { topic_id, partition, offset, leader_epoch } = place;
        let found = Letter::find(client, topic, partition, offset, Some(topic_id), Some(leader_epoch)).await?;
        Ok(found.into_iter().next())
    }

    /// Whether its record had a value that is not in the letter: sent again it would be another record.
    pub(super) fn has_lost_content(&self) -> bool {
        // Only a record that cannot be decoded may have had none.
        self.value.is_none() && self.summary.reason != "UNDECODABLE"
    }

    /// The record's headers.
    pub(super) fn headers(&self) -> Result<Vec<Header<'_>>, LetterError> {
        let Place { partition, offset, .. } = self.summary.place;
        unpack(&self.headers).map_err(|source| LetterError::Headers { partition, offset, source })
    }

    /// The message in it, as a transfer of this build reads it.
    pub(super) fn decode(&self) -> Result<Record, DecodeError> {
        let headers = unpack(&self.headers).map_err(|error| DecodeError::Undecodable(error.to_string()))?;
        let version = headers.iter().rev().find(|header| header.key == record::VERSION_HEADER.as_bytes());
        let value = self.value.clone().map(Into::into);
        record::decode(self.key.as_deref(), version.and_then(|header| header.value), value)
    }
}
