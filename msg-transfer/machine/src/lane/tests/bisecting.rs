//! Bisections: poison records, and batches that are too large.

use super::*;

#[test]
fn rejected_record_is_found_and_dead_lettered() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 2)]);
    let mut request = lane.until(request, is_insert);
    let refused = |request: &Request| matches!(request, Request::Insert(rows) if rows.iter().any(|row| row.entry == 0));
    let is_approval = |request: &Request| matches!(request, Request::ApproveDeadLetters(_));
    while !is_approval(&request) {
        request = if refused(&request) { lane.on(failed(Class::Permanent)) } else { lane.until(request, |_| false) };
        request = lane.until(request, |request| refused(request) || is_approval(request));
    }
    let Request::ApproveDeadLetters(asked) = &request else { unreachable!() };
    assert_eq!(asked[0].offset, RecordOffset(0));
    let insert = lane.until(request, is_insert);
    assert_eq!(insert, numbered(&[(1, 1)]), "the other one takes its place");
    let dead = lane.until(insert, |request| matches!(request, Request::InsertDeadLetters(_)));
    let done = lane.until(dead, is_done);
    assert_eq!(
        done,
        Request::Done(Outcome { stored: 1, duplicates: 0, dead_letters: vec![Reason::RejectedByDatabase] })
    );
}

#[test]
fn when_every_record_is_refused_none_is_kept_aside() {
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
        request = lane.on(failed(Class::Permanent));
    }
    assert!(matches!(request, Request::Wait(BatchFailure { failure: Failure { class: Class::Fatal, .. }, .. })));
}

#[test]
fn what_the_server_has_no_time_for_is_stored_in_parts() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("b", 2), Msg("a", 3), Msg("a", 4)]);
    lane.until(request, is_insert);
    let request = lane.on(failed(Class::Heavy));
    // Looked for with short time-outs first: no inbox is to blame.
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
fn a_record_alone_that_the_server_has_no_time_for_is_to_blame_if_it_is_huge() {
    for (bytes, kept_aside) in [(HUGE, true), (1, false)] {
        let mut lane = Lane::new(false);
        let record_ref = RecordRef { partition: 0, epoch: 1, offset: RecordOffset(0), bytes };
        let entry = Entry::new(lane.assignment.clone(), record_ref, Kind::Message, Msg("a", 1));
        let request = lane.machine.begin(vec![entry], &mut lane.events);
        lane.until(request, is_insert);
        let request = lane.on(failed(Class::Heavy));
        lane.until(request, is_insert);
        let request = lane.on(failed(Class::Heavy));
        // Its inbox takes a small one, and it is refused once more.
        lane.until(request, is_insert);
        let request = lane.on(failed(Class::Heavy));
        let ended = lane.until(request, |request| matches!(request, Request::ApproveDeadLetters(_) | Request::Done(_)));
        assert_eq!(matches!(ended, Request::ApproveDeadLetters(_)), kept_aside);
        assert_eq!(lane.machine.blocked().count(), usize::from(!kept_aside), "the small one waits by itself");
    }
}

/// A rule that is newer than the row: the message was stored before, and comes again.
#[test]
fn what_is_stored_is_not_to_blame_when_it_is_refused() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 2)]);
    lane.until(request, is_insert);
    assert_eq!(lane.on(failed(Class::Permanent)), Request::Rollback);
    assert_eq!(lane.on(Response::Ok), Request::FindStored(vec![0, 1]));
    let request = lane.on(Response::Found(vec![(0, true)]));
    let insert = lane.until(request, is_insert);
    assert_eq!(insert, numbered(&[(1, 1)]));
    let done = lane.until(insert, is_done);
    assert_eq!(done, Request::Done(Outcome { stored: 1, duplicates: 1, dead_letters: Vec::new() }));
}
