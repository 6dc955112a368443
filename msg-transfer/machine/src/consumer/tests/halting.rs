//! Halted partitions.

use super::*;

#[test]
fn halted_partition_commits_only_completed_records() {
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
fn restart_discards_the_prefix_of_a_halted_partition() {
    let mut machine = running();
    let a = receive(&mut machine, 0, 0);
    on(&mut machine, Event::Completed(vec![a]), 1);
    on(&mut machine, Event::Halt { partition: 0, epoch: 1, reason: "newer".into() }, 2);
    assert_eq!(on(&mut machine, Event::Restart, 3), []);
    assert_eq!(on(&mut machine, Event::Tick, 60_000), []);
}

#[test]
fn dead_letter_limit_halts_partition_until_resume() {
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
