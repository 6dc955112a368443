//! The two traits through which the driver reaches what is outside: Kafka, and the rest of the process. The service implements
//! them with librdkafka and tasks, the simulator with models.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::failing::Failing;
use crate::consumer::{Action, CommitPoint, Event, FetchFailure, LaneNumber};
use crate::{Assignment, ConnectionNumber, Epoch, LeaderEpoch, Millis, NextOffset, Partition, Progress, RecordOffset};

/// A record as the consumer receives it.
pub trait Record {
    /// Its partition.
    fn partition(&self) -> Partition;
    /// Its offset.
    fn offset(&self) -> RecordOffset;
    /// That of the leader which appended it.
    fn leader_epoch(&self) -> LeaderEpoch;
    /// What it counts for the limit on bytes in flight.
    fn cost(&self) -> usize;
    /// Its key, which decides on its lane.
    fn key(&self) -> Option<&[u8]>;
}

/// Why a partition's next record was not fetched.
#[derive(Clone, Debug)]
pub struct FetchError {
    /// For the machine.
    pub failure: FetchFailure,
    /// The next record is not in the log: it was deleted, or Kafka lost the log's tail.
    pub out_of_range: bool,
}

/// What comes of a partition, in its order.
#[derive(Clone, Debug)]
pub enum Fetched<R> {
    /// A record.
    Record(R),
    /// What follows the records before it could not be fetched.
    Failed(Partition, FetchError),
}

impl<R: Record> Fetched<R> {
    /// Its partition.
    pub fn partition(&self) -> Partition {
        match self {
            Fetched::Record(record) => record.partition(),
            Fetched::Failed(partition, _) => *partition,
        }
    }
}

/// What the consumer's queue of events holds for the driver.
#[derive(Clone, Debug)]
pub enum Happened {
    /// The group assigns these, and waits for a response.
    Assigned(Vec<Partition>),
    /// The group revokes these, and waits for a response. They may be lost: `Kafka::is_assignment_lost`.
    Revoked(Vec<Partition>),
    /// The fetch of a partition ended in an error, outside the order of its records.
    FetchFailed(Partition, FetchError),
    /// A record came here, because its partition's own queue was not taken over when it was fetched.
    Record(Partition, RecordOffset),
}

/// What is known of the topic for which the client was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicIs {
    /// Nothing else is known.
    Same,
    /// Deleted, as far as is known.
    Missing,
    /// Deleted, and another one has its name: offsets of the old one must not be committed for it.
    Another,
}

/// Kafka's client. Two of its traps are the reason for most of the driver:
///
/// - While the group waits for the response to an assignment (a revocation), the first call of `incremental_assign`
///   (`incremental_unassign`) is taken for it, whatever it is about.
/// - A partition's own queue is not forwarded any more when its fetch has stopped, and that can be after the next one was started.
pub trait Kafka {
    /// Records.
    type Record: Record;

    /// The next event, if there is one.
    fn poll(&mut self) -> Option<Happened>;

    /// Whether the partitions of the present revocation may be another member's already.
    fn is_assignment_lost(&mut self) -> bool;

    /// Starts fetching these. With none of them it only responds to the group. If one cannot be fetched, none is.
    fn incremental_assign(&mut self, starting: &BTreeMap<Partition, (Epoch, Progress)>) -> Result<(), String>;

    /// Stops fetching these and discards what was fetched of them; with none of them it only responds to the group.
    fn incremental_unassign(&mut self, partitions: &BTreeSet<Partition>) -> Result<(), String>;

    /// Sends the partition's records to the queue of records from now on, those first that wait in its own.
    fn take_over(&mut self, partition: Partition);

    /// Leaves the partition's records in its own queue from now on.
    fn hold_back(&mut self, partition: Partition);

    /// Takes a chunk from the queue of records, and waits up to `wait` for the first one.
    fn consume(&mut self, wait: Millis, into: &mut Vec<Fetched<Self::Record>>);

    /// What is known of the topic.
    fn topic_is(&self) -> TopicIs;

    /// Sends a commit of offsets. Its result comes by `poll_commit`, with this number.
    fn commit(&mut self, points: &[CommitPoint], round: usize) -> Result<(), String>;

    /// The next result of a commit, if there is one.
    fn poll_commit(&mut self) -> Option<(usize, Result<(), String>)>;
}

