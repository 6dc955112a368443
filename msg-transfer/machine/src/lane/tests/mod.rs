//! The promises of the lane's machine, step by step: what it requests, and when it completes a record.

mod bisecting;
mod blocked;
mod fences;
mod insert_new;
mod one_inbox;

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
        Lane::with(guard, false)
    }

    fn with(guard: bool, insert_new: bool) -> Self {
        let assignment = Arc::new(Assignment::new(1));
        assignment.start_read(Uuid::nil(), 1);
        let settings = Settings {
            cached_inboxes: NonZeroUsize::new(10).expect("10"),
            guard,
            insert_new,
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

    /// Begins a batch whose records have consecutive offsets from `first` on.
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

    /// Returns the offsets in the order in which they were completed.
    fn completed(&self) -> Vec<i64> {
        let completed = self.events.iter().filter_map(|event| match event {
            Event::Completed(records) => Some(records.iter().map(|record_ref| record_ref.offset.0)),
            _ => None,
        });
        completed.flatten().collect()
    }

    /// Responds to each request like a database that accepts every row, until `stop` returns true for a request.
    fn until(&mut self, mut request: Request, stop: impl Fn(&Request) -> bool) -> Request {
        while !stop(&request) {
            let response = match &request {
                Request::LastSeqs(entries) => Response::Seqs(vec![0; entries.len()]),
                Request::Insert(rows) | Request::InsertNew(rows) => Response::Count(rows.len()),
                Request::Guard(heads) => Response::Count(heads.len()),
                Request::Canary(_) => Response::Count(1),
                Request::FindStored(_) => Response::Found(Vec::new()),
                Request::Done(_) => panic!("the batch ended"),
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

fn failed(class: ErrorClass) -> Response {
    Response::Failed(ClassifiedError { class, text: "no".into() })
}

fn is_insert(request: &Request) -> bool {
    matches!(request, Request::Insert(_))
}

fn is_done(request: &Request) -> bool {
    matches!(request, Request::Done(_))
}

#[test]
fn rows_are_sorted_by_inbox_and_completed_after_commit() {
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
    // Both inboxes are cached now.
    assert_eq!(lane.begin(vec![Msg("b", 4)]), Request::Begin);
    assert_eq!(lane.on(Response::Ok), numbered(&[(0, 3)]));
}

#[test]
fn unconfirmed_commit_drops_connection_and_cache() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    let request = lane.until(request, |request| *request == Request::Commit);
    assert_eq!(lane.until(request, |request| *request == Request::Commit), Request::Commit);
    assert_eq!(lane.on(failed(ErrorClass::Transient)), Request::Disconnect);
    assert!(matches!(lane.on(Response::Ok), Request::Wait(BatchError { attempts: 1, .. })));
    assert_eq!(lane.on(Response::Ok), Request::Connect(1));
    assert_eq!(lane.on(Response::Ok), Request::LastSeqs(vec![0]));
    assert!(lane.events.is_empty());
}

#[test]
fn repeat_is_not_inserted_but_compared_with_the_first() {
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
fn duplicates_leave_no_gap() {
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
fn sequence_guard_needs_each_predecessor() {
    let mut lane = Lane::new(true);
    let request = lane.begin(vec![Msg("a", 1), Msg("b", 2)]);
    let last = lane.until(request, |request| matches!(request, Request::LastSeqs(_)));
    assert_eq!(last, Request::LastSeqs(vec![0, 1]));
    assert_eq!(lane.on(Response::Seqs(vec![4, 0])), Request::Begin);
    assert_eq!(lane.on(Response::Ok), Request::Guard(vec![NumberedEntry { entry: 0, seq: 5 }]));
    assert_eq!(lane.on(Response::Count(0)), Request::Disconnect);
}

#[test]
fn conflict_above_the_limit_keeps_no_content() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 1), Msg("a", 1)]);
    lane.until(request, is_insert);
    assert_eq!(lane.on(Response::Count(1)), Request::FindStored(vec![1, 2]));
    let Request::InsertDeadLetters(dead) = lane.on(Response::Found(vec![(1, false), (2, false)])) else { panic!() };
    assert_eq!(dead.iter().map(|dead| dead.content).collect::<Vec<_>>(), [true, false]);
    assert!(dead[1].detail.contains("not kept"), "{}", dead[1].detail);
}

#[test]
fn commit_with_warning_completes_batch_and_clears_cache() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    let commit = lane.until(request, |request| *request == Request::Commit);
    assert_eq!(commit, Request::Commit);
    assert_eq!(lane.on(Response::Warned), Request::Done(Outcome { stored: 1, ..Outcome::default() }));
    assert!(matches!(&lane.events[..], [Event::Completed(records)] if records.len() == 1));
    assert_eq!(lane.begin(vec![Msg("a", 2)]), Request::LastSeqs(vec![0]));
}

#[test]
fn unexpected_response_is_fatal_and_stores_nothing() {
    for unexpected in [Response::Ok, Response::Stale, Response::Seqs(vec![0, 0]), Response::Found(Vec::new())] {
        let mut lane = Lane::new(false);
        let request = lane.begin(vec![Msg("a", 1)]);
        lane.until(request, is_insert);
        assert_eq!(lane.on(unexpected.clone()), Request::Disconnect, "{unexpected:?}");
        let Request::Wait(BatchError { error, attempts: 1 }) = lane.on(Response::Ok) else { panic!("{unexpected:?}") };
        assert_eq!(error.class, ErrorClass::Fatal);
        assert!(error.text.contains("bug"), "{}", error.text);
        assert!(lane.events.is_empty());
        assert_eq!(lane.on(Response::Ok), Request::Connect(1), "the batch is stored from the start");
    }
}

#[test]
fn unexpected_response_without_connection_leads_to_wait() {
    let mut lane = Lane::new(false);
    assert!(matches!(lane.on(Response::Ok), Request::Wait(_)), "there is no batch");
    assert_eq!(lane.on(Response::Ok), Request::Done(Outcome::default()));
    lane.begin(vec![Msg("a", 1)]);
    assert_eq!(lane.on(failed(ErrorClass::Lost)), Request::Disconnect);
    assert!(matches!(lane.on(Response::Count(1)), Request::Wait(_)), "Disconnect");
    assert!(matches!(lane.on(Response::Count(1)), Request::Wait(_)), "Wait");
    assert_eq!(lane.on(Response::Ok), Request::Connect(1));
}
