//! Owns the meaning of the gateway's responses for a message, as docs/errors.md describes it.

use std::collections::HashMap;
use std::time::Duration;

use msg_common::proto::send_result::Result as EntryResult;
use msg_common::proto::{ERROR_DOMAIN, Placement, SendResult};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, RpcStatusExt, StatusExt};

use crate::history::Outcome;

/// The outcome of a message, and how long to wait before a retry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MsgResult {
    pub(crate) outcome: Outcome,
    pub(crate) delay: Duration,
}

impl MsgResult {
    /// Returns an unknown outcome without a response, and the reason.
    pub(crate) fn unknown(why: &str) -> MsgResult {
        MsgResult { outcome: Outcome::Unknown(why.to_owned()), delay: Duration::ZERO }
    }

    pub(crate) fn is_accepted(&self) -> bool {
        self.outcome.position().is_some()
    }
}

/// Reads a result of an entry of a batch or a stream.
pub(crate) fn of_result(result: SendResult) -> MsgResult {
    match result.result {
        Some(EntryResult::Placement(placement)) => of_placement(&placement),
        Some(EntryResult::Error(status)) => {
            let (code, message, details) = (status.code, status.message, status.details);
            let details = tonic_types::Status { code, message, details }.get_error_details();
            of_details(&details, Code::from(code))
        }
        None => MsgResult::unknown("no result"),
    }
}

/// Reads an error, which applies to every message of its call; on a stream, to those without a result.
pub(crate) fn of_status(status: &Status) -> MsgResult {
    of_details(&status.get_error_details(), status.code())
}

/// Returns the reason of an error, or its code if the gateway did not make the error.
pub(crate) fn reason(status: &Status) -> String {
    ours(&status.get_error_details()).map_or_else(|| format!("{:?}", status.code()), |(reason, _)| reason.to_owned())
}

/// Returns how long an error requests to wait.
pub(crate) fn delay(status: &Status) -> Duration {
    delay_of(&status.get_error_details())
}

fn of_placement(placement: &Placement) -> MsgResult {
    let (partition, offset) = (placement.partition, placement.offset.unwrap_or(-1));
    let outcome = match &placement.stored {
        Some(stored) => Outcome::Stored { partition, offset, seq: stored.seq, duplicate: stored.duplicate },
        None => Outcome::Ok(partition, offset),
    };
    MsgResult { outcome, delay: Duration::ZERO }
}

fn of_details(details: &ErrorDetails, code: Code) -> MsgResult {
    let outcome = match ours(details) {
        // The gateway did not make this error.
        None => Outcome::Unknown(format!("{code:?}")),
        Some(("OUTCOME_UNKNOWN", _)) => Outcome::Unknown("OUTCOME_UNKNOWN".to_owned()),
        Some(("NOT_STORED_YET", metadata)) => {
            Outcome::NotStoredYet(number(metadata, "partition"), number(metadata, "offset"))
        }
        Some(("DEAD_LETTERED", metadata)) => {
            let why = metadata.get("dead_letter_reason").cloned().unwrap_or_default();
            Outcome::DeadLettered(number(metadata, "partition"), number(metadata, "offset"), why)
        }
        Some((reason, _)) => Outcome::NotSent(reason.to_owned()),
    };
    MsgResult { outcome, delay: delay_of(details) }
}

fn ours(details: &ErrorDetails) -> Option<(&str, &HashMap<String, String>)> {
    let info = details.error_info().filter(|info| info.domain == ERROR_DOMAIN)?;
    Some((&info.reason, &info.metadata))
}

fn delay_of(details: &ErrorDetails) -> Duration {
    details.retry_info().and_then(|info| info.retry_delay).unwrap_or_default()
}

