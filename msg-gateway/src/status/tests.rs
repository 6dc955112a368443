//! Each failure against the contract and the page about errors.

use super::*;

fn violation(field: &str) -> Violation {
    Violation { field: field.to_owned(), description: "must not be empty".to_owned() }
}

fn each() -> Vec<(Failure, Code, &'static str, bool)> {
    let dead = |reason| Failure::DeadLettered(Box::default(), reason);
    let unknown = Failure::OutcomeUnknown { msg_id: Uuid::nil(), settles_by: SystemTime::UNIX_EPOCH };
    let retry_after = Duration::from_secs(7);
    let used_up = Failure::QuotaExceeded { quota: Quota::SenderMsgs, retry_after, text: "x".into() };
    vec![
        (Failure::NotSent("x".into()), Code::Unavailable, "NOT_SENT", true),
        (Failure::Overloaded("x".into()), Code::ResourceExhausted, "NOT_SENT", true),
        (used_up, Code::ResourceExhausted, "NOT_SENT", true),
        (unknown, Code::DeadlineExceeded, "OUTCOME_UNKNOWN", false),
        (Failure::Invalid(vec![violation("msg")]), Code::InvalidArgument, "INVALID_FIELDS", false),
        (Failure::TooLarge("x".into()), Code::InvalidArgument, "TOO_LARGE", false),
        (Failure::Unauthenticated("x"), Code::Unauthenticated, "UNAUTHENTICATED", false),
        (Failure::PermissionDenied("x".into()), Code::PermissionDenied, "PERMISSION_DENIED", false),
        (
            Failure::DeadlineTooShort { shortest: Duration::from_millis(20) },
            Code::DeadlineExceeded,
            "DEADLINE_TOO_SHORT",
            false,
        ),
        (Failure::PredecessorFailed, Code::Aborted, "PREDECESSOR_FAILED", false),
        (Failure::NotStoredYet(Box::default()), Code::DeadlineExceeded, "NOT_STORED_YET", false),
        (dead(DeadLetterReason::IdempotencyConflict), Code::AlreadyExists, "DEAD_LETTERED", false),
        (dead(DeadLetterReason::RejectedByDatabase), Code::FailedPrecondition, "DEAD_LETTERED", false),
        (Failure::StreamEnded, Code::Unavailable, "STREAM_ENDED", true),
        (Failure::StreamDeadline, Code::DeadlineExceeded, "STREAM_ENDED", false),
        (Failure::SlowReader, Code::ResourceExhausted, "SLOW_READER", false),
        (Failure::KafkaUnavailable("x".into()), Code::Unavailable, "KAFKA_UNAVAILABLE", true),
        (Failure::NoDatabase, Code::FailedPrecondition, "NO_DATABASE", false),
        (Failure::DatabaseUnavailable("x".into()), Code::Unavailable, "DATABASE_UNAVAILABLE", true),
        (Failure::Internal("x".into()), Code::Internal, "INTERNAL", false),
    ]
}

