//! Determines the outcome of a message from its delivery report: it is in Kafka, it certainly is not, or that is unknown.
//! ADR 32.

use std::time::Duration;

use msg_common::kafka::raw::Persistence;
use rdkafka::types::RDKafkaErrorCode;

/// The outcome of a record that was enqueued in the producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every in-sync replica has it.
    Stored {
        /// `None` if Kafka confirmed the record without its offset.
        offset: Option<i64>,
    },
    /// No broker has it, because of this error.
    NotSent(RDKafkaErrorCode),
    /// A broker may have it.
    Unknown,
    /// No broker has it, because it is too large.
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailedDelivery {
    /// The error of the last attempt, or why there was none.
    pub(crate) code: RDKafkaErrorCode,
    /// Whether any attempt may have stored the record, according to librdkafka.
    pub(crate) persistence: Persistence,
    /// Whether the error is a response to a request, and not from librdkafka's queue.
    pub(crate) requested: bool,
    /// The time from enqueueing the record to its report; `None` if librdkafka does not know it.
    pub(crate) latency: Option<Duration>,
}

impl FailedDelivery {
    /// Returns whether a broker rejected the delivery, as opposed to a timeout, a lost connection or a purge.
    pub(crate) fn rejected_by_broker(&self) -> bool {
        // librdkafka's own codes are below -1; -1 is UNKNOWN_SERVER_ERROR.
        self.requested && self.code as i32 >= -1
    }
}

impl Outcome {
    /// Classifies a failed delivery. It is certainly not sent only if all of these hold:
    /// - librdkafka says so;
    /// - the error is a broker's response to this record's batch;
    /// - brokers give this response only before they append (see [`precedes_append`]);
    /// - the record was tried once: its report arrived before any retry (`backoff`). An earlier attempt may have been appended: a
    ///   leader that is deposed after it appended responds NOT_LEADER_OR_FOLLOWER, which librdkafka counts as not persisted.
    pub(crate) fn of_failure(failed: &FailedDelivery, backoff: Duration) -> Self {
        let tried_once = failed.latency.is_some_and(|latency| latency < backoff);
        let certain = failed.persistence == Persistence::No && failed.requested && tried_once;
        if certain && precedes_append(failed.code) { Outcome::NotSent(failed.code) } else { Outcome::Unknown }
    }

    /// Returns the value of the metric's label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Outcome::Stored { .. } => "STORED",
            Outcome::NotSent(_) => "NOT_SENT",
            Outcome::Unknown => "OUTCOME_UNKNOWN",
            Outcome::TooLarge => "TOO_LARGE",
        }
    }
}

/// Returns whether a broker returns this code only for a batch that it has not appended. Every code that is not listed may follow
/// an append.
fn precedes_append(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    match code {
        // Checked before the batch reaches a log.
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::InvalidTopic
        | Code::InvalidRequiredAcks
        | Code::UnsupportedVersion
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        // The validation of a batch: it is appended as a whole or not at all, so this holds for the neighbors of a bad record.
        | Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessage
        | Code::InvalidTimestamp
        | Code::InvalidRecord
        | Code::InvalidDifferentRecord
        // Checked under the same lock as the append, unlike NotEnoughReplicasAfterAppend.
        | Code::NotEnoughReplicas => true,
        // Among the others: UNKNOWN_SERVER_ERROR and NETWORK_EXCEPTION can be any failure of the request or its response; a leader
        // responds NOT_LEADER_OR_FOLLOWER, KAFKA_STORAGE_ERROR and UNKNOWN_TOPIC_OR_PARTITION also to batches that it appended
        // and whose replication it waits for; the codes of idempotence are about an earlier batch; Kafka itself does not define
        // POLICY_VIOLATION for this request.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RDKafkaErrorCode as Code;
    use rdkafka::types::RDKafkaRespErr;

    const BACKOFF: Duration = Duration::from_millis(200);

    fn rejected(code: Code) -> FailedDelivery {
        let latency = Some(Duration::from_millis(5));
        FailedDelivery { code, persistence: Persistence::No, requested: true, latency }
    }

    fn of(failed: FailedDelivery) -> Outcome {
        Outcome::of_failure(&failed, BACKOFF)
    }

    /// Every code that librdkafka knows is in this list, or unknown.
    #[test]
    fn not_sent_is_reported_for_a_closed_list_of_codes() {
        let listed = [2, 10, 17, 18, 19, 21, 29, 31, 32, 35, 43, 76, 87, -138];
        let mut tried = 0;
        for number in -200..=200 {
            let Ok(native) = RDKafkaRespErr::try_from(number) else { continue };
            let code = Code::from(native);
            let expected = if listed.contains(&number) { Outcome::NotSent(code) } else { Outcome::Unknown };
            assert_eq!(of(rejected(code)), expected, "{code:?} ({number})");
            tried += 1;
        }
        assert!(tried > 150, "only {tried} codes");
    }

    #[test]
    fn any_doubt_makes_an_outcome_unknown() {
        let good = rejected(Code::TopicAuthorizationFailed);
        assert_eq!(of(good), Outcome::NotSent(Code::TopicAuthorizationFailed));
        for doubtful in [
            FailedDelivery { persistence: Persistence::Possibly, ..good },
            FailedDelivery { persistence: Persistence::Yes, ..good },
            // The record failed in the queue, perhaps after an attempt.
            FailedDelivery { requested: false, ..good },
            FailedDelivery { latency: None, ..good },
            // The record may have been sent twice.
            FailedDelivery { latency: Some(BACKOFF), ..good },
        ] {
            assert_eq!(of(doubtful), Outcome::Unknown, "{doubtful:?}");
        }
    }

    #[test]
    fn rejections_are_responses_of_brokers() {
        assert!(rejected(Code::InvalidTimestamp).rejected_by_broker() && rejected(Code::Unknown).rejected_by_broker());
        assert!(!rejected(Code::MessageTimedOut).rejected_by_broker());
        assert!(!FailedDelivery { requested: false, ..rejected(Code::UnknownTopicOrPartition) }.rejected_by_broker());
    }
}
