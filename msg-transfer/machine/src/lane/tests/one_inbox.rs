//! Faults of one inbox or one dead letter, other than an error of the INSERT of a row: the lane continues with all others.

use super::*;

/// Carries out requests until the batch ends. `fault` responds first; otherwise the database accepts every row.
fn run(lane: &mut Lane, mut request: Request, fault: impl Fn(&Lane, &Request) -> Option<Response>) -> Outcome {
    for _ in 0..200 {
        let response = fault(lane, &request);
        request = match (response, request) {
            (_, Request::Done(outcome)) => return outcome,
            (Some(response), _) => lane.on(response),
            (None, request) => {
                let first = std::cell::Cell::new(true);
                lane.until(request, |_| !first.replace(false))
            }
        };
    }
    panic!("the batch does not end: {request:?}");
}

fn retry(lane: &mut Lane, fault: impl Fn(&Lane, &Request) -> Option<Response>) -> Outcome {
    let request = lane.machine.retry(&mut lane.events).expect("an inbox waits");
    run(lane, request, fault)
}

fn no_fault(_: &Lane, _: &Request) -> Option<Response> {
    None
}

fn failed_for(entries: impl IntoIterator<Item = usize>, class: ErrorClass) -> Response {
    let error = ClassifiedError { class, text: "no".into() };
    Response::FailedFor(entries.into_iter().map(|entry| (entry, error.clone())).collect())
}

fn blocked(lane: &Lane) -> Vec<(i64, usize, usize)> {
    lane.machine.blocked().map(|inbox| (inbox.offset.0, inbox.records, inbox.attempts)).collect()
}

fn has_inbox(lane: &Lane, rows: &[NumberedEntry], inbox: &str) -> bool {
    rows.iter().any(|row| lane.machine.entries()[row.entry].body.recv_id() == inbox)
}

/// A trigger discards the rows of inbox `a`.
fn discards(lane: &Lane, request: &Request) -> Option<Response> {
    let Request::Insert(rows) = request else { return None };
    let kept = |row: &&NumberedEntry| lane.machine.entries()[row.entry].body.recv_id() != "a";
    Some(Response::Count(rows.iter().filter(kept).count()))
}

#[test]
fn discarded_row_blocks_its_inbox_alone() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("b", 2), Msg("a", 3), Msg("c", 4)]);
    let outcome = run(&mut lane, request, discards);
    assert_eq!(outcome, Outcome { stored: 2, ..Outcome::default() }, "nothing is dead-lettered");
    assert_eq!(lane.completed(), [1, 3]);
    assert_eq!(blocked(&lane), [(0, 2, 0)]);
    let error = lane.machine.blocked().next().expect("it is blocked").error;
    assert!(error.text.contains("trigger"), "{}", error.text);

    assert_eq!(retry(&mut lane, discards), Outcome::default());
    assert_eq!(blocked(&lane), [(0, 2, 1)]);
    assert_eq!(retry(&mut lane, no_fault), Outcome { stored: 2, ..Outcome::default() });
    assert_eq!(lane.completed(), [1, 3, 0, 2]);
}

#[test]
fn table_that_discards_all_rows_blocks_no_inbox() {
    let mut lane = Lane::new(false);
    let mut request = lane.begin(vec![Msg("a", 1), Msg("b", 2)]);
    let mut waits = Vec::new();
    while waits.len() < 2 {
        request = match request {
            Request::Insert(_) | Request::Canary(_) => lane.on(Response::Count(0)),
            Request::Wait(BatchError { error, .. }) => {
                waits.push(error.class);
                lane.on(Response::Ok)
            }
            request => {
                let first = std::cell::Cell::new(true);
                lane.until(request, |_| !first.replace(false))
            }
        };
    }
    assert_eq!(waits, [ErrorClass::Transient, ErrorClass::Fatal]);
    assert_eq!(blocked(&lane), []);
}

