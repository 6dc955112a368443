//! The limit of a purge: it must not delete a message whose record Kafka still holds. The record could be read again,
//! for instance after a restore, and without the row the transfer could not detect that it is a duplicate.

use std::time::{Duration, SystemTime};

use msg_common::postgres::Purpose;

use crate::commands::access::{lag_reader, pool};
use crate::commands::error::{CommandError, HorizonError};
use crate::config::Config;

/// Returns an error if Kafka may still hold a record of a message that would be deleted.
pub(super) async fn check(config: &Config, older_than: Duration) -> Result<(), CommandError> {
    let reader = lag_reader(config, pool(config, Purpose::Write)?).await?;
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
