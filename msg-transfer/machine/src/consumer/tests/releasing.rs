//! Revoked and lost partitions.

use super::*;

#[test]
fn revoked_partition_is_drained_and_committed() {
    let mut machine = running();
    let [a, b] = [0, 1].map(|offset| receive(&mut machine, 0, offset));
    assert_eq!(on(&mut machine, Event::Revoked(vec![0]), 10), []);
    assert_eq!(
        machine.receive(0, (RecordOffset(2), LeaderEpoch(0)), 1, &mut Vec::new()),
        None,
        "nothing more is received"
    );
    assert_eq!(on(&mut machine, Event::Completed(vec![a]), 11), []);
    assert_eq!(on(&mut machine, Event::Completed(vec![b]), 12), [Action::SaveProgress(vec![point(0, 1, 2)])]);
    assert_eq!(on(&mut machine, Event::ProgressSaved, 15), [Action::Commit(vec![point(0, 1, 2)])]);
    let released = [Action::Fence { epoch: 1 }, Action::Release(vec![0])];
    assert_eq!(on(&mut machine, Event::Committed, 16), released);
}

#[test]
fn drain_deadline_fences_the_rest_and_commits_the_prefix() {
    let mut machine = running();
    let [a, b] = [0, 1].map(|offset| receive(&mut machine, 0, offset));
    on(&mut machine, Event::Completed(vec![a]), 5);
    let actions = on(&mut machine, Event::Revoked(vec![0]), 10);
    assert_eq!(actions, [Action::SaveProgress(vec![point(0, 1, 1)])]);
    assert_eq!(on(&mut machine, Event::DrainExpired, 20), [Action::Fence { epoch: 1 }]);
    on(&mut machine, Event::ProgressSaved, 21);
    let released = [Action::Fence { epoch: 1 }, Action::Release(vec![0])];
    assert_eq!(on(&mut machine, Event::Committed, 22), released);
    // The late report of the lane counts for the limits, and for nothing else.
    assert_eq!(on(&mut machine, Event::Dropped(vec![b]), 23), []);
    assert_eq!(machine.inflight(), (0, 0));
}

#[test]
fn release_deadline_does_not_wait_for_the_coordinator() {
    let mut machine = running();
    let a = receive(&mut machine, 0, 0);
    on(&mut machine, Event::Completed(vec![a]), 5);
    on(&mut machine, Event::Revoked(vec![0]), 10);
    assert_eq!(on(&mut machine, Event::ReleaseExpired, 20), [Action::Fence { epoch: 1 }, Action::Release(vec![0])]);
}

#[test]
fn lost_partition_is_fenced_and_never_committed() {
    let mut machine = running();
    let a = receive(&mut machine, 0, 0);
    assert_eq!(on(&mut machine, Event::Completed(vec![a]), 1000), [Action::SaveProgress(vec![point(0, 1, 1)])]);
    let lost = on(&mut machine, Event::Lost(vec![0]), 1001);
    assert_eq!(lost, [Action::Fence { epoch: 1 }, Action::Release(vec![0])]);
    assert_eq!(on(&mut machine, Event::ProgressSaved, 1002), [], "it may have another owner");
}

#[test]
fn record_of_previous_assignment_changes_no_prefix() {
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
fn stop_without_partitions_releases_immediately() {
    assert_eq!(on(&mut machine(), Event::Stop, 0), [Action::Release(vec![])]);
}

#[test]
fn restart_of_a_revoked_partition_releases_it_immediately() {
    let mut machine = running();
    let [a, _b] = [0, 1].map(|offset| receive(&mut machine, 0, offset));
    on(&mut machine, Event::Completed(vec![a]), 5);
    on(&mut machine, Event::Revoked(vec![0]), 10);
    on(&mut machine, Event::ProgressFailed, 11);
    let released = [Action::Fence { epoch: 1 }, Action::Fence { epoch: 1 }, Action::Release(vec![0])];
    assert_eq!(on(&mut machine, Event::Restart, 12), released);
}