/// A policy hides the rows of inbox `a` from the lane.
#[test]
fn repeat_of_a_hidden_row_blocks_its_inbox_alone() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 1), Msg("b", 2), Msg("b", 2)]);
    let hides = |lane: &Lane, request: &Request| match request {
        Request::FindStored(entries) => {
            let visible = entries.iter().filter(|entry| lane.machine.entries()[**entry].body.recv_id() == "b");
            Some(Response::Found(visible.map(|entry| (*entry, true)).collect()))
        }
        _ => None,
    };
    let outcome = run(&mut lane, request, hides);
    assert_eq!(outcome, Outcome { stored: 2, duplicates: 1, ..Outcome::default() });
    assert_eq!(blocked(&lane), [(1, 1, 0)]);
}

/// Message 1 of inbox `a` is stored, and another message has its ID. The dead letter of that one cannot be inserted.
fn rejects_letters(class: ErrorClass) -> impl Fn(&Lane, &Request) -> Option<Response> {
    move |lane: &Lane, request: &Request| match request {
        Request::InsertDeadLetters(dead) => {
            Some(failed_for(dead.iter().map(|dead| dead.entry).filter(|entry| is_first(lane, *entry)), class))
        }
        _ => conflicts(lane, request),
    }
}

fn is_first(lane: &Lane, entry: usize) -> bool {
    lane.machine.entries()[entry].record_ref.offset.0 == 1
}

/// The record at offset 1 is a conflict, whether it is a repeat within its batch or tried alone.
fn conflicts(lane: &Lane, request: &Request) -> Option<Response> {
    match request {
        Request::Insert(rows) if rows.iter().any(|row| is_first(lane, row.entry)) => {
            Some(Response::Count(rows.len() - 1))
        }
        Request::FindStored(entries) => {
            let conflict = entries.iter().filter(|entry| is_first(lane, **entry));
            Some(Response::Found(conflict.map(|entry| (*entry, false)).collect()))
        }
        _ => None,
    }
}

#[test]
fn dead_letter_that_fails_blocks_its_inbox_alone() {
    use ErrorClass::{Conflict, Fatal, Heavy, Locked, Permanent};
    for class in [Fatal, Locked, Permanent, Conflict, Heavy] {
        let mut lane = Lane::new(false);
        let request = lane.begin(vec![Msg("a", 1), Msg("a", 1), Msg("b", 2), Msg("a", 3)]);
        let outcome = run(&mut lane, request, rejects_letters(class));
        assert_eq!(outcome, Outcome { stored: 2, ..Outcome::default() }, "{class:?}");
        assert_eq!(lane.completed(), [0, 2], "{class:?}");
        assert_eq!(blocked(&lane), [(1, 2, 0)], "{class:?}");

        assert_eq!(retry(&mut lane, rejects_letters(class)), Outcome::default());
        assert_eq!(blocked(&lane), [(1, 2, 1)], "{class:?}");
        let outcome = retry(&mut lane, conflicts);
        let dead_letters = vec![Reason::IdempotencyConflict];
        assert_eq!(outcome, Outcome { stored: 1, duplicates: 0, dead_letters });
        assert_eq!(lane.completed(), [0, 2, 1, 3], "{class:?}");
    }
}

#[test]
fn transient_error_of_a_dead_letter_is_retried_first() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 1), Msg("b", 2)]);
    let is_letters = |request: &Request| matches!(request, Request::InsertDeadLetters(_));
    let request = lane.until(request, |request| matches!(request, Request::FindStored(_)));
    assert_eq!(request, Request::FindStored(vec![1]));
    assert!(is_letters(&lane.on(Response::Found(vec![(1, false)]))));
    assert_eq!(lane.on(failed_for([1], ErrorClass::Transient)), Request::Disconnect);
    let request = lane.on(Response::Ok);
    assert!(matches!(request, Request::Wait(_)));
    let outcome = run(&mut lane, request, rejects_letters(ErrorClass::Transient));
    assert_eq!(outcome, Outcome { stored: 2, ..Outcome::default() });
    assert_eq!(blocked(&lane), [(1, 1, 0)]);
}

