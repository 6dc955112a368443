//! The limits on records in flight.

use super::*;

#[test]
fn consuming_resumes_when_half_of_the_limits_is_free() {
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

/// One record cannot be stored, and all others can: the ledger forgets those, so nothing has to stop.
#[test]
fn blocked_record_stops_neither_partition_nor_consuming() {
    let mut machine = running();
    let first = receive(&mut machine, 0, 0);
    on(&mut machine, Event::Blocked(vec![first]), 1);
    for offset in 1..10_000 {
        let record = receive(&mut machine, 0, offset);
        on(&mut machine, Event::Completed(vec![record]), 1);
        assert!(machine.wants_records());
    }
    let open = machine.owned[&0].ledger().map(Ledger::open);
    assert!(open.is_some_and(|open| open < 100), "{open:?}");
    on(&mut machine, Event::Unblocked(vec![first]), 2);
    on(&mut machine, Event::Completed(vec![first]), 2);
    assert_eq!(machine.owned[&0].ledger().map(|ledger| ledger.prefix().next), Some(NextOffset(10_000)));
}

/// Half of the limits is free for partitions without blocked inboxes, however many other partitions have some.
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
        // All records of this partition belong to a blocked inbox, until it is throttled.
        for offset in 0.. {
            let mut actions = Vec::new();
            let offset = RecordOffset(offset);
            let epoch = machine
                .receive(partition, (offset, LeaderEpoch(0)), 10, &mut actions)
                .expect("the partition is fetched");
            let record = RecordRef { partition, epoch, offset, bytes: 10 };
            blocked.push(record);
            actions.extend(on(&mut machine, Event::Blocked(vec![record]), 1));
            if actions.contains(&Action::Throttle { partition }) {
                break;
            }
        }
        assert!(machine.wants_records(), "partition {partition}");
    }
    let open = machine.inflight().1;
    assert!((500..1000 + 12).contains(&open), "{open}");
    // The other half is filled, and emptied: consuming resumes although the blocked records alone are about half of the
    // limit.
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
        machine.receive(partition, (offset, LeaderEpoch(0)), 10, &mut Vec::new()).expect("the partition is fetched");
        others.push(RecordRef { partition, epoch, offset, bytes: 10 });
    }
    on(&mut machine, Event::Completed(others), 2);
    assert!(machine.wants_records());
    // All records are stored, and every partition continues.
    on(&mut machine, Event::Unblocked(blocked.clone()), 2);
    let actions = on(&mut machine, Event::Completed(blocked), 2);
    assert_eq!(machine.blocked, 0);
    assert!(actions.iter().all(|action| !matches!(action, Action::Throttle { .. })));
    assert!(
        machine.owned.values_mut().all(|owned| owned.throttle_change(&machine.settings, 0).is_none()),
        "all were unthrottled"
    );
}

#[test]
fn partition_above_its_share_is_throttled_until_reassigned() {
    let mut machine = running();
    let records: Vec<_> = (0..7).map(|offset| receive(&mut machine, 0, offset)).collect();
    let mut actions = Vec::new();
    machine.receive(0, (RecordOffset(7), LeaderEpoch(0)), 100, &mut actions).expect("the partition is fetched");
    assert_eq!(actions, [Action::Throttle { partition: 0 }]);
    assert!(machine.wants_records(), "other partitions are consumed");
    assert_eq!(on(&mut machine, Event::Completed(records[..4].to_vec()), 1), []);
    assert_eq!(on(&mut machine, Event::Completed(records[4..5].to_vec()), 1), [Action::Unthrottle { partition: 0 }]);
}
