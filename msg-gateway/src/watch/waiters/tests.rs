use msg_common::proto::{HintedInbox, Msg};

use super::*;
use crate::watch::hinted_rows::tests::{hint, origin};

const SENT: SystemTime = SystemTime::UNIX_EPOCH;

fn awaited(id: u128, offset: i64) -> Awaited {
    let key = MessageKey {
        recv_id: "bob".into(),
        msg_id: Uuid::from_u128(id),
        send_time: SENT,
        partition: 3,
        offset: Some(offset),
    };
    let digest = Digest::of(&Msg::default());
    Awaited { id: 0, key, placement: Placement::default(), digest, may_be_dead: false }
}

fn hash(id: u128) -> u64 {
    awaited(id, 0).key.hash()
}

/// A waiter for the message with this ID, whose record is at this offset of partition 3.
fn waiter(id: u128, offset: i64) -> Waiter {
    Waiter { awaited: awaited(id, offset), since: Instant::now(), result: oneshot::channel().0 }
}

/// Passes a hint of `hint`'s origin. Returns the offset and the `seq` of each waiter that got its result, and whether a
/// lookup is due.
fn pass(state: &mut State, hint: &StoredHint) -> (Vec<(i64, i64)>, bool) {
    pass_from(state, hint, &origin(), true)
}

fn pass_from(state: &mut State, hint: &StoredHint, own: &Origin, is_sending: bool) -> (Vec<(i64, i64)>, bool) {
    let (completed, due) = state.hinted(hint, own.stored_time_us(hint), is_sending, Instant::now());
    let seq = |(waiter, stored): (Waiter, StoredPlacement)| {
        assert!(!stored.duplicate && stored.stored_time.is_some());
        (waiter.awaited.key.offset.expect("it has one"), stored.seq)
    };
    (completed.into_iter().map(seq).collect(), due)
}

#[test]
fn acquire_fails_without_a_database() {
    let waiters = Arc::new(Waiters::new(None, Budget::of_items(1), Arc::default(), Arc::default()));
    assert_eq!(waiters.acquire().err(), Some(Failure::NoDatabase));
    assert_eq!(waiters.budget.used().items, 0);
}

#[test]
fn hint_completes_the_waiters_of_its_rows_without_a_lookup() {
    let mut state = State::default();
    for (id, offset) in [(1, 10), (2, 11), (3, 12)] {
        state.add(waiter(id, offset)).expect("its row was not hinted");
    }
    let own = hint("bob", 7, &[(10, hash(1)), (11, hash(2))]);
    assert_eq!(pass(&mut state, &own), (vec![(10, 6), (11, 7)], false));
    assert_eq!(pass(&mut state, &own), (vec![], false), "the same hint a second time");
    assert_eq!(pass(&mut state, &hint("bob", 8, &[(12, hash(3))])), (vec![(12, 8)], false));
    assert_eq!(state.queue.next_lookup(), None);
}

#[test]
fn hint_with_another_hash_or_position_completes_no_waiter() {
    let mut state = State::default();
    state.add(waiter(1, 10)).expect("its row was not hinted");
    let mut other_partition = hint("bob", 7, &[(10, hash(1))]);
    other_partition.inboxes[0].partition = 4;
    for other in [hint("bob", 7, &[(10, hash(2))]), hint("bob", 7, &[(9, hash(1))]), other_partition] {
        assert_eq!(pass(&mut state, &other).0, [], "{other:?}");
    }
    // Neither does one of them later.
    state.recent = RecentRows::default();
    pass(&mut state, &hint("bob", 7, &[(20, hash(9))]));
    state.add(waiter(9, 21)).expect("the hinted row is another record's");
    assert_eq!(state.queue.len(), 2);
}

#[test]
fn hint_of_another_topic_or_table_only_makes_a_lookup_due() {
    let own = hint("bob", 7, &[(10, hash(1))]);
    let other_topic = Origin { topic_id: Uuid::from_u128(10), ..origin() };
    let mut other_table = origin();
    other_table.table.server.started = Some("43".into());
    for other in [other_topic, other_table] {
        let mut state = State::default();
        state.add(waiter(1, 10)).expect("its row was not hinted");
        assert_eq!(pass_from(&mut state, &own, &other, true), (vec![], true));
        // The row is not kept for later either.
        state.add(waiter(1, 10)).expect("its row was not hinted");
    }
}

#[test]
fn hint_of_an_older_transfer_makes_a_lookup_due() {
    let mut state = State::default();
    state.add(waiter(1, 10)).expect("its row was not hinted");
    let inbox = HintedInbox { recv_id: "bob".into(), seq: 7, ..HintedInbox::default() };
    assert_eq!(pass(&mut state, &StoredHint { inboxes: vec![inbox], rows: None }), (vec![], true));
    let due = state.queue.due(Instant::now(), Instant::now() + LOOKUP_INTERVAL);
    assert!(due[0].may_be_dead, "the hint may be about a dead letter");
}

#[test]
fn records_without_a_row_make_a_lookup_due() {
    let mut state = State::default();
    for (id, offset) in [(1, 10), (2, 11)] {
        state.add(waiter(id, offset)).expect("its row was not hinted");
    }
    let mut own = hint("bob", 7, &[(10, hash(1))]);
    own.inboxes[0].without_row = true;
    assert_eq!(pass(&mut state, &own), (vec![(10, 7)], true));
    let due = state.queue.due(Instant::now(), Instant::now() + LOOKUP_INTERVAL);
    let due: Vec<_> = due.iter().map(|awaited| (awaited.key.offset, awaited.may_be_dead)).collect();
    assert_eq!(due, [(Some(11), true)]);
}

#[test]
fn waiter_finds_the_row_that_was_hinted_before_its_report() {
    let mut state = State::default();
    let own = hint("bob", 7, &[(10, hash(1))]);
    assert_eq!(pass_from(&mut state, &own, &origin(), false), (vec![], false));
    state.add(waiter(1, 10)).expect("no message was being sent when the hint arrived");
    let mut state = State::default();
    assert_eq!(pass(&mut state, &own), (vec![], false));
    let Err(stored) = state.add(waiter(1, 10)) else { panic!("its row was hinted") };
    assert_eq!((stored.seq, stored.duplicate), (7, false));
    assert_eq!(state.queue.len(), 0);
}

#[tokio::test]
async fn result_from_a_hint_reaches_the_caller() {
    let monitor = Arc::new(HintMonitor::default());
    let waiters = Arc::new(Waiters::new(None, Budget::of_items(2), monitor.clone(), Arc::default()));
    let permit = WaiterPermit {
        waiters: waiters.clone(),
        _permit: waiters.budget.try_acquire(1).expect("there is capacity"),
        _interest: monitor.register_interest(),
    };
    let Awaited { key, digest, .. } = awaited(1, 10);
    let placement = Placement {
        msg_id: key.msg_id.to_string(),
        partition: 3,
        offset: key.offset,
        send_time: Some(SENT.into()),
        stored: None,
    };
    pass(&mut waiters.lock(), &hint("bob", 7, &[(10, hash(1))]));
    let stored = permit.stored(key.recv_id, digest, placement).await.expect("its row was hinted");
    assert_eq!(stored.seq, 7);
    assert_eq!(waiters.budget.used().items, 0);
}