/// Records that hold no message have no inbox: each waits by itself.
#[test]
fn dead_letter_without_inbox_blocks_no_other_record() {
    let mut lane = Lane::new(false);
    let entry = |offset: i64, kind: Kind| {
        let record_ref = RecordRef { partition: 0, epoch: 1, offset: RecordOffset(offset), bytes: 1 };
        Entry::new(lane.assignment.clone(), record_ref, kind, Msg("a", u128::try_from(offset).expect("positive")))
    };
    let broken = || Kind::Broken(Reason::Undecodable, "no message".into());
    let entries = vec![entry(0, Kind::Message), entry(1, broken()), entry(2, broken()), entry(3, Kind::Message)];
    let request = lane.machine.begin(entries, &mut lane.events);
    let rejects = |lane: &Lane, request: &Request| match request {
        Request::InsertDeadLetters(dead) if dead.iter().any(|dead| is_first(lane, dead.entry)) => {
            let failed = dead.iter().map(|dead| dead.entry).filter(|entry| is_first(lane, *entry));
            Some(failed_for(failed, ErrorClass::Fatal))
        }
        _ => None,
    };
    let outcome = run(&mut lane, request, rejects);
    assert_eq!(outcome, Outcome { stored: 2, duplicates: 0, dead_letters: vec![Reason::Undecodable] });
    assert_eq!(lane.completed(), [0, 2, 3]);
    assert_eq!(blocked(&lane), [(1, 1, 0)]);

    assert_eq!(retry(&mut lane, rejects), Outcome::default());
    assert_eq!(blocked(&lane), [(1, 1, 1)]);
    assert_eq!(retry(&mut lane, no_fault).dead_letters, [Reason::Undecodable]);
    assert_eq!(lane.completed(), [0, 2, 3, 1]);
}

/// Dead letters say nothing about `messages`, so the limit of blocked inboxes does not apply: a caller could reach it.
#[test]
fn many_dead_letters_that_fail_do_not_stop_the_lane() {
    let mut lane = Lane::new(false);
    let assignment = lane.assignment.clone();
    let entry = |offset: i64| {
        let record_ref = RecordRef { partition: 0, epoch: 1, offset: RecordOffset(offset), bytes: 1 };
        let kind = Kind::Broken(Reason::Undecodable, "no message".into());
        Entry::new(assignment.clone(), record_ref, kind, Msg("a", 0))
    };
    for first in [0, 150] {
        let request = lane.machine.begin((first..first + 150).map(entry).collect(), &mut lane.events);
        let rejects = |_: &Lane, request: &Request| match request {
            Request::InsertDeadLetters(dead) => Some(failed_for(dead.iter().map(|dead| dead.entry), ErrorClass::Fatal)),
            _ => None,
        };
        assert_eq!(run(&mut lane, request, rejects), Outcome::default());
    }
    assert_eq!(lane.machine.blocked().count(), 300);
}

#[test]
fn error_at_commit_blocks_its_inbox_alone() {
    let in_bisection = std::cell::Cell::new(false);
    let rejects = |lane: &Lane, request: &Request| match request {
        Request::BeginBisection | Request::Begin | Request::BeginRetry => {
            in_bisection.set(*request == Request::BeginBisection);
            None
        }
        Request::Commit if has_inbox(lane, lane.machine.numbered(), "a") => Some(failed(ErrorClass::Fatal)),
        Request::Insert(rows) if in_bisection.get() && has_inbox(lane, rows, "a") => Some(failed(ErrorClass::Fatal)),
        _ => None,
    };
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("b", 2), Msg("a", 3)]);
    let outcome = run(&mut lane, request, rejects);
    assert_eq!(outcome, Outcome { stored: 1, ..Outcome::default() });
    assert_eq!(blocked(&lane), [(0, 2, 0)]);

    let request = lane.machine.retry(&mut lane.events).expect("it waits");
    let commit = lane.until(request, |request| *request == Request::Commit);
    assert_eq!(commit, Request::Commit);
    assert_eq!(lane.on(failed(ErrorClass::Fatal)), Request::Rollback, "the connection is kept");
    assert_eq!(lane.on(Response::Ok), Request::Done(Outcome::default()));
    assert_eq!(blocked(&lane), [(0, 2, 1)]);
    assert_eq!(retry(&mut lane, no_fault), Outcome { stored: 2, ..Outcome::default() });
    assert_eq!(lane.completed(), [1, 0, 2]);
}

