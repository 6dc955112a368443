//! The lane's promises, step by step: what it asks for, and when it calls a record completed.

use std::sync::Arc;

use super::*;
use crate::consumer::RecordRef;
use crate::{Assignment, Partition, Reason, RecordOffset};
use uuid::Uuid;

struct Msg(&'static str, u128);

impl Message for Msg {
    fn recv_id(&self) -> &str {
        self.0
    }

    fn msg_id(&self) -> Uuid {
        Uuid::from_u128(self.1)
    }
}

struct Lane {
    machine: Machine<Msg>,
    assignment: Arc<Assignment>,
    events: Vec<Event>,
}

const HUGE: usize = 1000;

impl Lane {
    fn new(guard: bool) -> Self {
        let assignment = Arc::new(Assignment::new(1));
        assignment.start_read(Uuid::nil(), 1);
        let settings = Settings {
            cached_inboxes: NonZeroUsize::new(10).expect("10"),
            guard,
            huge: HUGE,
            batch_records: 3,
            batch_bytes: 1000,
            conflict_limit: 1,
            conflict_window: 100,
        };
        Lane { machine: Machine::new(0, settings), assignment, events: Vec::new() }
    }

    fn begin(&mut self, msgs: Vec<Msg>) -> Request {
        self.begin_at(0, msgs)
    }

    /// A batch whose records follow each other from this offset on.
    fn begin_at(&mut self, first: i64, msgs: Vec<Msg>) -> Request {
        let entry = |(index, msg): (usize, Msg)| {
            let offset = RecordOffset(first + i64::try_from(index).expect("few"));
            let record_ref = RecordRef { partition: 0, epoch: self.assignment.epoch, offset, bytes: 1 };
            Entry::new(self.assignment.clone(), record_ref, Kind::Message, msg)
        };
        let entries = msgs.into_iter().enumerate().map(entry).collect();
        self.machine.begin(entries, &mut self.events)
    }

    fn on(&mut self, response: Response) -> Request {
        self.machine.handle(response, &mut self.events)
    }

    /// The offsets, in the order in which they were completed.
    fn completed(&self) -> Vec<i64> {
        let completed = self.events.iter().filter_map(|event| match event {
            Event::Completed(records) => Some(records.iter().map(|record_ref| record_ref.offset.0)),
            _ => None,
        });
        completed.flatten().collect()
    }

    /// Answers each request like a database that takes everything, up to the first that `stop` wants.
    fn until(&mut self, mut request: Request, stop: impl Fn(&Request) -> bool) -> Request {
        while !stop(&request) {
            let response = match &request {
                Request::LastSeqs(asked) => Response::Seqs(vec![0; asked.len()]),
                Request::Insert(rows) => Response::Count(rows.len()),
                Request::Guard(heads) => Response::Count(heads.len()),
                Request::Canary(_) => Response::Count(1),
                Request::FindStored(_) => Response::Found(Vec::new()),
                Request::Done(_) => panic!("it is over"),
                _ => Response::Ok,
            };
            request = self.on(response);
        }
        request
    }
}

fn numbered(rows: &[(usize, i64)]) -> Request {
    Request::Insert(rows.iter().map(|(entry, seq)| NumberedEntry { entry: *entry, seq: *seq }).collect())
}

fn failed(class: Class) -> Response {
    Response::Failed(Failure { class, text: "no".into() })
}

fn is_insert(request: &Request) -> bool {
    matches!(request, Request::Insert(_))
}

fn is_done(request: &Request) -> bool {
    matches!(request, Request::Done(_))
}

#[test]
fn rows_are_sorted_by_inbox_and_settled_only_after_the_commit() {
    let mut lane = Lane::new(false);
    let first = lane.begin(vec![Msg("b", 1), Msg("a", 2), Msg("b", 3)]);
    assert_eq!(first, Request::Connect(1));
    let insert = lane.until(first, is_insert);
    assert_eq!(insert, numbered(&[(1, 1), (0, 1), (2, 2)]));
    let commit = lane.until(insert, |request| *request == Request::Commit);
    assert!(lane.events.is_empty());
    let done = lane.until(commit, is_done);
    assert_eq!(done, Request::Done(Outcome { stored: 3, ..Outcome::default() }));
    assert!(matches!(&lane.events[..], [Event::Completed(records)] if records.len() == 3));
    // The cache knows both inboxes now.
    assert_eq!(lane.begin(vec![Msg("b", 4)]), Request::Begin);
    assert_eq!(lane.on(Response::Ok), numbered(&[(0, 3)]));
}

#[test]
fn a_commit_without_an_answer_costs_the_connection_and_the_cache() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    let request = lane.until(request, |request| *request == Request::Commit);
    assert_eq!(lane.until(request, |request| *request == Request::Commit), Request::Commit);
    assert_eq!(lane.on(failed(Class::Transient)), Request::Disconnect);
    assert!(matches!(lane.on(Response::Ok), Request::Wait(BatchFailure { attempts: 1, .. })));
    assert_eq!(lane.on(Response::Ok), Request::Connect(1));
    assert_eq!(lane.on(Response::Ok), Request::LastSeqs(vec![0]));
    assert!(lane.events.is_empty());
}

