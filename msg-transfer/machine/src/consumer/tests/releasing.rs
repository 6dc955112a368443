//! Revoked and lost partitions.

use super::*;

#[test]
fn a_revoked_partition_is_drained_and_committed_before_it_is_let_go() {
    let mut machine = running();
    let [a, b] = [0, 1].map(|offset| receive(&mut machine, 0, offset));
    assert_eq!(on(&mut machine, Event::Revoked(vec![0]), 10), []);
    assert_eq!(
        machine.receive(0, (RecordOffset(2), LeaderEpoch(0)), 1, &mut Vec::new()),
        None,
        "nothing more is taken in"
    );
    assert_eq!(on(&mut machine, Event::Completed(vec![a]), 11), []);
    assert_eq!(on(&mut machine, Event::Completed(vec![b]), 12), [Action::SaveProgress(vec![point(0, 1, 2)])]);
    assert_eq!(on(&mut machine, Event::ProgressSaved, 15), [Action::Commit(vec![point(0, 1, 2)])]);
    let released = [Action::Fence { epoch: 1 }, Action::Release(vec![0])];
    assert_eq!(on(&mut machine, Event::Committed, 16), released);
}

#[test]
fn past_the_deadline_the_rest_is_fenced_and_what_is_stored_is_committed() {
    let mut machine = running();
    let [a, b] = [0, 1].map(|offset| receive(&mut machine, 0, offset));
    on(&mut machine, Event::Completed(vec![a]), 5);
    let actions = on(&mut machine, Event::Revoked(vec![0]), 10);
    assert_eq!(actions, [Action::SaveProgress(vec![point(0, 1, 1)])]);
    assert_eq!(on(&mut machine, Event::DrainExpired, 20), [Action::Fence { epoch: 1 }]);
    on(&mut machine, Event::ProgressSaved, 21);
    let released = [Action::Fence { epoch: 1 }, Action::Release(vec![0])];
    assert_eq!(on(&mut machine, Event::Committed, 22), released);
    // The lane reports late: it counts for the limits, and for nothing else.
    assert_eq!(on(&mut machine, Event::Dropped(vec![b]), 23), []);
    assert_eq!(machine.inflight(), (0, 0));
}

#[test]
fn a_coordinator_that_does_not_answer_holds_nobody_up() {
    let mut machine = running();
    let a = receive(&mut machine, 0, 0);
    on(&mut machine, Event::Completed(vec![a]), 5);
    on(&mut machine, Event::Revoked(vec![0]), 10);
    assert_eq!(on(&mut machine, Event::ReleaseExpired, 20), [Action::Fence { epoch: 1 }, Action::Release(vec![0])]);
}

#[test]
fn a_lost_partition_is_fenced_and_never_committed() {
    let mut machine = running();
    let a = receive(&mut machine, 0, 0);
    assert_eq!(on(&mut machine, Event::Completed(vec![a]), 1000), [Action::SaveProgress(vec![point(0, 1, 1)])]);
    let lost = on(&mut machine, Event::Lost(vec![0]), 1001);
    assert_eq!(lost, [Action::Fence { epoch: 1 }, Action::Release(vec![0])]);
    assert_eq!(on(&mut machine, Event::ProgressSaved, 1002), [], "it may be another's by now");
}

#[test]
fn record_of_previous_assignment_moves_nothing() {
    let mut machine = running();
    let a = receive(&mut machine, 0, 0);
    on(&mut machine, Event::Lost(vec![0]), 1);
    on(&mut machine, Event::Assigned(vec![0]), 2);
    on(
        &mut machine,
        Event::StartResolved { partition: 0, epoch: 2, start: at(0).into(), topic_id: Uuid::nil(), dead: vec![] },
        2,
    );
    on(&mut machine, Event::ProgressSaved, 2);
    on(&mut machine, Event::Committed, 2);
    receive(&mut machine, 0, 0);
    assert_eq!(on(&mut machine, Event::Completed(vec![a]), 5000), []);
    assert_eq!(machine.inflight(), (100, 1));
}

#[test]
fn stopping_with_nothing_owned_is_done_at_once() {
    assert_eq!(on(&mut machine(), Event::Stop, 0), [Action::Release(vec![])]);
}

#[test]
fn a_restart_while_a_partition_is_given_back_lets_it_go_at_once() {
    let mut machine = running();
    let [a, _b] = [0, 1].map(|offset| receive(&mut machine, 0, offset));
    on(&mut machine, Event::Completed(vec![a]), 5);
    on(&mut machine, Event::Revoked(vec![0]), 10);
    on(&mut machine, Event::ProgressFailed, 11);
    let released = [Action::Fence { epoch: 1 }, Action::Fence { epoch: 1 }, Action::Release(vec![0])];
    assert_eq!(on(&mut machine, Event::Restart, 12), released);
}
