//! The two traits through which the driver reaches Kafka and the rest of the process. The service implements them with
//! librdkafka and tasks, the simulator with models.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::consumer::{Action, CommitPoint, Event, Failing, FetchError, LaneNumber};
use crate::{Assignment, ConnectionNumber, Epoch, LeaderEpoch, Millis, NextOffset, Partition, Progress, RecordOffset};

/// A record as the consumer receives it.
pub trait Record {
    fn partition(&self) -> Partition;
    fn offset(&self) -> RecordOffset;
    /// Returns the epoch of the leader that appended it.
    fn leader_epoch(&self) -> LeaderEpoch;
    /// Returns its share of the limits on bytes in flight.
    fn cost(&self) -> usize;
    /// Returns its key, which determines its lane.
    fn key(&self) -> Option<&[u8]>;
}

/// Why a partition's next record was not fetched.
#[derive(Clone, Debug)]
pub struct FailedFetch {
    /// The error, for the consumer's machine.
    pub error: FetchError,
    /// Whether the next record is not in the log: it was deleted, or Kafka lost the log's tail.
    pub out_of_range: bool,
}

/// A record of a partition or the error of its fetch, in the order of the log.
#[derive(Clone, Debug)]
pub enum Fetched<R> {
    /// A record, the next one of its partition in the log.
    Record(R),
    /// The records from here on could not be fetched.
    Failed(Partition, FailedFetch),
}

impl<R: Record> Fetched<R> {
    /// Returns the partition that the record or the error belongs to.
    pub fn partition(&self) -> Partition {
        match self {
            Fetched::Record(record) => record.partition(),
            Fetched::Failed(partition, _) => *partition,
        }
    }
}

/// An event from the consumer's queue of events.
#[derive(Clone, Debug)]
pub enum Happened {
    /// The group assigns these partitions, and waits for a response.
    Assigned(Vec<Partition>),
    /// The group revokes these partitions, and waits for a response. They may be lost: `Kafka::is_assignment_lost`.
    Revoked(Vec<Partition>),
    /// The fetch of a partition ended in an error, outside the order of its records.
    FetchFailed(Partition, FailedFetch),
    /// A record arrived in the queue of events, because its partition's own queue was not forwarded when it was
    /// fetched.
    Record(Partition, RecordOffset),
}

/// Whether the topic is still the one for which the client was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicIs {
    /// It is the same topic, as far as is known.
    Same,
    /// It was deleted, as far as is known.
    Missing,
    /// It was recreated: offsets of the old topic must not be committed for the new one.
    Another,
}

/// Kafka's client. Two of its traps are the reason for most of the driver:
///
/// - While the group waits for the response to an assignment (a revocation), the first call of `incremental_assign`
///   (`incremental_unassign`) counts as the response, whatever its partitions are.
/// - When the fetch of a partition stops, its own queue is not forwarded any more, even if the next fetch was started
///   before.
pub trait Kafka {
    /// The record as the lanes receive it.
    type Record: Record;
    /// What the client reports when it rejects a call.
    type Error: Error + 'static;

    /// Returns the next event, if one is queued.
    fn poll(&mut self) -> Option<Happened>;

    /// Returns whether the group may have assigned the revoked partitions to another member already.
    fn is_assignment_lost(&mut self) -> bool;

    /// Starts to fetch these partitions. Without partitions it only responds to the group. Fails if one cannot be
    /// fetched: then none is fetched.
    fn incremental_assign(&mut self, starting: &BTreeMap<Partition, FetchStart>) -> Result<(), Self::Error>;

    /// Stops fetching these partitions and discards their fetched records. Without partitions it only responds to the
    /// group.
    fn incremental_unassign(&mut self, partitions: &BTreeSet<Partition>) -> Result<(), Self::Error>;

    /// Forwards the partition's own queue to the queue of records from now on, including the records in it.
    fn forward(&mut self, partition: Partition);

    /// Stops forwarding the partition's own queue: records stay in it.
    fn stop_forwarding(&mut self, partition: Partition);

    /// Reads a chunk from the queue of records, and waits up to `wait` for the first one.
    fn consume(&mut self, wait: Millis, into: &mut Vec<Fetched<Self::Record>>);

    /// Returns whether the topic is still the same.
    fn topic_is(&self) -> TopicIs;

    /// Sends an offset commit. `poll_commit` returns its result with the same `round`.
    fn commit(&mut self, points: &[CommitPoint], round: usize) -> Result<(), Self::Error>;

    /// Returns the result of an offset commit, if one has arrived.
    fn poll_commit(&mut self) -> Option<(usize, Result<(), Self::Error>)>;
}

/// The rest of the process: lanes, tasks, the clock, and the reports to operators.
pub trait Surroundings<R> {
    /// Returns the time of a clock that never goes back.
    fn now(&self) -> Millis;

