//! The promises of the consumer's machine, step by step: what it commits, and when it restarts.

mod fetching;
mod halting;
mod limits;
mod releasing;

use super::*;
use crate::Progress;

fn machine() -> Machine {
    Machine::new(Settings {
        commit_records: 100,
        commit_interval: 1000,
        max_inflight_bytes: 1000,
        max_inflight_records: 10,
        max_partition_bytes: 800,
        max_partition_records: 8,
        dead_letters: Limit { count: 1, percent: 0, window: 100 },
        fetch_backoff: |attempts| 100 << (attempts.min(3) - 1),
        fetch_recovery: 1000,
    })
}

/// Handles an event and returns the actions.
fn on(machine: &mut Machine, event: Event, now: Millis) -> Vec<Action> {
    let mut actions = Vec::new();
    machine.handle(event, now, &mut actions);
    actions
}

fn point(partition: Partition, epoch: Epoch, next: i64) -> CommitPoint {
    CommitPoint { partition, epoch, next: NextOffset(next), leader_epoch: LeaderEpoch(0) }
}

fn progress(next: i64) -> Progress {
    Progress { next: NextOffset(next), leader_epoch: LeaderEpoch(0) }
}

fn at(next: i64) -> Start {
    Start::At(progress(next))
}

fn receive(machine: &mut Machine, partition: Partition, offset: i64) -> RecordRef {
    let mut actions = Vec::new();
    let offset = RecordOffset(offset);
    let epoch =
        machine.receive(partition, (offset, LeaderEpoch(0)), 100, &mut actions).expect("the partition is fetched");
    assert_eq!(actions, []);
    RecordRef { partition, epoch, offset, bytes: 100 }
}

/// Returns a machine with partition 0 under epoch 1, whose start offset 0 is committed.
fn running() -> Machine {
    let mut machine = machine();
    let resolve = on(&mut machine, Event::Assigned(vec![0]), 0);
    assert_eq!(resolve, [Action::ResolveStart { partition: 0, epoch: 1 }]);
    let start =
        Event::StartResolved { partition: 0, epoch: 1, start: at(0).into(), topic_id: Uuid::nil(), dead: vec![] };
    let actions = on(&mut machine, start, 0);
    let fetch = Action::Fetch { partition: 0, epoch: 1, from: progress(0) };
    assert_eq!(actions, [fetch, Action::SaveProgress(vec![point(0, 1, 0)])]);
    assert_eq!(on(&mut machine, Event::ProgressSaved, 0), [Action::Commit(vec![point(0, 1, 0)])]);
    assert_eq!(on(&mut machine, Event::Committed, 0), []);
    machine
}

#[test]
fn record_before_the_start_is_resolved_is_dropped() {
    let mut machine = machine();
    on(&mut machine, Event::Assigned(vec![0]), 0);
    assert_eq!(machine.receive(0, (RecordOffset(0), LeaderEpoch(0)), 1, &mut Vec::new()), None);
    assert_eq!(machine.receive(1, (RecordOffset(0), LeaderEpoch(0)), 1, &mut Vec::new()), None);
}

#[test]
fn prefix_is_committed_after_its_progress_row() {
    let mut machine = running();
    let [a, b, c] = [0, 1, 2].map(|offset| receive(&mut machine, 0, offset));
    assert_eq!(on(&mut machine, Event::Completed(vec![b, c]), 1000), []);
    assert_eq!(on(&mut machine, Event::Completed(vec![a]), 2000), [Action::SaveProgress(vec![point(0, 1, 3)])]);
    assert_eq!(on(&mut machine, Event::Tick, 9000), [], "one round at a time");
    assert_eq!(on(&mut machine, Event::ProgressSaved, 9000), [Action::Commit(vec![point(0, 1, 3)])]);
    assert_eq!(on(&mut machine, Event::Committed, 9000), []);
    assert_eq!(on(&mut machine, Event::Tick, 20_000), [], "nothing new");
}

#[test]
fn failed_commit_round_is_repeated_after_an_interval() {
    let mut machine = running();
    let a = receive(&mut machine, 0, 0);
    assert_eq!(on(&mut machine, Event::Completed(vec![a]), 1000), [Action::SaveProgress(vec![point(0, 1, 1)])]);
    assert_eq!(on(&mut machine, Event::ProgressFailed, 1500), []);
    assert_eq!(on(&mut machine, Event::Tick, 2499), []);
    assert_eq!(on(&mut machine, Event::Tick, 2500), [Action::SaveProgress(vec![point(0, 1, 1)])]);
    on(&mut machine, Event::ProgressSaved, 2500);
    assert_eq!(on(&mut machine, Event::CommitFailed, 2600), []);
    assert_eq!(on(&mut machine, Event::Tick, 3600), [Action::SaveProgress(vec![point(0, 1, 1)])]);
}

/// The database may have lost rows whose COMMIT succeeded: their offsets are not committed, and they are consumed
/// again.
#[test]
fn restart_commits_no_earlier_record() {
    let mut machine = running();
    let a = receive(&mut machine, 0, 0);
    assert_eq!(on(&mut machine, Event::Completed(vec![a]), 1000), [Action::SaveProgress(vec![point(0, 1, 1)])]);
    on(&mut machine, Event::ProgressFailed, 1001);
    assert_eq!(
        on(&mut machine, Event::Restart, 1002),
        [
            Action::StopFetching { partition: 0 },
            Action::Fence { epoch: 1 },
            Action::ResolveStart { partition: 0, epoch: 2 }
        ]
    );
    assert_eq!(on(&mut machine, Event::Tick, 60_000), []);
}
