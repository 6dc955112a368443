//! The faster statement: when it inserts the rows of a batch, and what follows when it fails.

use super::*;

fn is_insert_new(request: &Request) -> bool {
    matches!(request, Request::InsertNew(_))
}

/// Stores a batch of one message, and returns whether the faster statement inserted it.
fn stores_as_new(lane: &mut Lane, id: u128) -> bool {
    let request = lane.begin(vec![Msg("a", id)]);
    let request = lane.until(request, |request| is_insert(request) || is_insert_new(request));
    let is_new = is_insert_new(&request);
    assert_eq!(lane.until(request, is_done), Request::Done(Outcome { stored: 1, ..Outcome::default() }));
    is_new
}

#[test]
fn new_rows_are_inserted_by_the_faster_statement() {
    let mut lane = Lane::with(false, true);
    assert!(!stores_as_new(&mut lane, 1), "after a connection, records may be received again");
    assert!(stores_as_new(&mut lane, 2));
    assert!(stores_as_new(&mut lane, 3));
    let mut lane = Lane::with(false, false);
    assert!((1..4).all(|id| !stores_as_new(&mut lane, id)), "it is switched off");
}

#[test]
fn conflict_of_the_faster_statement_leads_to_the_other_one() {
    let mut lane = Lane::with(false, true);
    stores_as_new(&mut lane, 1);
    let request = lane.begin(vec![Msg("a", 1), Msg("a", 2)]);
    lane.until(request, is_insert_new);
    assert_eq!(lane.on(failed(ErrorClass::Conflict)), Request::Rollback, "the connection is kept");
    assert_eq!(lane.completed(), [0], "nothing of the second batch is completed");
    let insert = lane.on(Response::Ok);
    assert_eq!(lane.until(insert, is_insert), numbered(&[(0, 2), (1, 3)]));
    assert_eq!(lane.on(Response::Count(1)), Request::Rollback);
    assert_eq!(lane.on(Response::Ok), Request::FindStored(vec![0, 1]));
    assert_eq!(lane.on(Response::Found(vec![(0, true)])), Request::Begin);
    assert_eq!(lane.on(Response::Ok), numbered(&[(1, 2)]), "no gap");
    let outcome = lane.until(numbered(&[(1, 2)]), is_done);
    assert_eq!(outcome, Request::Done(Outcome { stored: 1, duplicates: 1, ..Outcome::default() }));
    assert!(!stores_as_new(&mut lane, 3), "duplicates come in runs");
    assert!(stores_as_new(&mut lane, 4));
}

#[test]
fn rejected_faster_statement_is_not_tried_for_many_batches() {
    let mut lane = Lane::with(false, true);
    stores_as_new(&mut lane, 1);
    let request = lane.begin(vec![Msg("a", 2)]);
    lane.until(request, is_insert_new);
    let rollback = lane.on(failed(ErrorClass::Fatal));
    assert_eq!(rollback, Request::Rollback);
    assert_eq!(lane.until(rollback, is_done), Request::Done(Outcome { stored: 1, ..Outcome::default() }));
    let as_new = (3..).find(|id| stores_as_new(&mut lane, *id));
    assert_eq!(as_new, Some(3 + 99));
}

#[test]
fn rows_missing_after_the_faster_statement_are_not_completed() {
    let mut lane = Lane::with(false, true);
    stores_as_new(&mut lane, 1);
    let request = lane.begin(vec![Msg("a", 2), Msg("a", 3)]);
    lane.until(request, is_insert_new);
    assert_eq!(lane.on(Response::Count(1)), Request::Rollback);
    assert_eq!(lane.on(Response::Ok), Request::FindStored(vec![0, 1]));
    assert_eq!(lane.on(Response::Found(Vec::new())), Request::Disconnect);
    assert_eq!(lane.completed(), [0]);
}

#[test]
fn poison_record_among_new_rows_is_bisected() {
    let mut lane = Lane::with(false, true);
    stores_as_new(&mut lane, 1);
    let request = lane.begin(vec![Msg("a", 2), Msg("b", 3)]);
    lane.until(request, is_insert_new);
    let rollback = lane.on(failed(ErrorClass::Permanent));
    assert_eq!(rollback, Request::Rollback);
    assert_eq!(lane.on(Response::Ok), Request::FindStored(vec![0, 1]));
    assert!(lane.machine.searching().is_some());
}
