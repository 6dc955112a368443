//! The order of the driver's calls. One struct stands for Kafka and the rest of the process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::consumer::start::Start;
use crate::consumer::{CommitPoint, FetchError, LaneNumber, Limit, RecordRef, Settings};
use crate::{LeaderEpoch, NextOffset, Progress, RecordOffset};

#[derive(Clone, Copy, Debug)]
struct Plain(Partition, i64);

impl Record for Plain {
    fn partition(&self) -> Partition {
        self.0
    }

    fn offset(&self) -> RecordOffset {
        RecordOffset(self.1)
    }

    fn leader_epoch(&self) -> LeaderEpoch {
        LeaderEpoch(0)
    }

    fn cost(&self) -> usize {
        1
    }

    fn key(&self) -> Option<&[u8]> {
        None
    }
}

#[derive(Default)]
struct Outside {
    now: Millis,
    events: VecDeque<Happened>,
    reported: VecDeque<Event>,
    records: VecDeque<Plain>,
    results: VecDeque<(usize, Result<(), Infallible>)>,
    calls: Vec<String>,
    waits: Vec<Millis>,
    passed: Vec<RecordRef>,
}

impl Kafka for Outside {
    type Record = Plain;
    type Error = Infallible;

    fn poll(&mut self) -> Option<Happened> {
        self.events.pop_front()
    }

    fn is_assignment_lost(&mut self) -> bool {
        false
    }

    fn incremental_assign(&mut self, starting: &BTreeMap<Partition, FetchStart>) -> Result<(), Infallible> {
        self.calls.push(format!("assign {:?}", starting.keys()));
        Ok(())
    }

    fn incremental_unassign(&mut self, partitions: &BTreeSet<Partition>) -> Result<(), Infallible> {
        self.calls.push(format!("unassign {partitions:?}"));
        Ok(())
    }

    fn forward(&mut self, _partition: Partition) {}

    fn stop_forwarding(&mut self, partition: Partition) {
        self.calls.push(format!("stop forwarding {partition}"));
    }

    fn consume(&mut self, wait: Millis, into: &mut Vec<Fetched<Plain>>) {
        self.waits.push(wait);
        into.extend(self.records.drain(..).map(Fetched::Record));
    }

    fn topic_is(&self) -> TopicIs {
        TopicIs::Same
    }

    fn commit(&mut self, points: &[CommitPoint], round: usize) -> Result<(), Infallible> {
        self.calls.push(format!("commit {} as {round}", points[0].next));
        Ok(())
    }

    fn poll_commit(&mut self) -> Option<(usize, Result<(), Infallible>)> {
        self.results.pop_front()
    }
}

impl Surroundings<Plain> for Outside {
    fn now(&self) -> Millis {
        self.now
    }

    fn next_event(&mut self, _wait: Millis) -> Option<Event> {
        self.reported.pop_front()
    }

    fn lanes(&self) -> usize {
        1
    }

    fn pass(&mut self, _lane: LaneNumber, record: Plain, assignment: &Arc<Assignment>) {
        let (partition, offset) = (record.0, record.offset());
        self.passed.push(RecordRef { partition, epoch: assignment.epoch, offset, bytes: 1 });
    }

    fn approve_dead_letters(&mut self, _lane: LaneNumber) {}

    /// Resolves each start offset to 0.
    fn resolve(&mut self, assignments: Vec<(Partition, Arc<Assignment>)>, _retried: BTreeSet<Partition>) {
        for (partition, assignment) in assignments {
            assignment.start_read(Uuid::nil(), 1);
            let start = Start::At(Progress { next: NextOffset(0), leader_epoch: LeaderEpoch(0) }).into();
            let (epoch, topic_id, dead) = (assignment.epoch, Uuid::nil(), Vec::new());
            self.reported.push_back(Event::StartResolved { partition, epoch, start, topic_id, dead });
        }
    }

    fn save_progress(&mut self, _rows: Vec<ProgressRow>) {
        self.reported.push_back(Event::ProgressSaved);
    }

    fn check_database(&mut self) {}

    fn check_resumed(&mut self, _halted: Vec<Partition>) {}

