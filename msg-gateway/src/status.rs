//! The errors of the contract: what can go wrong, and the one place where it becomes a gRPC status.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use msg_common::limits::Violation;
use msg_common::proto::{ERROR_DOMAIN, ErrorReason};
use rand::RngExt;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use uuid::Uuid;

/// The trailer that tells gRPC clients when to try again, in milliseconds.
pub const PUSHBACK_TRAILER: &str = "grpc-retry-pushback-ms";

/// Most bytes of field names and descriptions in a BadRequest. With everything else the details stay below 4 KiB:
/// base64 makes a third more of it, and clients turn trailers above 8 KiB into errors of their own.
const VIOLATIONS_BYTES: usize = 2500;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// Not handed to a broker: Kafka is away, or its topic cannot be used.
    NotSent(String),
    /// Not handed to a broker: a limit of the gateway is reached.
    Overloaded(String),
    /// A broker may have the message.
    OutcomeUnknown {
        /// The message's id.
        msg_id: Uuid,
        /// The time after which it will not appear any more.
        settles_by: SystemTime,
    },
    /// Fields that break a rule.
    Invalid(Vec<Violation>),
    /// The broker takes no message of this size.
    TooLarge(String),
    /// The caller's deadline leaves no time for a true answer.
    DeadlineTooShort {
        /// The shortest that does.
        shortest: Duration,
    },
    /// This call, or this value of a field, is not served.
    NotImplemented(&'static str),
    /// A read needs a database, and none is configured.
    NoDatabase,
    /// The database did not answer.
    DatabaseUnavailable(String),
    /// A fault of our own.
    Internal(String),
}

impl Failure {
    /// The status code and the reason.
    pub fn kind(&self) -> (Code, ErrorReason) {
        match self {
            Failure::NotSent(_) => (Code::Unavailable, ErrorReason::NotSent),
            Failure::Overloaded(_) => (Code::ResourceExhausted, ErrorReason::NotSent),
            Failure::OutcomeUnknown { .. } => (Code::DeadlineExceeded, ErrorReason::OutcomeUnknown),
            Failure::Invalid(_) => (Code::InvalidArgument, ErrorReason::InvalidFields),
            Failure::TooLarge(_) => (Code::InvalidArgument, ErrorReason::TooLarge),
            Failure::DeadlineTooShort { .. } => (Code::DeadlineExceeded, ErrorReason::DeadlineTooShort),
            Failure::NotImplemented(_) => (Code::Unimplemented, ErrorReason::NotImplemented),
            Failure::NoDatabase => (Code::FailedPrecondition, ErrorReason::NoDatabase),
            Failure::DatabaseUnavailable(_) => (Code::Unavailable, ErrorReason::DatabaseUnavailable),
            Failure::Internal(_) => (Code::Internal, ErrorReason::Internal),
        }
    }

    /// What the caller's code and a metric's label call it.
    pub fn outcome(&self) -> &'static str {
        match self {
            Failure::Overloaded(_) => "OVERLOADED",
            _ => reason_name(self.kind().1),
        }
    }

    /// How long to wait before trying again, before jitter; `None` where trying again is not the cure.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Overloaded(_) => Some(Duration::from_millis(100)),
            Failure::NotSent(_) | Failure::DatabaseUnavailable(_) => Some(Duration::from_secs(1)),
            Failure::OutcomeUnknown { .. }
            | Failure::Invalid(_)
            | Failure::TooLarge(_)
            | Failure::DeadlineTooShort { .. }
            | Failure::NotImplemented(_)
            | Failure::NoDatabase
            | Failure::Internal(_) => None,
        }
    }

    fn message(&self) -> String {
        match self {
            Failure::NotSent(text)
            | Failure::Overloaded(text)
            | Failure::TooLarge(text)
            | Failure::DatabaseUnavailable(text)
            | Failure::Internal(text) => short(text).to_owned(),
            Failure::OutcomeUnknown { .. } => {
                "no answer from Kafka in time: the message may have been sent; send it again with the same client_msg_id"
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
                format!("the deadline leaves no time for a true answer: allow more than {} ms", shortest.as_millis())
            }
            Failure::NotImplemented(text) => (*text).to_owned(),
            Failure::NoDatabase => "this gateway was started without a database, and reads need one".to_owned(),
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        let (code, reason) = failure.kind();
        let mut details = ErrorDetails::new();
        let mut trailers = MetadataMap::new();
        let mut metadata = HashMap::new();
        if let Failure::OutcomeUnknown { msg_id, settles_by } = &failure {
            metadata.insert("msg_id".to_owned(), msg_id.to_string());
            metadata.insert("settles_by".to_owned(), prost_types::Timestamp::from(*settles_by).to_string());
        }
        if let Failure::Invalid(violations) = &failure {
            details.set_bad_request(fields(violations));
        }
        if let Some(delay) = failure.retry_after() {
            // From half to one and a half of it, so that those refused together do not come back together.
            let delay = delay.mul_f64(rand::rng().random_range(0.5..1.5));
            details.set_retry_info(Some(delay));
            let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            trailers.insert(PUSHBACK_TRAILER, millis.into());
        }
        details.set_error_info(reason_name(reason), ERROR_DOMAIN, metadata);
        Status::with_error_details_and_metadata(code, failure.message(), details, trailers)
    }
}

