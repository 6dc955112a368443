//! Fetches that fail, and partitions that restart.

use super::*;

#[test]
fn lower_offset_restarts_the_partition() {
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

fn error(damaged: bool) -> Event {
    let error = FetchError { offset: None, damaged, text: "why".into(), jitter: 1.0 };
    Event::FetchFailed { partition: 0, error }
}

fn failing(at: i64, attempts: u32) -> [Action; 2] {
    let failing = Action::FetchFailing { partition: 0, at: NextOffset(at), attempts, text: "why".into() };
    [Action::StopFetching { partition: 0 }, failing]
}

/// Resolves the start offset of the next fetch to 0.
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
        assert_eq!(on(&mut machine, error(false), now), failing(0, attempt));
        assert_eq!(on(&mut machine, error(false), now), [], "it is not fetched");
        assert_eq!(on(&mut machine, Event::Tick, now + wait - 1), []);
        now += wait;
        let again = on(&mut machine, Event::Tick, now);
        let epoch = u64::from(attempt) + 1;
        assert!(again.contains(&Action::ResolveStart { partition: 0, epoch }), "{again:?}");
        fetch_again(&mut machine, epoch, now);
    }
    // The record that could not be fetched before.
    let mut actions = Vec::new();
    machine.receive(0, (RecordOffset(0), LeaderEpoch(0)), 1, &mut actions).expect("the partition is fetched");
    assert_eq!(actions, [Action::FetchRecovered { partition: 0, attempts: 4 }]);
    assert_eq!(on(&mut machine, error(false), now), failing(1, 1));
}

#[test]
fn restart_does_not_shorten_the_backoff_of_a_fetch() {
    let mut machine = running();
    on(&mut machine, error(false), 0);
    let restart = on(&mut machine, Event::Restart, 50);
    assert_eq!(restart, [Action::StopFetching { partition: 0 }, Action::Fence { epoch: 1 }]);
    assert_eq!(on(&mut machine, Event::Tick, 99), []);
    assert_eq!(on(&mut machine, Event::Tick, 100), [Action::ResolveStart { partition: 0, epoch: 2 }]);
}

#[test]
fn fetch_without_records_recovers_when_no_error_follows() {
    let mut machine = running();
    on(&mut machine, error(false), 0);
    on(&mut machine, Event::Tick, 100);
    fetch_again(&mut machine, 2, 100);
    assert_eq!(on(&mut machine, Event::Tick, 1099), []);
    assert_eq!(on(&mut machine, Event::Tick, 1100), [Action::FetchRecovered { partition: 0, attempts: 1 }]);
}

#[test]
fn damage_halts_at_second_attempt_after_earlier_records() {
    let mut machine = running();
    receive(&mut machine, 0, 0);
    assert_eq!(on(&mut machine, error(true), 0), failing(1, 1));
    assert_eq!(
        machine.receive(0, (RecordOffset(5), LeaderEpoch(0)), 1, &mut Vec::new()),
        None,
        "it follows the damaged record"
    );
    on(&mut machine, Event::Tick, 100);
    fetch_again(&mut machine, 2, 100);
    let before = receive(&mut machine, 0, 0);
    let halted = Action::Halted { partition: 0, reason: "offset 1: why".into() };
    let recovered = Action::FetchRecovered { partition: 0, attempts: 1 };
    let expected = [Action::StopFetching { partition: 0 }, halted, recovered];
    assert_eq!(on(&mut machine, error(true), 100), expected);
    assert_eq!(machine.receive(0, (RecordOffset(5), LeaderEpoch(0)), 1, &mut Vec::new()), None);
    on(&mut machine, Event::Completed(vec![before]), 100);
    let saved = on(&mut machine, Event::Tick, 5000);
    assert_eq!(saved, [Action::SaveProgress(vec![point(0, 2, 1)])], "the record before the damage is stored");
    let resumed = on(&mut machine, Event::Resumed(vec![0]), 5000);
    assert!(resumed.contains(&Action::ResolveStart { partition: 0, epoch: 3 }), "{resumed:?}");
}

/// Kafka lost the tail of the log: no log has the received records any more, so they are stored before anything else.
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
