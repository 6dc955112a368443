//! Records that may not be stored any more.

use super::*;

#[test]
fn batch_fenced_before_commit_is_rolled_back() {
    let mut lane = Lane::new(false);
    let request = lane.begin(vec![Msg("a", 1)]);
    lane.until(request, is_insert);
    lane.assignment.fence();
    assert_eq!(lane.on(Response::Count(1)), Request::Rollback);
    assert_eq!(lane.on(Response::Ok), Request::Done(Outcome::default()));
    assert!(matches!(&lane.events[..], [Event::Dropped(records)] if records.len() == 1));
}

#[test]
fn other_server_fences_the_whole_batch_immediately() {
    let mut lane = Lane::new(false);
    lane.begin(vec![Msg("a", 1)]);
    assert_eq!(lane.on(Response::Stale), Request::Done(Outcome::default()));
    assert!(lane.assignment.is_fenced());
    assert!(matches!(&lane.events[..], [Event::Restart, Event::Dropped(_)]));
}

/// The start offset of another partition was read again over a new connection, and that of this partition was not yet.
#[test]
fn record_started_over_earlier_connection_is_not_stored() {
    let mut lane = Lane::new(false);
    let newer = Arc::new(Assignment::new(2));
    newer.start_read(Uuid::nil(), 2);
    let entry = |(index, (assignment, msg)): (usize, (&Arc<Assignment>, Msg))| {
        let partition = Partition::try_from(index).expect("few");
        let record_ref = RecordRef { partition, epoch: assignment.epoch, offset: RecordOffset(7), bytes: 1 };
        Entry::new(assignment.clone(), record_ref, Kind::Message, msg)
    };
    let msgs = [(&lane.assignment, Msg("a", 1)), (&newer, Msg("b", 2))];
    let entries = msgs.into_iter().enumerate().map(entry).collect();
    assert_eq!(lane.machine.begin(entries, &mut lane.events), Request::Connect(2));
    assert!(lane.assignment.is_fenced() && !newer.is_fenced());
    let [Event::RestartPartition(0), Event::Dropped(dropped)] = lane.events.as_slice() else {
        panic!("{:?}", lane.events)
    };
    assert_eq!(dropped.len(), 1);
}
