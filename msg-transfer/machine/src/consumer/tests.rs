//! The machine's promises, step by step: what it commits, and when it lets go.

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
        fetch_backoff: Backoff { first: 100, longest: 400, recovered: 1000 },
    })
}

/// Hands an event in and returns what is to be done.
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
    let epoch = machine.receive(partition, (offset, LeaderEpoch(0)), 100, &mut actions).expect("it is ours");
    assert_eq!(actions, []);
    RecordRef { partition, epoch, offset, bytes: 100 }
}

/// Partition 0 assigned under epoch 1, started at 0, and that start committed.
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
fn nothing_is_received_before_the_start_is_resolved() {
    let mut machine = machine();
    on(&mut machine, Event::Assigned(vec![0]), 0);
    assert_eq!(machine.receive(0, (RecordOffset(0), LeaderEpoch(0)), 1, &mut Vec::new()), None);
    assert_eq!(machine.receive(1, (RecordOffset(0), LeaderEpoch(0)), 1, &mut Vec::new()), None);
}

#[test]
fn only_the_contiguous_prefix_is_committed_and_the_row_comes_first() {
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
fn a_failed_round_is_repeated_after_an_interval() {
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
fn a_halted_partition_commits_what_was_stored_and_no_more() {
    let mut machine = running();
    let [a, b] = [0, 1].map(|offset| receive(&mut machine, 0, offset));
    let halt = Event::Halt { partition: 0, epoch: 1, reason: "newer".into() };
    let actions = on(&mut machine, halt, 1);
    assert_eq!(
        actions,
        [
            Action::StopFetching { partition: 0 },
            Action::Fence { epoch: 1 },
            Action::Halted { partition: 0, reason: "newer".into() }
        ]
    );
    on(&mut machine, Event::Dropped(vec![b]), 2);
    assert_eq!(on(&mut machine, Event::Completed(vec![a]), 1000), [Action::SaveProgress(vec![point(0, 1, 1)])]);
    assert_eq!(machine.receive(0, (RecordOffset(2), LeaderEpoch(0)), 1, &mut Vec::new()), None);
}

#[test]
fn offsets_that_go_back_start_the_partition_anew() {
    let mut machine = running();
    receive(&mut machine, 0, 5);
    let mut actions = Vec::new();
    assert_eq!(machine.receive(0, (RecordOffset(4), LeaderEpoch(0)), 1, &mut actions), None);
    assert_eq!(
        actions,
        [
            Action::StopFetching { partition: 0 },
            Action::Fence { epoch: 1 },
            Action::ResolveStart { partition: 0, epoch: 2 }
        ]
    );
}

#[test]
fn the_limits_hold_and_half_of_them_opens_again() {
    let mut machine = running();
    on(&mut machine, Event::Assigned(vec![1]), 0);
    let start =
        Event::StartResolved { partition: 1, epoch: 2, start: at(0).into(), topic_id: Uuid::nil(), dead: vec![] };
    on(&mut machine, start, 0);
    let records: Vec<_> = (0..10).map(|i| receive(&mut machine, i % 2, i64::from(i))).collect();
    assert!(!machine.wants_records());
    on(&mut machine, Event::Completed(records[..5].to_vec()), 1);
    assert!(!machine.wants_records());
    on(&mut machine, Event::Completed(records[5..6].to_vec()), 1);
    assert!(machine.wants_records());
}

#[test]
fn stopping_with_nothing_owned_is_done_at_once() {
    assert_eq!(on(&mut machine(), Event::Stop, 0), [Action::Release(vec![])]);
}

/// The database may have lost what it had answered for: nothing of it is committed, and it is read again.
#[test]
fn a_restart_commits_nothing_of_before() {
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

#[test]
fn a_halted_partition_forgets_what_a_restart_makes_doubtful() {
    let mut machine = running();
    let a = receive(&mut machine, 0, 0);
    on(&mut machine, Event::Completed(vec![a]), 1);
    on(&mut machine, Event::Halt { partition: 0, epoch: 1, reason: "newer".into() }, 2);
    assert_eq!(on(&mut machine, Event::Restart, 3), []);
    assert_eq!(on(&mut machine, Event::Tick, 60_000), []);
}

/// One record that cannot be stored, and all the others can: the ledger forgets those, so nothing has to stop.
#[test]
fn blocked_record_stops_neither_its_partition_nor_the_intake() {
    let mut machine = running();
    let first = receive(&mut machine, 0, 0);
    on(&mut machine, Event::Blocked(vec![first]), 1);
    for offset in 1..10_000 {
        let record = receive(&mut machine, 0, offset);
        on(&mut machine, Event::Completed(vec![record]), 1);
        assert!(machine.wants_records());
    }
    let held = machine.owned[&0].ledger().map(Ledger::open);
    assert!(held.is_some_and(|held| held < 100), "{held:?}");
    on(&mut machine, Event::Unblocked(vec![first]), 2);
    on(&mut machine, Event::Completed(vec![first]), 2);
    assert_eq!(machine.owned[&0].ledger().map(|ledger| ledger.prefix().next), Some(NextOffset(10_000)));
}

/// However many partitions have blocked inboxes, half of the limits is left to those that have none.
#[test]
fn blocked_records_never_fill_the_limits() {
    const PARTITIONS: Partition = 12;
    let settings = Settings {
        max_inflight_bytes: 1 << 30,
        max_inflight_records: 2000,
        max_partition_bytes: 1 << 29,
        max_partition_records: 1000,
        ..machine().settings
    };
    let mut machine = Machine::new(settings);
    on(&mut machine, Event::Assigned((0..PARTITIONS).collect()), 0);
    for partition in 0..PARTITIONS {
        let epoch = machine.owned[&partition].epoch;
        let start = at(0).into();
        on(&mut machine, Event::StartResolved { partition, epoch, start, topic_id: Uuid::nil(), dead: vec![] }, 0);
    }
    let mut blocked = Vec::new();
    for partition in 0..PARTITIONS {
        // Everything that this partition hands over goes to a blocked inbox, until it is throttled.
        for offset in 0.. {
            let mut actions = Vec::new();
            let offset = RecordOffset(offset);
            let epoch = machine.receive(partition, (offset, LeaderEpoch(0)), 10, &mut actions).expect("it is ours");
            let record = RecordRef { partition, epoch, offset, bytes: 10 };
            blocked.push(record);
            actions.extend(on(&mut machine, Event::Blocked(vec![record]), 1));
            if actions.contains(&Action::Throttle { partition }) {
                break;
            }
        }
        assert!(machine.wants_records(), "partition {partition}");
    }
    let held = machine.inflight().1;
    assert!((500..1000 + 12).contains(&held), "{held}");
    // The other half is filled, and empties: it opens again although the blocked records alone are about half of the limit.
    on(&mut machine, Event::Assigned(vec![PARTITIONS]), 1);
    let epoch = machine.owned[&PARTITIONS].epoch;
    let start = at(0).into();
    let (partition, topic_id) = (PARTITIONS, Uuid::nil());
    on(&mut machine, Event::StartResolved { partition, epoch, start, topic_id, dead: vec![] }, 1);
    let mut others = Vec::new();
    for offset in 0.. {
        if !machine.wants_records() {
            break;
        }
        let offset = RecordOffset(offset);
        machine.receive(partition, (offset, LeaderEpoch(0)), 10, &mut Vec::new()).expect("it is ours");
        others.push(RecordRef { partition, epoch, offset, bytes: 10 });
    }
    on(&mut machine, Event::Completed(others), 2);
    assert!(machine.wants_records());
    // All of it is stored, and every partition goes on.
    on(&mut machine, Event::Unblocked(blocked.clone()), 2);
    let actions = on(&mut machine, Event::Completed(blocked), 2);
    assert_eq!(machine.blocked, 0);
    assert!(actions.iter().all(|action| !matches!(action, Action::Throttle { .. })));
    assert!(
        machine.owned.values_mut().all(|owned| owned.throttle_change(&machine.settings, 0).is_none()),
        "all were unpaused"
    );
}

#[test]
fn partition_above_its_share_is_throttled_until_reassigned() {
    let mut machine = running();
    let records: Vec<_> = (0..7).map(|offset| receive(&mut machine, 0, offset)).collect();
    let mut actions = Vec::new();
    machine.receive(0, (RecordOffset(7), LeaderEpoch(0)), 100, &mut actions).expect("what is handed over is taken");
    assert_eq!(actions, [Action::Throttle { partition: 0 }]);
    assert!(machine.wants_records(), "of the others");
    assert_eq!(on(&mut machine, Event::Completed(records[..4].to_vec()), 1), []);
    assert_eq!(on(&mut machine, Event::Completed(records[4..5].to_vec()), 1), [Action::Unthrottle { partition: 0 }]);
}

#[test]
fn too_many_dead_letters_halt_the_partition_until_somebody_looks() {
    let mut machine = running();
    let [a, b] = [0, 1].map(|offset| receive(&mut machine, 0, offset));
    assert_eq!(
        on(&mut machine, Event::DeadLettersRequested { lane: 3, dead: vec![a] }, 1),
        [Action::DeadLettersApproved { lane: 3 }]
    );
    let actions = on(&mut machine, Event::DeadLettersRequested { lane: 3, dead: vec![a, b] }, 1);
    let [
        Action::StopFetching { .. },
        Action::Fence { epoch: 1 },
        Action::Halted { .. },
        Action::DeadLettersApproved { lane: 3 },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}")
    };
    on(&mut machine, Event::Dropped(vec![a, b]), 2);
    assert_eq!(
        on(&mut machine, Event::Resumed(vec![0, 1]), 3),
        [
            Action::Fence { epoch: 1 },
            Action::Unhalted { partition: 0 },
            Action::ResolveStart { partition: 0, epoch: 2 }
        ]
    );
}

fn failure(damaged: bool) -> Event {
    let failure = FetchFailure { offset: None, damaged, text: "why".into(), jitter: 1.0 };
    Event::FetchFailed { partition: 0, failure }
}

fn failing(at: i64, attempts: u32) -> [Action; 2] {
    let failing = Action::FetchFailing { partition: 0, at: NextOffset(at), attempts, text: "why".into() };
    [Action::StopFetching { partition: 0 }, failing]
}

/// Resolves the start of what is fetched again, at its beginning.
fn fetch_again(machine: &mut Machine, epoch: Epoch, now: Millis) {
    let (start, topic_id) = (at(0).into(), Uuid::nil());
    on(machine, Event::StartResolved { partition: 0, epoch, start, topic_id, dead: vec![] }, now);
    on(machine, Event::ProgressSaved, now);
    on(machine, Event::Committed, now);
}

#[test]
fn failing_fetch_backs_off_up_to_the_longest_wait() {
    let mut machine = running();
    let mut now = 0;
    for (attempt, wait) in [(1, 100), (2, 200), (3, 400), (4, 400)] {
        assert_eq!(on(&mut machine, failure(false), now), failing(0, attempt));
        assert_eq!(on(&mut machine, failure(false), now), [], "it is not fetched");
        assert_eq!(on(&mut machine, Event::Tick, now + wait - 1), []);
        now += wait;
        let again = on(&mut machine, Event::Tick, now);
        let epoch = u64::from(attempt) + 1;
        assert!(again.contains(&Action::ResolveStart { partition: 0, epoch }), "{again:?}");
        fetch_again(&mut machine, epoch, now);
    }
    // The record that could not be fetched.
    let mut actions = Vec::new();
    machine.receive(0, (RecordOffset(0), LeaderEpoch(0)), 1, &mut actions).expect("it is ours");
    assert_eq!(actions, [Action::FetchRecovered { partition: 0 }]);
    assert_eq!(on(&mut machine, failure(false), now), failing(1, 1));
}

#[test]
fn restart_does_not_cut_a_wait_for_the_next_fetch_short() {
    let mut machine = running();
    on(&mut machine, failure(false), 0);
    let restart = on(&mut machine, Event::Restart, 50);
    assert_eq!(restart, [Action::StopFetching { partition: 0 }, Action::Fence { epoch: 1 }]);
    assert_eq!(on(&mut machine, Event::Tick, 99), []);
    assert_eq!(on(&mut machine, Event::Tick, 100), [Action::ResolveStart { partition: 0, epoch: 2 }]);
}

#[test]
fn fetch_without_records_recovers_when_no_error_comes() {
    let mut machine = running();
    on(&mut machine, failure(false), 0);
    on(&mut machine, Event::Tick, 100);
    fetch_again(&mut machine, 2, 100);
    assert_eq!(on(&mut machine, Event::Tick, 1099), []);
    assert_eq!(on(&mut machine, Event::Tick, 1100), [Action::FetchRecovered { partition: 0 }]);
}

#[test]
fn damage_halts_at_the_second_attempt_and_keeps_what_came_before() {
    let mut machine = running();
    receive(&mut machine, 0, 0);
    assert_eq!(on(&mut machine, failure(true), 0), failing(1, 1));
    assert_eq!(
        machine.receive(0, (RecordOffset(5), LeaderEpoch(0)), 1, &mut Vec::new()),
        None,
        "it lies behind the damage"
    );
    on(&mut machine, Event::Tick, 100);
    fetch_again(&mut machine, 2, 100);
    let before = receive(&mut machine, 0, 0);
    let halted = Action::Halted { partition: 0, reason: "offset 1: why".into() };
    let expected = [Action::StopFetching { partition: 0 }, halted, Action::FetchRecovered { partition: 0 }];
    assert_eq!(on(&mut machine, failure(true), 100), expected);
    assert_eq!(machine.receive(0, (RecordOffset(5), LeaderEpoch(0)), 1, &mut Vec::new()), None);
    on(&mut machine, Event::Completed(vec![before]), 100);
    let saved = on(&mut machine, Event::Tick, 5000);
    assert_eq!(saved, [Action::SaveProgress(vec![point(0, 2, 1)])], "what came before is stored");
    let resumed = on(&mut machine, Event::Resumed(vec![0]), 5000);
    assert!(resumed.contains(&Action::ResolveStart { partition: 0, epoch: 3 }), "{resumed:?}");
}

/// Kafka lost the tail of the log: what was received is in no log any more, so it is stored before anything else.
#[test]
fn out_of_range_partition_restarts_once_all_is_completed() {
    let mut machine = running();
    let [a, b] = [0, 1].map(|offset| receive(&mut machine, 0, offset));
    assert_eq!(on(&mut machine, Event::OutOfRange(0), 1), []);
    assert_eq!(on(&mut machine, Event::Completed(vec![b]), 2), []);
    assert_eq!(on(&mut machine, Event::Completed(vec![a]), 3), [Action::SaveProgress(vec![point(0, 1, 2)])]);
    assert_eq!(on(&mut machine, Event::ProgressSaved, 4), [Action::Commit(vec![point(0, 1, 2)])]);
    assert_eq!(
        on(&mut machine, Event::Committed, 5),
        [
            Action::StopFetching { partition: 0 },
            Action::Fence { epoch: 1 },
            Action::ResolveStart { partition: 0, epoch: 2 }
        ]
    );
    let start =
        Event::StartResolved { partition: 0, epoch: 2, start: at(0).into(), topic_id: Uuid::nil(), dead: vec![] };
    on(&mut machine, start, 6);
    on(&mut machine, Event::ProgressSaved, 7);
    on(&mut machine, Event::Committed, 8);
    assert_eq!(on(&mut machine, Event::Tick, 9), [], "it restarts once");
}