#[test]
fn each_failure_has_its_code_reason_and_retry() {
    for (failure, code, reason, retry) in each() {
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

/// The page has a section for each reason and no other, and its tables name each reason with its codes and what to
/// do.
#[test]
fn page_about_errors_is_complete() {
    let page = include_str!("../../../docs/errors.md");
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| [`")).collect();
    let reasons = (1..).map_while(|number| ErrorReason::try_from(number).ok()).map(reason_name);
    let reasons: Vec<&str> = reasons.collect();
    assert!(reasons.len() >= 18, "{reasons:?}");
    for reason in &reasons {
        assert!(sections.contains(reason), "{reason} has no section");
        let link = format!("| [`{reason}`](#{}) |", reason.to_lowercase());
        assert!(rows.iter().any(|row| row.starts_with(&link)), "{reason} is in no table");
    }
    let strange: Vec<_> = sections.iter().filter(|section| !reasons.contains(section)).collect();
    assert!(strange.is_empty(), "{strange:?} are no reasons");
    for (failure, ..) in each() {
        let (code, reason) = failure.kind();
        let name = format!("{code:?}").chars().fold(String::new(), |name, c| {
            let gap = if c.is_uppercase() && !name.is_empty() { "_" } else { "" };
            name + gap + &c.to_uppercase().to_string()
        });
        let row = |row: &&&str| row.contains(&format!("[`{}`]", reason_name(reason)));
        let listed =
            rows.iter().filter(row).any(|row| row.split('|').nth(2).is_some_and(|codes| codes.contains(&name)));
        assert!(listed, "{failure:?} is {name}, which its row does not say");
        let repeat = rows.iter().filter(row).any(|row| row.contains("after the delay") || row.contains("new stream"));
        assert!(repeat || failure.retry_after().is_none(), "{failure:?} has a delay, and the page does not say so");
    }
}

#[test]
fn unknown_outcome_has_the_id_and_settles_by() {
    let settles_by = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
    let status = Status::from(Failure::OutcomeUnknown { msg_id: Uuid::nil(), settles_by });
    let details = status.get_error_details();
    let metadata = &details.error_info().expect("every error has it").metadata;
    assert_eq!(metadata["msg_id"], "00000000-0000-0000-0000-000000000000");
    assert_eq!(metadata["settles_by"], "2023-11-14T22:13:20.250Z");
}

/// A message above a quota is sent again after the delay, so no later one to its inbox may overtake it.
#[test]
fn failures_that_are_final_or_accepted_leave_no_gap() {
    let no_gap = ["INVALID_FIELDS", "TOO_LARGE", "PERMISSION_DENIED", "NOT_STORED_YET", "DEAD_LETTERED"];
    for (failure, _, reason, _) in each() {
        assert_eq!(failure.leaves_a_gap(), !no_gap.contains(&reason), "{failure:?}");
    }
}

#[test]
fn quota_is_named_with_the_time_until_it_has_enough() {
    let retry_after = Duration::from_secs(7);
    for quota in Quota::ALL {
        let status = Status::from(Failure::QuotaExceeded { quota, retry_after, text: "x".into() });
        let details = status.get_error_details();
        assert_eq!(details.error_info().expect("every error has it").metadata["quota"], quota.name());
        let delay = details.retry_info().and_then(|info| info.retry_delay).expect("it has a delay");
        assert!((retry_after..retry_after * 3 / 2).contains(&delay), "{delay:?}");
    }
}

#[test]
fn details_stay_below_4_kib() {
    for (count, length) in [(1, 100_000), (64, 300), (1000, 10), (1000, 1000), (100_000, 1)] {
        let violations = vec![violation(&"é".repeat(length)); count];
        let status = Status::from(Failure::Invalid(violations));
        assert!(status.details().len() < 4096, "{count} of {length}: {}", status.details().len());
        let details = status.get_error_details();
        let listed = &details.bad_request().expect("it is one").field_violations;
        let last = listed.last().expect("one at least");
        if listed.len() <= count && count > 1 {
            assert_eq!(last.description, format!("and {} more", count - (listed.len() - 1)));
        }
    }
    for failure in [Failure::NotSent("é".repeat(10_000)), Failure::Internal("\u{1F600}".repeat(10_000))] {
        assert!(Status::from(failure).details().len() < 4096);
    }
}

#[test]
fn error_of_an_entry_is_small_and_has_the_same_details() {
    let error = Failure::NotSent("Kafka is unavailable".into()).of_entry();
    assert_eq!((error.code, error.message.as_str()), (Code::Unavailable as i32, "Kafka is unavailable"));
    let names: Vec<_> = error.details.iter().map(|any| any.type_url.rsplit('.').next()).collect();
    assert_eq!(names, [Some("RetryInfo"), Some("ErrorInfo")]);
    for violations in [vec![violation(&"x".repeat(300)); 100], vec![violation("x"); 1000]] {
        let error = Failure::Invalid(violations).of_entry();
        assert!(error.encoded_len() < 4000, "{}", error.encoded_len());
    }
}
