//! Why dead letters cannot be read or replayed.

use msg_common::kafka::ClientError;
use msg_common::partition::Partition;
use msg_common::postgres::DatabaseError;

use crate::lane::headers::TruncatedError;

/// A dead letter that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// The table has none at this position.
    #[error(
        "{topic} has no dead letter in partition {partition} at offset {offset}; `dead-letters list` shows all of them"
    )]
    Missing {
        /// The topic's name.
        topic: String,
        /// The partition.
        partition: Partition,
        /// The offset.
        offset: i64,
    },
    /// The position does not identify it.
    #[error(
        "{topic} has more than one dead letter in partition {partition} at offset {offset}, of topics with this name or because \
         Kafka lost records: choose one with {}", .choices.join(" or ")
    )]
    Several {
        /// The topic's name.
        topic: String,
        /// The partition.
        partition: Partition,
        /// The offset.
        offset: i64,
        /// The flags that identify each of them.
        choices: Vec<String>,
    },
    /// Its headers cannot be read.
    #[error("cannot read the headers of the dead letter in partition {partition} at offset {offset}")]
    Headers {
        /// The partition.
        partition: Partition,
        /// The offset.
        offset: i64,
        /// Why.
        #[source]
        source: TruncatedError,
    },
}

/// Dead letters that were not all replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The records would be in other partitions than those of the gateways.
    #[error("topic {topic} has {found} partitions, fewer than --topic-partitions {wanted}: give the gateways' number")]
    Partitions {
        /// The topic's name.
        topic: String,
        /// How many it has.
        found: Partition,
        /// How many are configured.
        wanted: Partition,
    },
    /// A record was not sent, or not confirmed.
    #[error(
        "cannot replay the dead letter in partition {partition} at offset {offset}; {replayed} were replayed and marked, and the \
         rest is as before"
    )]
    NotSent {
        /// The partition.
        partition: Partition,
        /// The offset.
        offset: i64,
        /// How many were replayed before.
        replayed: u64,
        /// What the producer reported.
        #[source]
        source: SendError,
    },
    /// Replayed dead letters were not marked.
    #[error(
        "{sent} records were sent again and cannot be marked, so the next run sends them once more, which is harmless"
    )]
    NotMarked {
        /// How many.
        sent: usize,
        /// Why.
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
    /// The producer rejects it, or no broker confirms it.
    #[error(transparent)]
    Kafka(#[from] ClientError),
}