    fn report(&mut self, _report: Report<'_>) {}
}

fn fetching() -> (Driver<Plain>, Outside) {
    let machine = Machine::new(Settings {
        commit_records: 1,
        commit_interval: 1000,
        max_inflight_bytes: 100,
        max_inflight_records: 100,
        max_partition_bytes: 3,
        max_partition_records: 3,
        dead_letters: Limit { count: 1, percent: 1, window: 100 },
        fetch_backoff: |_| 10,
        fetch_recovery: 10,
    });
    let times = Times { wait: 20, idle_wait: 100, drain: 100, last_commit: 100, commit: 50, check: 1_000_000 };
    let (mut driver, mut outside) = (Driver::new(machine, times), Outside::default());
    outside.events.push_back(Happened::Assigned(vec![0]));
    for _ in 0..3 {
        assert!(driver.turn(&mut outside, false));
    }
    outside.results.push_back((1, Ok(())));
    driver.turn(&mut outside, false);
    assert_eq!(outside.calls, ["assign []", "commit 0 as 1", "assign [0]"]);
    outside.calls.clear();
    outside.waits.clear();
    (driver, outside)
}

/// The partition's own queue was forwarded between the two records.
#[test]
fn stray_record_is_handled_before_the_records_after_it() {
    let (mut driver, mut outside) = fetching();
    let error = FetchError { offset: None, damaged: false, text: "another partition".into(), jitter: 0.0 };
    outside.events.push_back(Happened::FetchFailed(7, FailedFetch { error, out_of_range: false }));
    outside.events.push_back(Happened::Record(0, RecordOffset(0)));
    outside.records.push_back(Plain(0, 1));
    driver.turn(&mut outside, false);
    assert_eq!(outside.passed, [], "0 comes first");
    assert_eq!(outside.calls[0], "unassign {0}");
}

/// The lanes report what they stored, and the group waits for a commit.
#[test]
fn driver_waits_longer_only_while_nothing_is_in_flight() {
    let (mut driver, mut outside) = fetching();
    outside.records.push_back(Plain(0, 0));
    driver.turn(&mut outside, false);
    driver.turn(&mut outside, false);
    outside.reported.push_back(Event::Completed(outside.passed.clone()));
    driver.turn(&mut outside, false);
    driver.turn(&mut outside, false);
    outside.results.push_back((2, Ok(())));
    driver.turn(&mut outside, false);
    driver.turn(&mut outside, false);
    assert_eq!(outside.calls, ["commit 1 as 2"]);
    assert_eq!(outside.waits, [100, 20, 20, 20, 20, 100]);
}

#[test]
fn revocation_gets_response_when_all_is_committed() {
    let (mut driver, mut outside) = fetching();
    outside.records.push_back(Plain(0, 0));
    driver.turn(&mut outside, false);
    outside.events.push_back(Happened::Revoked(vec![0]));
    outside.events.push_back(Happened::Assigned(vec![1]));
    outside.records.push_back(Plain(0, 1));
    driver.turn(&mut outside, false);
    assert!(driver.is_releasing() && outside.calls.is_empty() && outside.passed.len() == 1);
    outside.reported.push_back(Event::Completed(outside.passed.clone()));
    driver.turn(&mut outside, false);
    assert_eq!(outside.calls, ["commit 1 as 2"]);
    outside.results.push_back((2, Ok(())));
    driver.turn(&mut outside, false);
    assert!(!driver.is_releasing());
    assert_eq!(outside.calls, ["commit 1 as 2", "unassign {0}"]);
    driver.turn(&mut outside, false);
    assert_eq!(outside.calls[2], "assign []", "the next rebalance waited");
}

#[test]
fn revocation_gets_response_after_drain_deadline() {
    let (mut driver, mut outside) = fetching();
    outside.records.push_back(Plain(0, 0));
    driver.turn(&mut outside, false);
    outside.events.push_back(Happened::Revoked(vec![0]));
    for (now, releasing) in [(99, true), (198, true), (199, false)] {
        outside.now = now;
        driver.turn(&mut outside, false);
        assert_eq!(driver.is_releasing(), releasing, "at {now}");
    }
    assert_eq!(outside.calls, ["unassign {0}"]);
}

#[test]
fn late_commit_result_does_not_end_the_current_round() {
    let (mut driver, mut outside) = fetching();
    outside.records.extend([Plain(0, 0), Plain(0, 1)]);
    driver.turn(&mut outside, false);
    for (now, record) in [(0, 0), (1050, 1)] {
        outside.now = now;
        outside.reported.push_back(Event::Completed(vec![outside.passed[record]]));
        driver.turn(&mut outside, false);
    }
    outside.now = 2100;
    for _ in 0..2 {
        driver.turn(&mut outside, false);
    }
    assert_eq!(outside.calls, ["commit 1 as 2", "commit 2 as 3"]);
    outside.results.push_back((2, Ok(())));
    driver.turn(&mut outside, false);
    assert_eq!(driver.machine().committed(0), Some(NextOffset(0)));
    outside.results.push_back((3, Ok(())));
    driver.turn(&mut outside, false);
    assert_eq!(driver.machine().committed(0), Some(NextOffset(2)));
}

#[test]
fn stop_drains_and_commits_before_it_ends() {
    let (mut driver, mut outside) = fetching();
    outside.records.push_back(Plain(0, 0));
    driver.turn(&mut outside, false);
    assert!(driver.turn(&mut outside, true));
    outside.reported.push_back(Event::Completed(outside.passed.clone()));
    assert!(driver.turn(&mut outside, true));
    outside.results.push_back((2, Ok(())));
    assert!(!driver.turn(&mut outside, true));
    assert_eq!(outside.calls, ["commit 1 as 2"]);
}

#[test]
fn throttled_records_are_passed_before_later_ones() {
    let (mut driver, mut outside) = fetching();
    outside.records.extend((0..5).map(|offset| Plain(0, offset)));
    driver.turn(&mut outside, false);
    assert_eq!((outside.passed.len(), outside.calls.as_slice()), (3, ["stop forwarding 0".to_owned()].as_slice()));
    outside.records.push_back(Plain(0, 5));
    outside.reported.push_back(Event::Completed(outside.passed.clone()));
    for _ in 0..2 {
        driver.turn(&mut outside, false);
    }
    let offsets: Vec<i64> = outside.passed.iter().map(|record| record.offset.0).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5]);
}
