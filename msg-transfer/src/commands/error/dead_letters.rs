//! The errors of reading and replaying dead letters.

use msg_common::kafka::ClientError;
use msg_common::partition::Partition;
use msg_common::postgres::DatabaseError;

use crate::lane::headers::TruncatedError;

/// A dead letter that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    #[error(
        "{topic} has no dead letter in partition {partition} at offset {offset}; `dead-letters list` shows all of them"
    )]
    Missing { topic: String, partition: Partition, offset: i64 },
    #[error(
        "{topic} has more than one dead letter in partition {partition} at offset {offset}, of topics with this name \
         or because Kafka lost records: choose one with {}", .choices.join(" or ")
    )]
    Several {
        topic: String,
        partition: Partition,
        offset: i64,
        /// For each of them, the flags that identify it.
        choices: Vec<String>,
    },
    #[error("cannot read the headers of the dead letter in partition {partition} at offset {offset}")]
    Headers {
        partition: Partition,
        offset: i64,
        #[source]
        source: TruncatedError,
    },
}

/// Dead letters that were not all replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The records would be in other partitions than those of the gateways.
    #[error("topic {topic} has {found} partitions, fewer than --topic-partitions {wanted}: give the gateways' number")]
    Partitions { topic: String, found: Partition, wanted: Partition },
    #[error(
        "cannot replay the dead letter in partition {partition} at offset {offset}; {replayed} were replayed and \
         marked, and the rest is as before"
    )]
    NotSent {
        partition: Partition,
        offset: i64,
        replayed: u64,
        #[source]
        source: SendError,
    },
    #[error(
        "{sent} records were sent again and cannot be marked, so the next run sends them once more, which is harmless"
    )]
    NotMarked {
        sent: usize,
        #[source]
        source: DatabaseError,
    },
}

/// A record that was not sent, or not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The dead letter has no such record.
    #[error(transparent)]
    Letter(#[from] LetterError),
    /// The producer rejects the record, or no broker confirms it.
    #[error(transparent)]
    Kafka(#[from] ClientError),
}