#[test]
fn a_repeat_is_not_inserted_and_compared_with_the_first() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 1), Msg("a", 2)]);
    let insert = lane.until(request, is_insert);
    assert_eq!(insert, numbered(&[(0, 1), (2, 2)]));
    assert_eq!(lane.on(Response::Count(2)), Request::FindStored(vec![1]));
    assert_eq!(lane.on(Response::Found(vec![(1, false)])), {
        let detail = "another message with this id is stored, and its fields differ".to_owned();
        Request::InsertDeadLetters(vec![DeadLetter {
            entry: 1,
            reason: Reason::IdempotencyConflict,
            detail,
            content: true,
        }])
    });
}

#[test]
fn duplicates_leave_no_hole() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 2)]);
    lane.until(request, is_insert);
    assert_eq!(lane.on(Response::Count(1)), Request::Rollback);
    assert_eq!(lane.on(Response::Ok), Request::FindStored(vec![0, 1]));
    assert_eq!(lane.on(Response::Found(vec![(0, true)])), Request::LastSeqs(vec![1]));
    assert_eq!(lane.on(Response::Seqs(vec![7])), Request::Begin);
    assert_eq!(lane.on(Response::Ok), numbered(&[(1, 8)]));
}

#[test]
fn with_the_guard_each_first_row_needs_its_predecessor() {
    let mut lane = Lane::new(true);
    let request = lane.begin(vec![Msg("a", 1), Msg("b", 2)]);
    let last = lane.until(request, |request| matches!(request, Request::LastSeqs(_)));
    assert_eq!(last, Request::LastSeqs(vec![0, 1]));
    assert_eq!(lane.on(Response::Seqs(vec![4, 0])), Request::Begin);
    assert_eq!(lane.on(Response::Ok), Request::Guard(vec![NumberedEntry { entry: 0, seq: 5 }]));
    assert_eq!(lane.on(Response::Count(0)), Request::Disconnect);
}

#[test]
fn what_was_fenced_before_the_commit_is_rolled_back() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    lane.until(request, is_insert);
    lane.assignment.fence();
    assert_eq!(lane.on(Response::Count(1)), Request::Rollback);
    assert_eq!(lane.on(Response::Ok), Request::Done(Outcome::default()));
    assert!(matches!(&lane.events[..], [Event::Dropped(records)] if records.len() == 1));
}

#[test]
fn another_server_fences_everything_at_once() {
    let mut lane = Lane::new(false);
    lane.begin(vec![Msg("a", 1)]);
    assert_eq!(lane.on(Response::Stale), Request::Done(Outcome::default()));
    assert!(lane.assignment.is_fenced());
    assert!(matches!(&lane.events[..], [Event::Restart, Event::Dropped(_)]));
}

/// Another partition's start was read again, over a new connection, and this one's has not been yet.
#[test]
fn what_was_started_over_an_earlier_connection_is_not_stored_with_the_rest() {
    let mut lane = Lane::new(false);
    let newer = Arc::new(Assignment::new(2));
    newer.start_read(Uuid::nil(), 2);
    let entry = |(index, (assignment, msg)): (usize, (&Arc<Assignment>, Msg))| {
        let partition = Partition::try_from(index).expect("few");
        let record_ref = RecordRef { partition, epoch: assignment.epoch, offset: RecordOffset(7), bytes: 1 };
        Entry::new(assignment.clone(), record_ref, Kind::Message, msg)
    };
    let msgs = [(&lane.assignment, Msg("a", 1)), (&newer, Msg("b", 2))];
    let entries = msgs.into_iter().enumerate().map(entry).collect();
    assert_eq!(lane.machine.begin(entries, &mut lane.events), Request::Connect(2));
    assert!(lane.assignment.is_fenced() && !newer.is_fenced());
    let [Event::RestartPartition(0), Event::Dropped(dropped)] = lane.events.as_slice() else {
        panic!("{:?}", lane.events)
    };
    assert_eq!(dropped.len(), 1);
}

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

