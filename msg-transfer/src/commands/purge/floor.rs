//! How far a purge may reach: not to a message that Kafka still holds. Its record could be read again, after a restore for
//! instance, and without the row nothing would tell that it is a repeat.

use std::time::{Duration, SystemTime};

use msg_common::postgres::Purpose;

use crate::commands::{for_people, lag_reader, pool};
use crate::config::Config;

/// An error says why the horizon is refused.
pub(super) async fn check(config: &Config, older_than: Duration) -> Result<(), String> {
    let reader = lag_reader(config, pool(config, Purpose::Write)?)?;
    let topic = reader.topic().await.map_err(|error| {
        format!("the topic's retention could not be read, so nothing is deleted: {error}; run it when Kafka answers")
    })?;
    let Some(retention) = topic.retention else {
        return Err(
            "the topic keeps its records for ever (retention.ms is -1): a message whose row is deleted would come \
                    back when its record is read again, so nothing is deleted"
                .to_owned(),
        );
    };
    if older_than < retention {
        return Err(format!(
            "--older-than {} is below the topic's retention of {}: a message whose row is deleted would come back when \
             its record is read again",
            for_people(older_than),
            for_people(retention)
        ));
    }
    // Retention deletes whole segments, so a record may stay longer.
    let now = SystemTime::now();
    let oldest =
        reader.oldest_kept().await.map_err(|error| error.to_string())?.into_iter().min_by_key(|(_, written)| *written);
    match oldest {
        Some((partition, written)) if now.duration_since(written).unwrap_or_default() > older_than => Err(format!(
            "Kafka still holds a record of {} ago in partition {partition}, longer than --older-than {} and than its \
             retention: Kafka deletes whole segments (segment.ms, segment.bytes). A message whose row is deleted would \
             come back when its record is read again; wait, or give a longer time",
            for_people(now.duration_since(written).unwrap_or_default()),
            for_people(older_than)
        )),
        _ => Ok(()),
    }
}
