//! What a delivery report says about a message: it is there, it is certainly not, or nobody can tell.

use msg_common::kafka::raw::Persistence;
use rdkafka::types::RDKafkaErrorCode;

/// What became of a record that was handed to the producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every in-sync replica has it.
    Stored {
        /// Where; below 0 in the rare case that a broker confirms a repeat without telling.
        offset: i64,
    },
    /// No broker has it.
    NotSent(RDKafkaErrorCode),
    /// A broker may have it.
    Unknown,
    /// No broker has it, because it is too large.
    TooLarge,
}

impl Outcome {
    /// What a failed delivery means.
    ///
    /// librdkafka's word that no broker has the message is taken only for errors that came instead of an attempt, or as
    /// a broker's last word on it. A message that it gave up while it lay in a queue may have been tried before: a leader that
    /// is deposed after it appended a batch answers NOT_LEADER_OR_FOLLOWER, which librdkafka counts as not persisted.
    pub fn of_failure(code: RDKafkaErrorCode, persistence: Persistence) -> Self {
        if persistence != Persistence::No {
            return Outcome::Unknown;
        }
        match code {
            RDKafkaErrorCode::MessageTimedOut
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::RequestTimedOut
            | RDKafkaErrorCode::NotLeaderForPartition
            | RDKafkaErrorCode::PurgeQueue
            | RDKafkaErrorCode::PurgeInflight
            | RDKafkaErrorCode::Fatal => Outcome::Unknown,
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize => Outcome::TooLarge,
            other => Outcome::NotSent(other),
        }
    }

    /// What a metric's label calls it.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Stored { .. } => "STORED",
            Outcome::NotSent(_) => "NOT_SENT",
            Outcome::Unknown => "OUTCOME_UNKNOWN",
            Outcome::TooLarge => "TOO_LARGE",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RDKafkaErrorCode as Code;

    #[test]
    fn not_sent_is_said_only_when_it_is_certain() {
        for (code, persistence, expected) in [
            (Code::TopicAuthorizationFailed, Persistence::No, Outcome::NotSent(Code::TopicAuthorizationFailed)),
            (Code::UnknownPartition, Persistence::No, Outcome::NotSent(Code::UnknownPartition)),
            (Code::UnknownTopic, Persistence::No, Outcome::NotSent(Code::UnknownTopic)),
            (Code::MessageSizeTooLarge, Persistence::No, Outcome::TooLarge),
            (Code::MessageSizeTooLarge, Persistence::Possibly, Outcome::Unknown),
            (Code::MessageTimedOut, Persistence::No, Outcome::Unknown),
            (Code::MessageTimedOut, Persistence::Possibly, Outcome::Unknown),
            (Code::NotLeaderForPartition, Persistence::No, Outcome::Unknown),
            (Code::PurgeQueue, Persistence::No, Outcome::Unknown),
            (Code::PurgeInflight, Persistence::Possibly, Outcome::Unknown),
            (Code::Fatal, Persistence::No, Outcome::Unknown),
            (Code::TopicAuthorizationFailed, Persistence::Possibly, Outcome::Unknown),
            (Code::UnknownProducerId, Persistence::Yes, Outcome::Unknown),
        ] {
            assert_eq!(Outcome::of_failure(code, persistence), expected, "{code:?} {persistence:?}");
        }
    }
}
