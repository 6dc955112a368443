//! Owns the errors of the contract: the failures of a call, and their only conversion to a gRPC status.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use msg_common::limits::Violation;
use msg_common::proto::google::rpc;
use msg_common::proto::{DeadLetterReason, ERROR_DOMAIN, ErrorReason, Placement};
use prost::Message;
use rand::RngExt;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use uuid::Uuid;

use crate::quota::Quota;

/// The trailer in which gRPC clients find the delay before a retry, in milliseconds.
pub const PUSHBACK_TRAILER: &str = "grpc-retry-pushback-ms";

/// Maximum bytes of field names and descriptions in a BadRequest. With everything else the details stay below 4 KiB:
/// base64 adds a third, and clients turn trailers above 8 KiB into errors of their own.
const VIOLATIONS_BYTES: usize = 2500;

/// Maximum bytes of the violations of one entry of a batch or a stream: a thousand such errors stay well below the 4 MiB that
/// clients accept.
const ENTRY_VIOLATIONS_BYTES: usize = 1000;

/// Why a call failed. Each variant has one status code and one reason of the contract.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// Not sent: Kafka is unavailable, or its topic cannot be used.
    NotSent(String),
    /// Not sent: a limit of the gateway is reached.
    Overloaded(String),
    /// Not sent: the sender, the caller or its tenant has used up a quota.
    QuotaExceeded {
        /// The quota that is used up.
        quota: Quota,
        /// The time until it has enough again.
        retry_after: Duration,
        /// What is used up, and the setting that raises it.
        text: String,
    },
    /// A broker may have the message.
    OutcomeUnknown {
        /// The ID of the message, with which the caller can settle the outcome.
        msg_id: Uuid,
        /// The time after which the message can no longer appear.
        settles_by: SystemTime,
    },
    /// Fields that break a rule.
    Invalid(Vec<Violation>),
    /// The topic does not accept a message of this size.
    TooLarge(String),
    /// The call has no valid credentials. The text says what is wrong with them.
    Unauthenticated(&'static str),
    /// The caller has no right to do this. The text names the field and the right.
    PermissionDenied(String),
    /// The caller's deadline is too short for a definite outcome.
    DeadlineTooShort {
        /// The shortest deadline that is long enough.
        shortest: Duration,
    },
    /// An earlier entry of the same batch or stream, to the same inbox, was not sent or has an unknown outcome.
    PredecessorFailed,
    /// Accepted, and not stored in time.
    NotStoredYet(Box<Placement>),
    /// Accepted, and dead-lettered for this reason.
    DeadLettered(Box<Placement>, DeadLetterReason),
    /// The gateway drains, or the connection has reached its age.
    StreamEnded,
    /// The caller's deadline of the stream is near.
    StreamDeadline,
    /// The caller has not read from the stream for too long.
    SlowReader,
    /// Kafka did not respond in time.
    KafkaUnavailable(String),
    /// The call needs a database, and none is configured.
    NoDatabase,
    /// The database returned an error, or did not respond in time.
    DatabaseUnavailable(String),
    /// A fault of the gateway.
    Internal(String),
}

impl Failure {
    /// Returns the status code and the reason.
    pub fn kind(&self) -> (Code, ErrorReason) {
        match self {
            Failure::NotSent(_) => (Code::Unavailable, ErrorReason::NotSent),
            Failure::Overloaded(_) | Failure::QuotaExceeded { .. } => (Code::ResourceExhausted, ErrorReason::NotSent),
            Failure::OutcomeUnknown { .. } => (Code::DeadlineExceeded, ErrorReason::OutcomeUnknown),
            Failure::Invalid(_) => (Code::InvalidArgument, ErrorReason::InvalidFields),
            Failure::TooLarge(_) => (Code::InvalidArgument, ErrorReason::TooLarge),
            Failure::Unauthenticated(_) => (Code::Unauthenticated, ErrorReason::Unauthenticated),
            Failure::PermissionDenied(_) => (Code::PermissionDenied, ErrorReason::PermissionDenied),
            Failure::DeadlineTooShort { .. } => (Code::DeadlineExceeded, ErrorReason::DeadlineTooShort),
            Failure::PredecessorFailed => (Code::Aborted, ErrorReason::PredecessorFailed),
            Failure::NotStoredYet(_) => (Code::DeadlineExceeded, ErrorReason::NotStoredYet),
            Failure::DeadLettered(_, DeadLetterReason::IdempotencyConflict) => {
                (Code::AlreadyExists, ErrorReason::DeadLettered)
            }
            Failure::DeadLettered(..) => (Code::FailedPrecondition, ErrorReason::DeadLettered),
            Failure::StreamEnded => (Code::Unavailable, ErrorReason::StreamEnded),
            Failure::StreamDeadline => (Code::DeadlineExceeded, ErrorReason::StreamEnded),
            Failure::SlowReader => (Code::ResourceExhausted, ErrorReason::SlowReader),
            Failure::KafkaUnavailable(_) => (Code::Unavailable, ErrorReason::KafkaUnavailable),
            Failure::NoDatabase => (Code::FailedPrecondition, ErrorReason::NoDatabase),
            Failure::DatabaseUnavailable(_) => (Code::Unavailable, ErrorReason::DatabaseUnavailable),
            Failure::Internal(_) => (Code::Internal, ErrorReason::Internal),
        }
    }

