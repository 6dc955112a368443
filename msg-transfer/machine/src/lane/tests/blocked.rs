//! Blocked inboxes and their retries.

use super::*;

/// Responds like a database in which inbox `a` rejects messages from this ID on.
fn blocked_from(lane: &mut Lane, mut request: Request, id: u128, class: ErrorClass) -> Outcome {
    loop {
        let is_blocked = |lane: &Lane, rows: &[NumberedEntry]| {
            rows.iter().any(|row| {
                let body = &lane.machine.entries()[row.entry].body;
                body.recv_id() == "a" && body.1 >= id
            })
        };
        request = match &request {
            Request::Done(outcome) => return outcome.clone(),
            Request::Insert(rows) if is_blocked(lane, rows) => lane.on(failed(class)),
            _ => {
                let first = std::cell::Cell::new(true);
                lane.until(request, |_| !first.replace(false))
            }
        };
    }
}

#[test]
fn blocked_inbox_waits_and_its_lane_continues() {
    for class in [ErrorClass::Conflict, ErrorClass::Locked, ErrorClass::Heavy, ErrorClass::Fatal, ErrorClass::Transient]
    {
        let mut lane = Lane::new(false);
        let msgs = vec![Msg("a", 1), Msg("b", 2), Msg("a", 3), Msg("c", 4), Msg("a", 5), Msg("b", 6)];
        let request = lane.begin(msgs);
        let outcome = blocked_from(&mut lane, request, 3, class);
        assert_eq!(outcome, Outcome { stored: 4, ..Outcome::default() }, "{class:?}");
        let blocked: Vec<_> = lane.machine.blocked().collect();
        assert_eq!((blocked.len(), blocked[0].offset, blocked[0].records), (1, RecordOffset(2), 2));
        assert_eq!(blocked[0].error.class, class);
        assert!(lane.events.iter().any(|event| matches!(event, Event::Blocked(records) if records.len() == 2)));

        // Later records of the inbox wait too, and others do not.
        let request = lane.begin_at(6, vec![Msg("a", 7), Msg("d", 8)]);
        let outcome = blocked_from(&mut lane, request, 3, class);
        assert_eq!(outcome, Outcome { stored: 1, ..Outcome::default() });

        // Still blocked: it waits again, and only its first record was tried.
        let request = lane.machine.retry(&mut lane.events).expect("it waits");
        let outcome = blocked_from(&mut lane, request, 3, class);
        assert_eq!(outcome, Outcome::default());
        assert_eq!(lane.machine.blocked().next().map(|blocked| (blocked.records, blocked.attempts)), Some((3, 1)));

        // Not blocked any more: all its records are stored, in order.
        lane.events.clear();
        let request = lane.machine.retry(&mut lane.events).expect("it waits");
        let outcome = blocked_from(&mut lane, request, u128::MAX, class);
        assert_eq!(outcome, Outcome { stored: 3, ..Outcome::default() });
        assert_eq!(lane.machine.blocked().count(), 0);
        let completed = lane.events.iter().filter_map(|event| match event {
            Event::Completed(records) => Some(records.iter().map(|record_ref| record_ref.offset.0)),
            _ => None,
        });
        assert_eq!(completed.flatten().collect::<Vec<_>>(), [2, 4, 6]);
        assert!(matches!(lane.events[0], Event::Unblocked(_)));
        assert_eq!(lane.machine.retry(&mut lane.events), None);
    }
}

#[test]
fn locked_table_blocks_no_inbox() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("b", 2)]);
    lane.until(request, is_insert);
    let request = lane.on(failed(ErrorClass::Locked));
    assert_eq!(lane.until(request, |request| *request == Request::BeginSearch), Request::BeginSearch);
    assert_eq!(lane.on(failed(ErrorClass::Locked)), Request::Disconnect);
    assert!(matches!(
        lane.on(Response::Ok),
        Request::Wait(BatchError { error: ClassifiedError { class: ErrorClass::Locked, .. }, .. })
    ));
    assert_eq!(lane.machine.blocked().count(), 0);
}