/// Reads a number from an error's metadata. A missing number is -1: no record has this offset, so the checker reports
/// it.
fn number<T: std::str::FromStr + From<i8>>(metadata: &HashMap<String, String>, name: &str) -> T {
    metadata.get(name).and_then(|value| value.parse().ok()).unwrap_or_else(|| T::from(-1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use msg_common::proto::StoredPlacement;

    fn error(reason: &str, domain: &str, metadata: &[(&str, &str)], delay: Option<Duration>) -> Status {
        let metadata = metadata.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let mut details = ErrorDetails::with_error_info(reason, domain, metadata.collect::<HashMap<_, _>>());
        details.set_retry_info(delay);
        Status::with_error_details(Code::Unavailable, "no", details)
    }

    #[test]
    fn error_reason_gives_the_outcome_of_the_message() {
        let position = [("partition", "3"), ("offset", "17"), ("dead_letter_reason", "INVALID")];
        let of = |reason| of_status(&error(reason, ERROR_DOMAIN, &position, None)).outcome;
        let text = |reason: &str| reason.to_owned();
        assert_eq!(of("OUTCOME_UNKNOWN"), Outcome::Unknown(text("OUTCOME_UNKNOWN")));
        assert_eq!(of("NOT_STORED_YET"), Outcome::NotStoredYet(3, 17));
        assert_eq!(of("DEAD_LETTERED"), Outcome::DeadLettered(3, 17, text("INVALID")));
        for reason in ["NOT_SENT", "PREDECESSOR_FAILED", "STREAM_ENDED", "DEADLINE_TOO_SHORT", "TOO_LARGE"] {
            assert_eq!(of(reason), Outcome::NotSent(text(reason)));
        }
        let nowhere = of_status(&error("NOT_STORED_YET", ERROR_DOMAIN, &[], None));
        assert_eq!(nowhere.outcome, Outcome::NotStoredYet(-1, -1));
        // Another domain with the same reason is not trusted.
        let others = error("NOT_SENT", "example.com", &[], None);
        assert_eq!(of_status(&others).outcome, Outcome::Unknown(text("Unavailable")));
        assert_eq!(of_status(&Status::cancelled("client disconnected")).outcome, Outcome::Unknown(text("Cancelled")));
        assert_eq!(reason(&others), "Unavailable");
        assert_eq!(reason(&error("NO_DATABASE", ERROR_DOMAIN, &[], None)), "NO_DATABASE");
    }

    #[test]
    fn error_gives_the_delay_before_a_retry() {
        let requested = Duration::from_millis(700);
        assert_eq!(of_status(&error("NOT_SENT", ERROR_DOMAIN, &[], Some(requested))).delay, requested);
        assert_eq!(delay(&error("NOT_SENT", ERROR_DOMAIN, &[], None)), Duration::ZERO);
    }

    #[test]
    fn result_is_a_placement_or_an_error_with_the_same_details() {
        let result = |result| of_result(SendResult { result }).outcome;
        let accepted = Placement { partition: 2, offset: Some(9), ..Placement::default() };
        assert_eq!(result(Some(EntryResult::Placement(accepted.clone()))), Outcome::Ok(2, 9));
        let row = StoredPlacement { seq: 4, duplicate: true, ..StoredPlacement::default() };
        let stored = Placement { stored: Some(row), ..accepted };
        let expected = Outcome::Stored { partition: 2, offset: 9, seq: 4, duplicate: true };
        assert_eq!(result(Some(EntryResult::Placement(stored))), expected);
        // An ErrorInfo: the reason and the domain.
        let info = [b"\x0a\x12PREDECESSOR_FAILED\x12\x06".as_slice(), ERROR_DOMAIN.as_bytes()].concat();
        let mut status = msg_common::proto::google::rpc::Status { code: 10, ..Default::default() };
        status.details = vec![Default::default()];
        status.details[0].type_url = "type.googleapis.com/google.rpc.ErrorInfo".to_owned();
        status.details[0].value = info;
        assert_eq!(result(Some(EntryResult::Error(status))), Outcome::NotSent("PREDECESSOR_FAILED".to_owned()));
        assert_eq!(result(None), Outcome::Unknown("no result".to_owned()));
    }
}