/// The rest of the process: lanes, tasks, the clock, and what is reported to operators.
pub trait Surroundings<R> {
    /// On a clock that never goes back.
    fn now(&self) -> Millis;

    /// What lanes and tasks report: the next event, waited for up to `wait`.
    fn next_event(&mut self, wait: Millis) -> Option<Event>;

    /// How many lanes there are.
    fn lanes(&self) -> usize;

    /// Passes a record to a lane.
    fn pass(&mut self, lane: LaneNumber, record: R, assignment: &Arc<Assignment>);

    /// The lane may write the dead letters that it has asked for.
    fn approve_dead_letters(&mut self, lane: LaneNumber);

    /// Starts a task that finds out where these assignments start, and reports `Event::StartResolved` for each. `retried` are the
    /// partitions whose fetch fails.
    fn resolve(&mut self, assignments: Vec<(Partition, Arc<Assignment>)>, retried: BTreeSet<Partition>);

    /// Starts a task that writes these rows and reports `Event::ProgressSaved`, or `Event::ProgressFailed` and `Event::Restart`.
    fn save_progress(&mut self, rows: Vec<ProgressRow>);

    /// Starts a task that reports `Event::Restart` if the database may have lost rows.
    fn check_database(&mut self);

    /// Starts a task that reports `Event::Resumed` if an operator has resumed some of these.
    fn check_resumed(&mut self, halted: Vec<Partition>);

    /// For logs, metrics and readiness.
    fn report(&mut self, report: Report<'_>);
}

/// All that is outside.
pub trait Io: Kafka + Surroundings<<Self as Kafka>::Record> {}

impl<T: Kafka + Surroundings<<T as Kafka>::Record>> Io for T {}

/// How far a partition is stored.
#[derive(Clone, Copy, Debug)]
pub struct ProgressRow {
    /// Of which topic.
    pub topic_id: Uuid,
    /// Which one.
    pub partition: Partition,
    /// Everything below is stored.
    pub progress: Progress,
    /// Over which connection its start was read.
    pub connection_number: ConnectionNumber,
}

/// What is being done with a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its start offset is not known yet.
    Resolving,
    /// It is fetched.
    Fetching,
    /// It is fetched, and has its share of the limits in flight.
    Throttled,
    /// Its fetch fails, and is retried.
    Failing,
    /// An operator has to act.
    Halted,
}

impl State {
    /// In words.
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

/// What the driver reports.
#[derive(Debug)]
pub enum Report<'a> {
    /// The machine gets this event.
    Event(&'a Event),
    /// The machine wants this to be done.
    Action(&'a Action),
    /// A record was received, under this assignment if it is wanted.
    Received(RecordOffset, Partition, Option<Epoch>),
    /// The group has assigned these.
    Assigned(&'a [Partition]),
    /// The group revokes these.
    Revoked(&'a [Partition]),
    /// The group has given these to other members.
    Lost(&'a [Partition]),
    /// A record came by the queue of events.
    Strayed(Partition, RecordOffset),
    /// The drain's deadline has passed.
    DrainExpired,
    /// The deadline for the last commit has passed.
    ReleaseExpired,
    /// A partition is fetched from here on.
    Fetching {
        /// Which one.
        partition: Partition,
        /// From where.
        from: Progress,
        /// Whether that is one more attempt.
        retried: bool,
    },
    /// The client rejects this.
    Rejected(&'static str, &'a str),
    /// All partitions that are halted, and why.
    Halted(&'a BTreeMap<Partition, String>),
    /// All partitions whose fetch fails.
    Failing(&'a BTreeMap<Partition, Failing>),
    /// A partition whose fetch failed is fetched again, after so many attempts.
    Recovered(Partition, u32),
    /// So many records came from Kafka.
    Consumed(usize),
    /// The result of a commit.
    Committed(Result<(), &'a str>),
    /// What is being done with each partition.
    States(&'a [(Partition, State)]),
    /// What is expected next of each partition that is fetched; `None`: nothing is consumed for now.
    Expected(Option<&'a [(Partition, NextOffset)]>),
    /// The end of a turn.
    Turn {
        /// Bytes and records in the lanes.
        inflight: (usize, usize),
        /// How many partitions are throttled.
        throttled: usize,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}