#[test]
fn fenced_record_of_blocked_inbox_is_dropped() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    blocked_from(&mut lane, request, 1, ErrorClass::Locked);
    lane.events.clear();
    lane.machine.sweep(&mut lane.events);
    assert!(lane.events.is_empty());
    lane.assignment.fence();
    lane.machine.sweep(&mut lane.events);
    assert!(matches!(&lane.events[..], [Event::Unblocked(_), Event::Dropped(records)] if records.len() == 1));
    assert_eq!(lane.machine.retry(&mut lane.events), None);
}

#[test]
fn lost_connection_keeps_error_of_blocked_inbox() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    blocked_from(&mut lane, request, 1, ErrorClass::Locked);
    let request = lane.machine.retry(&mut lane.events).expect("it waits");
    lane.until(request, is_insert);
    assert_eq!(lane.on(failed(ErrorClass::Lost)), Request::Disconnect);
    assert_eq!(lane.on(Response::Ok), Request::Done(Outcome::default()));
    assert_eq!(lane.machine.blocked().next().map(|blocked| blocked.error.class), Some(ErrorClass::Locked));
}

/// The last message is blocked first, and then the batch is halved: the rest of it has to wait in front.
#[test]
fn rest_of_halved_batch_waits_before_later_blocked_records() {
    let mut lane = Lane::new(false);
    let mut request = lane.begin(vec![Msg("a", 1), Msg("a", 2), Msg("a", 3)]);
    let outcome = loop {
        let is_found = lane.machine.blocked().count() > 0;
        request = match &request {
            Request::Done(outcome) => break outcome.clone(),
            Request::Insert(rows) if rows.iter().any(|row| lane.machine.entries()[row.entry].body.1 == 3) => {
                lane.on(failed(ErrorClass::Locked))
            }
            Request::Insert(rows) if is_found && rows.len() > 1 => lane.on(failed(ErrorClass::Heavy)),
            _ => {
                let first = std::cell::Cell::new(true);
                lane.until(request, |_| !first.replace(false))
            }
        };
    };
    assert_eq!(outcome.stored, 1);
    assert_eq!(lane.machine.blocked().map(|inbox| inbox.records).collect::<Vec<_>>(), [2]);
    let request = lane.machine.retry(&mut lane.events).expect("it waits");
    blocked_from(&mut lane, request, u128::MAX, ErrorClass::Locked);
    assert_eq!(lane.completed(), [0, 1, 2]);
}

/// First its second message alone is blocked, and then the whole inbox.
#[test]
fn message_blocked_later_waits_before_later_messages() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 2), Msg("a", 3)]);
    let mut from = 2;
    let mut request = lane.until(request, is_insert);
    let outcome = loop {
        request = match &request {
            Request::Done(outcome) => break outcome.clone(),
            Request::Insert(rows) if rows.iter().any(|row| lane.machine.entries()[row.entry].body.1 >= from) => {
                lane.on(failed(ErrorClass::Locked))
            }
            _ => {
                let first = std::cell::Cell::new(true);
                lane.until(request, |_| !first.replace(false))
            }
        };
        if lane.machine.blocked().count() > 0 {
            from = 1;
        }
    };
    assert_eq!(outcome, Outcome::default());
    let request = lane.machine.retry(&mut lane.events).expect("it waits");
    blocked_from(&mut lane, request, u128::MAX, ErrorClass::Locked);
    assert_eq!(lane.completed(), [0, 1, 2]);
}

#[test]
fn failed_rollback_of_retry_closes_the_connection() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    blocked_from(&mut lane, request, 1, ErrorClass::Locked);
    let request = lane.machine.retry(&mut lane.events).expect("it waits");
    lane.until(request, is_insert);
    assert_eq!(lane.on(failed(ErrorClass::Locked)), Request::Rollback);
    assert_eq!(lane.on(failed(ErrorClass::Lost)), Request::Disconnect);
    assert!(matches!(lane.on(Response::Ok), Request::Wait(BatchError { attempts: 1, .. })));
    assert_eq!(lane.on(Response::Ok), Request::Done(Outcome::default()));
    assert_eq!(lane.machine.blocked().next().map(|blocked| blocked.error.class), Some(ErrorClass::Locked));
}
