//! The events that the consumer's machine receives, and the actions that it returns.

use uuid::Uuid;

use super::commit::CommitPoint;
use super::start::Decision;
use crate::{Epoch, NextOffset, Partition, Progress, RecordOffset};

/// The number of a lane, from 0.
pub type LaneNumber = usize;

/// Identifies a record that was passed to a lane. `epoch` is the assignment that it was received under; `bytes` is its
/// share of the limits on bytes in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef {
    pub partition: Partition,
    pub epoch: Epoch,
    pub offset: RecordOffset,
    pub bytes: usize,
}

/// Why a partition cannot be fetched.
#[derive(Clone, Debug)]
pub struct FetchError {
    /// The first offset that was not fetched, if it is known.
    pub offset: Option<RecordOffset>,
    /// Whether the records are in the log and cannot be read. Then the partition is halted after the second attempt.
    pub damaged: bool,
    /// The error and the advice, for operators.
    pub text: String,
    /// A random number from 0 to 1: the share of the longest backoff to wait before the next attempt.
    pub jitter: f64,
}

/// An event that the machine reacts to.
#[derive(Clone, Debug)]
pub enum Event {
    /// The group assigned these partitions.
    Assigned(Vec<Partition>),
    /// The start offset of an assignment was resolved, with the topic's ID and the offsets of the dead letters that
    /// count for the limit.
    StartResolved { partition: Partition, epoch: Epoch, start: Decision, topic_id: Uuid, dead: Vec<RecordOffset> },
    /// These records were stored or dead-lettered, and the COMMIT succeeded.
    Completed(Vec<RecordRef>),
    /// A lane dropped these records without storing them, because of a fence or a halt.
    Dropped(Vec<RecordRef>),
    /// These records wait in inboxes that cannot be written for now.
    Blocked(Vec<RecordRef>),
    /// These records left their blocked inboxes: they will be completed or dropped.
    Unblocked(Vec<RecordRef>),
    /// A lane requests to dead-letter these records, and waits for `DeadLettersApproved`.
    DeadLettersRequested { lane: LaneNumber, dead: Vec<RecordRef> },
    /// This partition must be halted.
    Halt { partition: Partition, epoch: Epoch, reason: String },
    /// An operator resumed these halted partitions.
    Resumed(Vec<Partition>),
    /// The database may have lost rows: restart every partition.
    Restart,
    /// The records of a partition may not continue those received before, or the database may have lost rows: restart
    /// it.
    RestartPartition(Partition),
    /// The fetch of a partition failed. The records received before the error count.
    FetchFailed { partition: Partition, error: FetchError },
    /// The next record of this partition is not in its log. Kafka may have lost the log's tail. Then the records in the
    /// lanes exist nowhere else, so they are completed before the start offset is resolved again.
    OutOfRange(Partition),
    /// The progress rows were written.
    ProgressSaved,
    /// Writing the progress rows failed or timed out.
    ProgressFailed,
    /// The offsets were committed.
    Committed,
    /// The offset commit failed or timed out.
    CommitFailed,
    /// The group revoked these partitions, and waits until they are released.
    Revoked(Vec<Partition>),
    /// These partitions are lost: the group may have assigned them to another member.
    Lost(Vec<Partition>),
    /// The process must stop.
    Stop,
    /// The drain's deadline passed: records that are not stored yet are abandoned.
    DrainExpired,
    /// The release's deadline passed: partitions are released although their offsets are not committed.
    ReleaseExpired,
    /// Time passed.
    Tick,
}

/// An action that the driver has to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Resolve the start offset of this assignment.
    ResolveStart { partition: Partition, epoch: Epoch },
    /// Fetch the partition from this position. It is not throttled, whatever it was before.
    Fetch { partition: Partition, epoch: Epoch, from: Progress },
    /// Stop fetching the partition.
    StopFetching { partition: Partition },
    /// Pass no further records of this partition to the lanes for now.
    Throttle { partition: Partition },
    /// Pass records of this partition to the lanes again, starting with those that waited.
    Unthrottle { partition: Partition },
    /// Fence the assignment: nothing received under it may be written any more.
    Fence { epoch: Epoch },
    /// The lane may write the dead letters that it requested, except those of fenced assignments.
    DeadLettersApproved { lane: LaneNumber },
    /// Report that the partition is halted until an operator acts.
    Halted { partition: Partition, reason: String },
    /// Report that the partition is not halted any more.
    Unhalted { partition: Partition },
    /// Report that the fetch of the partition failed `attempts` times in a row; it is retried after a backoff.
    FetchFailing { partition: Partition, at: NextOffset, attempts: u32, text: String },
    /// Report that the fetch of the partition does not fail any more, after `attempts` failed in a row.
    FetchRecovered { partition: Partition, attempts: u32 },
    /// Write these progress rows.
    SaveProgress(Vec<CommitPoint>),
    /// Commit these offsets: their progress rows were written.
    Commit(Vec<CommitPoint>),
    /// Release these partitions: the group may assign them to another member.
    Release(Vec<Partition>),
}