    /// Returns the next event from lanes and tasks. Waits for it up to `wait`.
    fn next_event(&mut self, wait: Millis) -> Option<Event>;

    /// Returns the number of lanes.
    fn lanes(&self) -> usize;

    /// Passes a record to a lane.
    fn pass(&mut self, lane: LaneNumber, record: R, assignment: &Arc<Assignment>);

    /// Notifies the lane that it may write the dead letters that it requested.
    fn approve_dead_letters(&mut self, lane: LaneNumber);

    /// Starts a task that resolves the start offsets of these assignments, and reports `Event::StartResolved` for each.
    /// `retried` are the partitions whose fetch fails.
    fn resolve(&mut self, assignments: Vec<(Partition, Arc<Assignment>)>, retried: BTreeSet<Partition>);

    /// Starts a task that writes these rows and reports `Event::ProgressSaved`, or `Event::ProgressFailed` and
    /// `Event::Restart`.
    fn save_progress(&mut self, rows: Vec<ProgressRow>);

    /// Starts a task that reports `Event::Restart` if the database may have lost rows.
    fn check_database(&mut self);

    /// Starts a task that reports `Event::Resumed` if an operator has resumed some of these partitions.
    fn check_resumed(&mut self, halted: Vec<Partition>);

    /// Reports to logs, metrics and readiness.
    fn report(&mut self, report: Report<'_>);
}

/// Everything that the driver calls.
pub trait Io: Kafka + Surroundings<<Self as Kafka>::Record> {}

impl<T: Kafka + Surroundings<<T as Kafka>::Record>> Io for T {}

/// The assignment under which a partition is fetched, and its start offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchStart {
    pub epoch: Epoch,
    pub from: Progress,
}

/// A progress row to write.
#[derive(Clone, Copy, Debug)]
pub struct ProgressRow {
    pub topic_id: Uuid,
    pub partition: Partition,
    pub progress: Progress,
    /// The number of the reference connection that the partition's start offset was read over.
    pub connection_number: ConnectionNumber,
}

/// An offset commit without a result at its deadline.
#[derive(Debug)]
pub struct CommitTimedOut;

impl fmt::Display for CommitTimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl Error for CommitTimedOut {}

/// The state of an assigned partition, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its start offset is being resolved.
    Resolving,
    /// The partition is fetched from its start offset on.
    Fetching,
    /// It is fetched, and has its share of the limits in flight.
    Throttled,
    /// Its fetch fails, and is retried.
    Failing,
    /// An operator has to act.
    Halted,
}

impl State {
    /// Returns the state in words.
    pub fn describe(self) -> &'static str {
        match self {
            State::Resolving => "its start offset is being resolved",
            State::Fetching => "it is fetched",
            State::Throttled => "it is throttled: its share of the limits is in flight",
            State::Failing => "its fetch fails",
            State::Halted => "it is halted",
        }
    }
}

/// A report of the driver.
#[derive(Debug)]
pub enum Report<'a> {
    /// The machine handles this event.
    Event(&'a Event),
    /// The driver carries this action out.
    Action(&'a Action),
    /// A record was received, under this epoch; `None` if it is dropped.
    Received(RecordOffset, Partition, Option<Epoch>),
    /// The group assigned these partitions.
    Assigned(&'a [Partition]),
    /// The group revokes these partitions.
    Revoked(&'a [Partition]),
    /// The group may have assigned these partitions to other members already.
    Lost(&'a [Partition]),
    /// A record arrived in the queue of events.
    Strayed(Partition, RecordOffset),
    /// The drain deadline passed, and records in flight are abandoned.
    DrainExpired,
    /// The deadline of the last commit passed.
    ReleaseExpired,
    /// The fetch of a partition starts. `retried`: the fetch before it failed.
    Fetching { partition: Partition, from: Progress, retried: bool },
    /// The client rejected this call with this error.
    Rejected(&'static str, &'a (dyn Error + 'static)),
    /// All halted partitions, each with the reason.
    Halted(&'a [(Partition, &'a str)]),
    /// All partitions whose fetch fails.
    Failing(&'a [(Partition, &'a Failing)]),
    /// The fetch of a partition recovered after this number of attempts.
    Recovered(Partition, u32),
    /// This number of records was consumed.
    Consumed(usize),
    /// The result of an offset commit; `CommitTimedOut` if it has none.
    Committed(Result<(), &'a (dyn Error + 'static)>),
    /// The state of each assigned partition.
    States(&'a [(Partition, State)]),
    /// The lowest offset that may be received next of each fetched partition; `None` if no record is consumed for now.
    Expected(Option<&'a [(Partition, NextOffset)]>),
    /// A turn ended, with these bytes and records in the lanes and this number of throttled partitions.
    Turn { inflight: (usize, usize), throttled: usize },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}
