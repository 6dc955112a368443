//! Bisections: poison records, and batches that are too large.

use super::*;

#[test]
fn rejected_record_is_found_and_dead_lettered() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 2)]);
    let mut request = lane.until(request, is_insert);
    let is_rejected =
        |request: &Request| matches!(request, Request::Insert(rows) if rows.iter().any(|row| row.entry == 0));
    let is_approval = |request: &Request| matches!(request, Request::ApproveDeadLetters(_));
    while !is_approval(&request) {
        request =
            if is_rejected(&request) { lane.on(failed(ErrorClass::Permanent)) } else { lane.until(request, |_| false) };
        request = lane.until(request, |request| is_rejected(request) || is_approval(request));
    }
    let Request::ApproveDeadLetters(dead) = &request else { panic!("{request:?}") };
    assert_eq!(dead[0].offset, RecordOffset(0));
    let insert = lane.until(request, is_insert);
    assert_eq!(insert, numbered(&[(1, 1)]), "the other one gets its seq");
    let dead = lane.until(insert, |request| matches!(request, Request::InsertDeadLetters(_)));
    let done = lane.until(dead, is_done);
    assert_eq!(
        done,
        Request::Done(Outcome { stored: 1, duplicates: 0, dead_letters: vec![Reason::RejectedByDatabase] })
    );
}

#[test]
fn no_record_is_dead_lettered_when_all_are_rejected() {
    let mut lane = Lane::new(false);
    let mut request = lane.begin(vec![Msg("a", 1), Msg("a", 2)]);
    loop {
        request = lane.until(request, |request| {
            matches!(
                request,
                Request::Insert(_) | Request::Canary(_) | Request::Wait(_) | Request::ApproveDeadLetters(_)
            )
        });
        if matches!(request, Request::Wait(_) | Request::ApproveDeadLetters(_)) {
            break;
        }
        request = lane.on(failed(ErrorClass::Permanent));
    }
    assert!(matches!(
        request,
        Request::Wait(BatchError { error: ClassifiedError { class: ErrorClass::Fatal, .. }, .. })
    ));
}

#[test]
fn batch_that_is_too_slow_is_stored_in_parts() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("b", 2), Msg("a", 3), Msg("a", 4)]);
    lane.until(request, is_insert);
    let request = lane.on(failed(ErrorClass::Heavy));
    // The bisection with short timeouts finds no blocked inbox.
    assert_eq!(lane.until(request, |request| *request == Request::BeginSearch), Request::BeginSearch);
    let request = lane.on(Response::Ok);
    let request = lane.until(request, |request| matches!(request, Request::Wait(_)));
    let first = lane.until(request, is_insert);
    assert_eq!(first, numbered(&[(0, 1), (1, 1)]));
    let commit = lane.until(first, |request| *request == Request::Commit);
    assert_eq!(commit, Request::Commit);
    let second = lane.on(Response::Ok);
    assert!(matches!(&lane.events[..], [Event::Completed(records)] if records.len() == 2));
    let second = lane.until(second, is_insert);
    assert_eq!(second, numbered(&[(0, 2), (1, 3)]), "in order");
    let done = lane.until(second, is_done);
    assert_eq!(done, Request::Done(Outcome { stored: 4, ..Outcome::default() }));
}

#[test]
fn slow_record_alone_is_dead_lettered_only_if_it_is_huge() {
    for (bytes, dead_lettered) in [(HUGE, true), (1, false)] {
        let mut lane = Lane::new(false);
        let record_ref = RecordRef { partition: 0, epoch: 1, offset: RecordOffset(0), bytes };
        let entry = Entry::new(lane.assignment.clone(), record_ref, Kind::Message, Msg("a", 1));
        let request = lane.machine.begin(vec![entry], &mut lane.events);
        lane.until(request, is_insert);
        let request = lane.on(failed(ErrorClass::Heavy));
        lane.until(request, is_insert);
        let request = lane.on(failed(ErrorClass::Heavy));
        // Its inbox accepts a small one, and it is rejected once more.
        lane.until(request, is_insert);
        let request = lane.on(failed(ErrorClass::Heavy));
        let ended = lane.until(request, |request| matches!(request, Request::ApproveDeadLetters(_) | Request::Done(_)));
        assert_eq!(matches!(ended, Request::ApproveDeadLetters(_)), dead_lettered);
        assert_eq!(
            lane.machine.blocked().count(),
            usize::from(!dead_lettered),
            "the inbox of the small one is blocked"
        );
    }
}

/// A rule is newer than the row: the message is stored, and its duplicate is rejected.
#[test]
fn rejected_duplicate_is_not_dead_lettered() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 2)]);
    lane.until(request, is_insert);
    assert_eq!(lane.on(failed(ErrorClass::Permanent)), Request::Rollback);
    assert_eq!(lane.on(Response::Ok), Request::FindStored(vec![0, 1]));
    let request = lane.on(Response::Found(vec![(0, true)]));
    let insert = lane.until(request, is_insert);
    assert_eq!(insert, numbered(&[(1, 1)]));
    let done = lane.until(insert, is_done);
    assert_eq!(done, Request::Done(Outcome { stored: 1, duplicates: 1, dead_letters: Vec::new() }));
}