/// Answers like a database in which inbox `a` cannot be written from this entry's id on.
fn blocked_from(lane: &mut Lane, mut request: Request, id: u128, class: Class) -> Outcome {
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
fn blocked_inbox_waits_and_its_lane_goes_on() {
    for class in [Class::Conflict, Class::Locked, Class::Heavy, Class::Fatal, Class::Transient] {
        let mut lane = Lane::new(false);
        let msgs = vec![Msg("a", 1), Msg("b", 2), Msg("a", 3), Msg("c", 4), Msg("a", 5), Msg("b", 6)];
        let request = lane.begin(msgs);
        let outcome = blocked_from(&mut lane, request, 3, class);
        assert_eq!(outcome, Outcome { stored: 4, ..Outcome::default() }, "{class:?}");
        let blocked: Vec<_> = lane.machine.blocked().collect();
        assert_eq!((blocked.len(), blocked[0].offset, blocked[0].records), (1, RecordOffset(2), 2));
        assert_eq!(blocked[0].failure.class, class);
        assert!(lane.events.iter().any(|event| matches!(event, Event::Blocked(records) if records.len() == 2)));

        // What comes later waits behind, and the others do not.
        let request = lane.begin_at(6, vec![Msg("a", 7), Msg("d", 8)]);
        let outcome = blocked_from(&mut lane, request, 3, class);
        assert_eq!(outcome, Outcome { stored: 1, ..Outcome::default() });

        // Still blocked: it goes on waiting, and only its first record was tried.
        let request = lane.machine.retry(&mut lane.events).expect("it waits");
        let outcome = blocked_from(&mut lane, request, 3, class);
        assert_eq!(outcome, Outcome::default());
        assert_eq!(lane.machine.blocked().next().map(|blocked| (blocked.records, blocked.attempts)), Some((3, 1)));

        // Not blocked any more: all of it is stored, in order.
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
    let request = lane.on(failed(Class::Locked));
    assert_eq!(lane.until(request, |request| *request == Request::BeginSearch), Request::BeginSearch);
    assert_eq!(lane.on(failed(Class::Locked)), Request::Disconnect);
    assert!(matches!(
        lane.on(Response::Ok),
        Request::Wait(BatchFailure { failure: Failure { class: Class::Locked, .. }, .. })
    ));
    assert_eq!(lane.machine.blocked().count(), 0);
}

#[test]
fn fenced_record_of_blocked_inbox_is_dropped() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    blocked_from(&mut lane, request, 1, Class::Locked);
    lane.events.clear();
    lane.machine.sweep(&mut lane.events);
    assert!(lane.events.is_empty());
    lane.assignment.fence();
    lane.machine.sweep(&mut lane.events);
    assert!(matches!(&lane.events[..], [Event::Unblocked(_), Event::Dropped(records)] if records.len() == 1));
    assert_eq!(lane.machine.retry(&mut lane.events), None);
}

#[test]
fn lost_connection_says_nothing_of_blocked_inbox() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    blocked_from(&mut lane, request, 1, Class::Locked);
    let request = lane.machine.retry(&mut lane.events).expect("it waits");
    lane.until(request, is_insert);
    assert_eq!(lane.on(failed(Class::Lost)), Request::Disconnect);
    assert_eq!(lane.on(Response::Ok), Request::Done(Outcome::default()));
    assert_eq!(lane.machine.blocked().next().map(|blocked| blocked.failure.class), Some(Class::Locked));
}

#[test]
fn conflict_beyond_the_limit_keeps_no_content() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 1), Msg("a", 1)]);
    lane.until(request, is_insert);
    assert_eq!(lane.on(Response::Count(1)), Request::FindStored(vec![1, 2]));
    let Request::InsertDeadLetters(dead) = lane.on(Response::Found(vec![(1, false), (2, false)])) else { panic!() };
    assert_eq!(dead.iter().map(|dead| dead.content).collect::<Vec<_>>(), [true, false]);
    assert!(dead[1].detail.contains("not kept"), "{}", dead[1].detail);
}

#[test]
fn commit_with_a_warning_completes_the_batch_and_clears_the_cache() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    let commit = lane.until(request, |request| *request == Request::Commit);
    assert_eq!(commit, Request::Commit);
    assert_eq!(lane.on(Response::Warned), Request::Done(Outcome { stored: 1, ..Outcome::default() }));
    assert!(matches!(&lane.events[..], [Event::Completed(records)] if records.len() == 1));
    assert_eq!(lane.begin(vec![Msg("a", 2)]), Request::LastSeqs(vec![0]));
}

