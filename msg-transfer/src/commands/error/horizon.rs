//! The errors of `--older-than`, with which a command deletes nothing.

use std::time::{Duration, SystemTime};

use msg_common::kafka::RequestError;
use msg_common::partition::Partition;

use crate::commands::output::for_people;

/// Why nothing is deleted with this `--older-than`.
#[derive(Debug, thiserror::Error)]
pub enum HorizonError {
    #[error("--older-than reaches back to before 1970: give a shorter time")]
    TooLong,
    #[error("the topic's retention is not known, so nothing is deleted: run it again when Kafka responds")]
    RetentionUnknown(#[source] RequestError),
    #[error(
        "the topic keeps its records without limit (retention.ms is -1): a message whose row is deleted would come \
         back when its record is read again, so nothing is deleted"
    )]
    RetentionUnlimited,
    #[error(
        "--older-than {} is below the topic's retention of {}: a message whose row is deleted would come back when its \
         record is read again", for_people(*.older_than), for_people(*.retention)
    )]
    BelowRetention { older_than: Duration, retention: Duration },
    #[error(
        "Kafka still holds a record of {} ago in partition {partition}, longer than --older-than {} and than its \
         retention: Kafka deletes whole segments (segment.ms, segment.bytes). A message whose row is deleted would \
         come back when its record is read again; wait, or give a longer time", for_people(*.age), for_people(*.older_than)
    )]
    RecordKept { partition: Partition, age: Duration, older_than: Duration },
}

/// Returns the time before which messages are old.
pub(crate) fn horizon(now: SystemTime, older_than: Duration) -> Result<SystemTime, HorizonError> {
    now.checked_sub(older_than).ok_or(HorizonError::TooLong)
}