/// The COMMIT had succeeded in spite of its error: the bisection finds the rows before it tries any.
#[test]
fn rows_committed_despite_an_error_are_not_blocked() {
    let mut lane = Lane::new(false);
    let mut request = lane.begin(vec![Msg("a", 1), Msg("b", 2)]);
    for expected in [Request::Disconnect, Request::Rollback] {
        lane.until(request, |request| *request == Request::Commit);
        request = lane.on(failed(ErrorClass::Fatal));
        assert_eq!(request, expected);
    }
    assert_eq!(lane.on(Response::Ok), Request::FindStored(vec![0, 1]));
    let request = lane.on(Response::Found(vec![(0, true), (1, true)]));
    let outcome = run(&mut lane, request, no_fault);
    assert_eq!(outcome, Outcome { duplicates: 2, ..Outcome::default() });
    assert_eq!(blocked(&lane), []);
}

/// A page of the unique index is damaged: neither an INSERT nor a lookup can read it.
#[test]
fn inbox_that_cannot_be_looked_up_is_blocked_alone() {
    let damaged = |lane: &Lane, request: &Request| match request {
        Request::Insert(rows) if has_inbox(lane, rows, "a") => Some(failed(ErrorClass::Fatal)),
        Request::FindStored(entries) => {
            let is_bad = |entry: &usize| lane.machine.entries()[*entry].body.recv_id() == "a";
            entries.iter().any(is_bad).then(|| failed(ErrorClass::Fatal))
        }
        _ => None,
    };
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("b", 1), Msg("a", 2), Msg("b", 3), Msg("a", 4)]);
    let outcome = run(&mut lane, request, damaged);
    assert_eq!(outcome, Outcome { stored: 2, ..Outcome::default() });
    assert_eq!(blocked(&lane), [(1, 2, 0)]);
    assert_eq!(retry(&mut lane, damaged), Outcome::default());
    assert_eq!(retry(&mut lane, no_fault), Outcome { stored: 2, ..Outcome::default() });
}

#[test]
fn inbox_whose_last_seq_is_unreadable_is_blocked_alone() {
    let unreadable = |lane: &Lane, request: &Request| match request {
        Request::LastSeqs(entries) => {
            let is_bad = |entry: &usize| lane.machine.entries()[*entry].body.recv_id() == "a";
            let failed: Vec<usize> = entries.iter().copied().filter(is_bad).collect();
            (!failed.is_empty()).then(|| failed_for(failed, ErrorClass::Fatal))
        }
        _ => None,
    };
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("b", 1), Msg("a", 2), Msg("b", 3), Msg("a", 4)]);
    let outcome = run(&mut lane, request, unreadable);
    assert_eq!(outcome, Outcome { stored: 2, ..Outcome::default() });
    assert_eq!(blocked(&lane), [(1, 2, 0)]);
    assert_eq!(retry(&mut lane, unreadable), Outcome::default());
    assert_eq!(blocked(&lane), [(1, 2, 1)]);
    assert_eq!(retry(&mut lane, no_fault), Outcome { stored: 2, ..Outcome::default() });
    assert_eq!(lane.completed(), [0, 2, 1, 3]);
}