/// A status without details (the transport's), with the reason that it lacks.
pub fn with_reason(code: Code, message: &str, reason: ErrorReason) -> Status {
    let details = ErrorDetails::with_error_info(reason_name(reason), ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(code, short(message), details)
}

/// A reason as ErrorInfo has it.
pub fn reason_name(reason: ErrorReason) -> &'static str {
    reason.as_str_name().trim_start_matches("ERROR_REASON_")
}

/// As many violations as fit, and how many there are besides.
fn fields(violations: &[Violation]) -> Vec<FieldViolation> {
    let mut told = Vec::new();
    let mut bytes = 0;
    for violation in violations {
        let (field, description) = (short(&violation.field), short(&violation.description));
        // Each has up to 8 bytes of tags and lengths.
        bytes += field.len() + description.len() + 8;
        if bytes > VIOLATIONS_BYTES {
            break;
        }
        told.push(FieldViolation::new(field, description));
    }
    let left = violations.len() - told.len();
    if left > 0 {
        told.push(FieldViolation::new("", format!("and {left} more")));
    }
    told
}

/// A text short enough that details stay below their limit: it comes twice, in the status and in its details.
fn short(text: &str) -> &str {
    const MOST: usize = 300;
    &text[..text.floor_char_boundary(MOST)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(field: &str) -> Violation {
        Violation { field: field.to_owned(), description: "must not be empty".to_owned() }
    }

    #[test]
    fn each_failure_has_its_code_reason_and_retry() {
        let unknown = Failure::OutcomeUnknown { msg_id: Uuid::nil(), settles_by: SystemTime::UNIX_EPOCH };
        for (failure, code, reason, retry) in [
            (Failure::NotSent("x".into()), Code::Unavailable, "NOT_SENT", true),
            (Failure::Overloaded("x".into()), Code::ResourceExhausted, "NOT_SENT", true),
            (unknown, Code::DeadlineExceeded, "OUTCOME_UNKNOWN", false),
            (Failure::Invalid(vec![violation("msg")]), Code::InvalidArgument, "INVALID_FIELDS", false),
            (Failure::TooLarge("x".into()), Code::InvalidArgument, "TOO_LARGE", false),
            (
                Failure::DeadlineTooShort { shortest: Duration::from_millis(20) },
                Code::DeadlineExceeded,
                "DEADLINE_TOO_SHORT",
                false,
            ),
            (Failure::NotImplemented("x"), Code::Unimplemented, "NOT_IMPLEMENTED", false),
            (Failure::NoDatabase, Code::FailedPrecondition, "NO_DATABASE", false),
            (Failure::DatabaseUnavailable("x".into()), Code::Unavailable, "DATABASE_UNAVAILABLE", true),
            (Failure::Internal("x".into()), Code::Internal, "INTERNAL", false),
        ] {
            let status = Status::from(failure.clone());
            assert_eq!(status.code(), code, "{failure:?}");
            assert!(!status.message().is_empty(), "{failure:?}");
            let details = status.get_error_details();
            let info = details.error_info().expect("every error has it");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "msg.v1"), "{failure:?}");
            assert_eq!(details.retry_info().is_some(), retry, "{failure:?}");
            assert_eq!(status.metadata().contains_key(PUSHBACK_TRAILER), retry, "{failure:?}");
            assert_eq!(details.bad_request().is_some(), matches!(failure, Failure::Invalid(_)), "{failure:?}");
        }
    }

    #[test]
    fn an_unknown_outcome_tells_the_id_and_when_it_settles() {
        let settles_by = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let status = Status::from(Failure::OutcomeUnknown { msg_id: Uuid::nil(), settles_by });
        let details = status.get_error_details();
        let metadata = &details.error_info().expect("every error has it").metadata;
        assert_eq!(metadata["msg_id"], "00000000-0000-0000-0000-000000000000");
        assert_eq!(metadata["settles_by"], "2023-11-14T22:13:20.250Z");
    }

    #[test]
    fn details_stay_below_4_kib() {
        for (count, length) in [(1, 100_000), (64, 300), (1000, 10), (1000, 1000), (100_000, 1)] {
            let violations = vec![violation(&"é".repeat(length)); count];
            let status = Status::from(Failure::Invalid(violations));
            assert!(status.details().len() < 4096, "{count} of {length}: {}", status.details().len());
            let details = status.get_error_details();
            let told = &details.bad_request().expect("it is one").field_violations;
            let last = told.last().expect("one at least");
            if told.len() <= count && count > 1 {
                assert_eq!(last.description, format!("and {} more", count - (told.len() - 1)));
            }
        }
        for failure in [Failure::NotSent("é".repeat(10_000)), Failure::Internal("\u{1F600}".repeat(10_000))] {
            assert!(Status::from(failure).details().len() < 4096);
        }
    }
}