/// The last message is found to be blocked, and then the batch is halved: what is left of it belongs in front.
#[test]
fn rest_of_a_halved_batch_waits_in_front_of_what_was_found_blocked() {
    let mut lane = Lane::new(false);
    let mut request = lane.begin(vec![Msg("a", 1), Msg("a", 2), Msg("a", 3)]);
    let outcome = loop {
        let is_found = lane.machine.blocked().count() > 0;
        request = match &request {
            Request::Done(outcome) => break outcome.clone(),
            Request::Insert(rows) if rows.iter().any(|row| lane.machine.entries()[row.entry].body.1 == 3) => {
                lane.on(failed(Class::Locked))
            }
            Request::Insert(rows) if is_found && rows.len() > 1 => lane.on(failed(Class::Heavy)),
            _ => {
                let first = std::cell::Cell::new(true);
                lane.until(request, |_| !first.replace(false))
            }
        };
    };
    assert_eq!(outcome.stored, 1);
    assert_eq!(lane.machine.blocked().map(|inbox| inbox.records).collect::<Vec<_>>(), [2]);
    let request = lane.machine.retry(&mut lane.events).expect("it waits");
    blocked_from(&mut lane, request, u128::MAX, Class::Locked);
    assert_eq!(lane.completed(), [0, 1, 2]);
}

/// First its second message alone is blocked, and then the whole inbox.
#[test]
fn message_found_blocked_later_waits_in_front() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 2), Msg("a", 3)]);
    let mut from = 2;
    let mut request = lane.until(request, is_insert);
    let outcome = loop {
        request = match &request {
            Request::Done(outcome) => break outcome.clone(),
            Request::Insert(rows) if rows.iter().any(|row| lane.machine.entries()[row.entry].body.1 >= from) => {
                lane.on(failed(Class::Locked))
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
    blocked_from(&mut lane, request, u128::MAX, Class::Locked);
    assert_eq!(lane.completed(), [0, 1, 2]);
}

#[test]
fn unexpected_response_is_fatal_and_stores_nothing() {
    for unexpected in [Response::Ok, Response::Stale, Response::Seqs(vec![0, 0]), Response::Found(Vec::new())] {
        let mut lane = Lane::new(false);
        let request = lane.begin(vec![Msg("a", 1)]);
        lane.until(request, is_insert);
        assert_eq!(lane.on(unexpected.clone()), Request::Disconnect, "{unexpected:?}");
        let Request::Wait(BatchFailure { failure, attempts: 1 }) = lane.on(Response::Ok) else {
            panic!("{unexpected:?}")
        };
        assert_eq!(failure.class, Class::Fatal);
        assert!(failure.text.contains("bug"), "{}", failure.text);
        assert!(lane.events.is_empty());
        assert_eq!(lane.on(Response::Ok), Request::Connect(1), "the batch is stored from the start");
    }
}

#[test]
fn unexpected_response_without_connection_waits() {
    let mut lane = Lane::new(false);
    assert!(matches!(lane.on(Response::Ok), Request::Wait(_)), "there is no batch");
    assert_eq!(lane.on(Response::Ok), Request::Done(Outcome::default()));
    lane.begin(vec![Msg("a", 1)]);
    assert_eq!(lane.on(failed(Class::Lost)), Request::Disconnect);
    assert!(matches!(lane.on(Response::Count(1)), Request::Wait(_)), "Disconnect");
    assert!(matches!(lane.on(Response::Count(1)), Request::Wait(_)), "Wait");
    assert_eq!(lane.on(Response::Ok), Request::Connect(1));
}

#[test]
fn failed_rollback_of_a_retry_closes_the_connection() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    blocked_from(&mut lane, request, 1, Class::Locked);
    let request = lane.machine.retry(&mut lane.events).expect("it waits");
    lane.until(request, is_insert);
    assert_eq!(lane.on(failed(Class::Locked)), Request::Rollback);
    assert_eq!(lane.on(failed(Class::Lost)), Request::Disconnect);
    assert!(matches!(lane.on(Response::Ok), Request::Wait(BatchFailure { attempts: 1, .. })));
    assert_eq!(lane.on(Response::Ok), Request::Done(Outcome::default()));
    assert_eq!(lane.machine.blocked().next().map(|blocked| blocked.failure.class), Some(Class::Locked));
}