    /// Returns the outcome's name in metrics.
    pub fn outcome(&self) -> &'static str {
        match self {
            Failure::Overloaded(_) => "OVERLOADED",
            Failure::QuotaExceeded { .. } => "QUOTA_EXCEEDED",
            _ => reason_name(self.kind().1),
        }
    }

    /// Returns whether a later message to the same inbox would now be out of order. A message that can never be stored,
    /// or that its caller may never send, has no rank in the order, and an accepted one has its own.
    pub fn leaves_a_gap(&self) -> bool {
        !matches!(
            self,
            Failure::Invalid(_)
                | Failure::TooLarge(_)
                | Failure::PermissionDenied(_)
                | Failure::NotStoredYet(_)
                | Failure::DeadLettered(..)
        )
    }

    /// Returns the error of one entry of a batch or a stream.
    pub fn of_entry(self) -> rpc::Status {
        let status = self.status(ENTRY_VIOLATIONS_BYTES);
        // The trailer with the details contains the whole status.
        rpc::Status::decode(status.details()).expect("it was encoded a moment ago")
    }

    /// Returns the delay before a retry, without jitter; `None` if a retry would not help.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Overloaded(_) => Some(Duration::from_millis(100)),
            Failure::QuotaExceeded { retry_after, .. } => Some(*retry_after),
            // Another gateway, or this one over a new connection, accepts it immediately.
            Failure::StreamEnded => Some(Duration::from_millis(100)),
            Failure::NotSent(_) | Failure::DatabaseUnavailable(_) | Failure::KafkaUnavailable(_) => {
                Some(Duration::from_secs(1))
            }
            Failure::OutcomeUnknown { .. }
            | Failure::Invalid(_)
            | Failure::TooLarge(_)
            | Failure::Unauthenticated(_)
            | Failure::PermissionDenied(_)
            | Failure::DeadlineTooShort { .. }
            | Failure::PredecessorFailed
            | Failure::NotStoredYet(_)
            | Failure::DeadLettered(..)
            | Failure::StreamDeadline
            | Failure::SlowReader
            | Failure::NoDatabase
            | Failure::Internal(_) => None,
        }
    }

    fn message(&self) -> String {
        match self {
            Failure::NotSent(text)
            | Failure::Overloaded(text)
            | Failure::QuotaExceeded { text, .. }
            | Failure::TooLarge(text)
            | Failure::PermissionDenied(text)
            | Failure::DatabaseUnavailable(text)
            | Failure::KafkaUnavailable(text)
            | Failure::Internal(text) => short(text).to_owned(),
            Failure::Unauthenticated(text) => (*text).to_owned(),
            Failure::OutcomeUnknown { .. } => {
                "Kafka has not confirmed the message in time, so its outcome is unknown; send it again with the same client_msg_id"
                    .to_owned()
            }
            Failure::Invalid(violations) => match violations.as_slice() {
                [] => "the request breaks a rule".to_owned(),
                [only] => format!("{} {}", short(&only.field), short(&only.description)),
                [first, rest @ ..] => {
                    format!("{} {}; and {} more", short(&first.field), short(&first.description), rest.len())
                }
            },
            Failure::DeadlineTooShort { shortest } => {
                format!("the deadline is too short for a definite outcome; allow more than {} ms", shortest.as_millis())
            }
            Failure::PredecessorFailed => {
                "an earlier entry to this inbox failed; send that one again, then this one".into()
            }
            Failure::NotStoredYet(_) => {
                "the message is accepted, and was not stored in time; it will be stored or dead-lettered later".into()
            }
            Failure::DeadLettered(_, DeadLetterReason::IdempotencyConflict) => {
                "a message with the same ID and different content is stored; this one is dead-lettered".into()
            }
            Failure::DeadLettered(_, reason) => {
                format!("the message is accepted and dead-lettered: {}", dead_letter_name(*reason))
            }
            Failure::StreamEnded => {
                "the stream has to end; entries without a result have an unknown outcome; continue with a new stream".into()
            }
            Failure::StreamDeadline => {
                "the deadline of the stream is near; entries without a result have an unknown outcome".into()
            }
            Failure::SlowReader => "the caller has not read for too long; watch again from the last seq that you have".into(),
            Failure::NoDatabase => "this gateway was started without a database, and this call needs one".to_owned(),
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        failure.status(VIOLATIONS_BYTES)
    }
}

