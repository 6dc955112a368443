//! How far a purge may reach: not to a message that Kafka still holds. Its record could be read again, for instance after a
//! restore, and without the row the transfer could not detect that it is a duplicate.

use std::time::{Duration, SystemTime};

use msg_common::kafka::RequestError;
use msg_common::partition::Partition;
use msg_common::postgres::Purpose;

use crate::commands::{CommandError, for_people, lag_reader, pool};
use crate::config::Config;

/// Messages or dead letters that are not deleted, because of `--older-than`.
#[derive(Debug, thiserror::Error)]
pub enum HorizonError {
    /// It is longer than the time since 1970.
    #[error("--older-than reaches back to before 1970: give a shorter time")]
    TooLong,
    /// The topic's retention cannot be read.
    #[error("the topic's retention is not known, so nothing is deleted: run it again when Kafka responds")]
    RetentionUnknown(#[source] RequestError),
    /// The topic keeps its records without limit.
    #[error(
        "the topic keeps its records without limit (retention.ms is -1): a message whose row is deleted would come back when its \
         record is read again, so nothing is deleted"
    )]
    RetentionUnlimited,
    /// The topic may still have the records.
    #[error(
        "--older-than {} is below the topic's retention of {}: a message whose row is deleted would come back when its record \
         is read again", for_people(*.older_than), for_people(*.retention)
    )]
    BelowRetention {
        /// The setting.
        older_than: Duration,
        /// The topic's retention.
        retention: Duration,
    },
    /// The topic still has such a record.
    #[error(
        "Kafka still holds a record of {} ago in partition {partition}, longer than --older-than {} and than its retention: \
         Kafka deletes whole segments (segment.ms, segment.bytes). A message whose row is deleted would come back when its \
         record is read again; wait, or give a longer time", for_people(*.age), for_people(*.older_than)
    )]
    RecordKept {
        /// Its partition.
        partition: Partition,
        /// The age of its oldest record.
        age: Duration,
        /// The setting.
        older_than: Duration,
    },
}

/// Returns the time before which messages are old.
pub(in crate::commands) fn horizon(now: SystemTime, older_than: Duration) -> Result<SystemTime, HorizonError> {
    now.checked_sub(older_than).ok_or(HorizonError::TooLong)
}

/// Returns an error if Kafka may still hold a record of a message that would be deleted.
pub(super) async fn check(config: &Config, older_than: Duration) -> Result<(), CommandError> {
    let reader = lag_reader(config, pool(config, Purpose::Write)?)?;
    let topic = reader.topic().await.map_err(HorizonError::RetentionUnknown)?;
    let retention = topic.retention.ok_or(HorizonError::RetentionUnlimited)?;
    if older_than < retention {
        return Err(HorizonError::BelowRetention { older_than, retention }.into());
    }
    // Retention deletes whole segments, so a record may stay longer.
    let now = SystemTime::now();
    let oldest = reader.oldest_kept().await?.into_iter().min_by_key(|(_, written)| *written);
    let oldest = oldest.map(|(partition, written)| (partition, now.duration_since(written).unwrap_or_default()));
    match oldest {
        Some((partition, age)) if age > older_than => {
            Err(HorizonError::RecordKept { partition, age, older_than }.into())
        }
        _ => Ok(()),
    }
}