impl Failure {
    fn status(&self, violations_bytes: usize) -> Status {
        let (code, reason) = self.kind();
        let mut details = ErrorDetails::new();
        let mut trailers = MetadataMap::new();
        let mut metadata = HashMap::new();
        if let Failure::OutcomeUnknown { msg_id, settles_by } = self {
            metadata.insert("msg_id".to_owned(), msg_id.to_string());
            metadata.insert("settles_by".to_owned(), prost_types::Timestamp::from(*settles_by).to_string());
        }
        if let Failure::NotStoredYet(placement) | Failure::DeadLettered(placement, _) = self {
            metadata.insert("msg_id".to_owned(), placement.msg_id.clone());
            metadata.insert("partition".to_owned(), placement.partition.to_string());
            if let Some(offset) = placement.offset {
                metadata.insert("offset".to_owned(), offset.to_string());
            }
            let send_time = placement.send_time.unwrap_or_default();
            metadata.insert("send_time".to_owned(), send_time.to_string());
        }
        if let Failure::DeadLettered(_, reason) = self {
            metadata.insert("dead_letter_reason".to_owned(), dead_letter_name(*reason).to_owned());
        }
        if let Failure::QuotaExceeded { quota, .. } = self {
            metadata.insert("quota".to_owned(), quota.name().to_owned());
        }
        if let Failure::Invalid(violations) = self {
            details.set_bad_request(fields(violations, violations_bytes));
        }
        if let Some(delay) = self.retry_after() {
            // Up to 1.5 times the delay, so that calls that were rejected together are not retried together. From 0.5
            // times, except for a quota: before its delay it has too little.
            let least = if matches!(self, Failure::QuotaExceeded { .. }) { 1.0 } else { 0.5 };
            let delay = delay.mul_f64(rand::rng().random_range(least..1.5));
            details.set_retry_info(Some(delay));
            let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            trailers.insert(PUSHBACK_TRAILER, millis.into());
        }
        details.set_error_info(reason_name(reason), ERROR_DOMAIN, metadata);
        Status::with_error_details_and_metadata(code, self.message(), details, trailers)
    }
}

/// Adds a reason to a status of the transport, which has no details.
pub fn with_reason(code: Code, message: &str, reason: ErrorReason) -> Status {
    let details = ErrorDetails::with_error_info(reason_name(reason), ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(code, short(message), details)
}

/// Returns the name of a reason in ErrorInfo.
pub fn reason_name(reason: ErrorReason) -> &'static str {
    reason.as_str_name().trim_start_matches("ERROR_REASON_")
}

fn dead_letter_name(reason: DeadLetterReason) -> &'static str {
    reason.as_str_name().trim_start_matches("DEAD_LETTER_REASON_")
}

/// Returns as many violations as fit, and a count of the others.
fn fields(violations: &[Violation], max_bytes: usize) -> Vec<FieldViolation> {
    let mut fields = Vec::new();
    let mut bytes = 0;
    for violation in violations {
        let (field, description) = (short(&violation.field), short(&violation.description));
        // Each has up to 8 bytes of tags and lengths.
        bytes += field.len() + description.len() + 8;
        if bytes > max_bytes {
            break;
        }
        fields.push(FieldViolation::new(field, description));
    }
    let left = violations.len() - fields.len();
    if left > 0 {
        fields.push(FieldViolation::new("", format!("and {left} more")));
    }
    fields
}

/// Truncates a text so that the details stay below their limit. The text is in them twice: in the status and in its
/// details.
fn short(text: &str) -> &str {
    const MAX_TEXT_BYTES: usize = 300;
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

#[cfg(test)]
mod tests;
