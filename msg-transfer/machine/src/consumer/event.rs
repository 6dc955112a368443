//! What goes into the consumer's machine and what comes out of it.

use uuid::Uuid;

use super::commit::CommitPoint;
use super::start::Decision;
use crate::{Epoch, NextOffset, Partition, Progress, RecordOffset};

/// A lane's number.
pub type LaneNumber = usize;

/// A record that was handed to a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef {
    /// Its partition.
    pub partition: Partition,
    /// The assignment under which it was received.
    pub epoch: Epoch,
    /// Its offset.
    pub offset: RecordOffset,
    /// What it counts for the limit on bytes.
    pub bytes: usize,
}

/// Why a partition cannot be fetched.
#[derive(Clone, Debug)]
pub struct FetchFailure {
    /// The first offset that was not fetched, where it is known.
    pub offset: Option<RecordOffset>,
    /// The records are there and cannot be read: trying again does not help for long.
    pub damaged: bool,
    /// What is wrong and what to do.
    pub text: String,
    /// From 0 to 1, at random: how much of the longest wait before the next attempt.
    pub jitter: f64,
}

/// What happened.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is named as the type that it has or the word that it means")]
pub enum Event {
    /// The group gave us these partitions.
    Assigned(Vec<Partition>),
    /// Where an assignment starts is known, of which topic, and which of the records before are dead letters that count.
    StartResolved { partition: Partition, epoch: Epoch, start: Decision, topic_id: Uuid, dead: Vec<RecordOffset> },
    /// These are in the database, or in its dead letters: the COMMIT was answered.
    Completed(Vec<RecordRef>),
    /// A lane let go of these without storing them, because of a fence or a halt.
    Dropped(Vec<RecordRef>),
    /// These wait in inboxes that cannot be written for now.
    Blocked(Vec<RecordRef>),
    /// These do not wait there any more: they are about to be completed or dropped.
    Unblocked(Vec<RecordRef>),
    /// A lane is about to keep these aside, and waits for `DeadLettersApproved`.
    DeadLettersRequested { lane: LaneNumber, dead: Vec<RecordRef> },
    /// This partition must not go on.
    Halt { partition: Partition, epoch: Epoch, reason: String },
    /// Somebody looked at partitions that stand still: they may go on.
    Resumed(Vec<Partition>),
    /// What was fetched may not follow what we have, or the database may not have what we stored: start each partition
    /// anew.
    Restart,
    /// The same for one partition.
    RestartPartition(Partition),
    /// The fetch of a partition ended in an error. What was received before it counts.
    FetchFailed { partition: Partition, failure: FetchFailure },
    /// The record that follows those received is not in the partition's log. Kafka may have lost them, and then nobody else has
    /// those that are in the lanes: they are completed before the start is resolved again.
    OutOfRange(Partition),
    /// The progress rows are written.
    ProgressSaved,
    /// They may not be.
    ProgressFailed,
    /// The group's coordinator has the offsets.
    Committed,
    /// It may not.
    CommitFailed,
    /// The group takes these partitions back, and waits for us.
    Revoked(Vec<Partition>),
    /// These partitions may already be another's.
    Lost(Vec<Partition>),
    /// The process is to stop.
    Stop,
    /// What is not stored by now is abandoned.
    DrainExpired,
    /// What is not committed by now is let go.
    ReleaseExpired,
    /// Time has passed.
    Tick,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is named as the type that it has or the word that it means")]
pub enum Action {
    /// Find out where this assignment starts.
    ResolveStart { partition: Partition, epoch: Epoch },
    /// Fetch from here on. Not paused, whatever it was before.
    Fetch { partition: Partition, epoch: Epoch, from: Progress },
    /// Fetch no more.
    StopFetching { partition: Partition },
    /// Hand over no more of what is fetched for now …
    Throttle { partition: Partition },
    /// … and again from where it was.
    Unthrottle { partition: Partition },
    /// Nothing that was received under this assignment may be written any more.
    Fence { epoch: Epoch },
    /// The lane may keep aside what it asked for, unless it is fenced.
    DeadLettersApproved { lane: LaneNumber },
    /// The partition stands still and somebody has to look.
    Halted { partition: Partition, reason: String },
    /// It does not stand still any more.
    Unhalted { partition: Partition },
    /// Its fetch has failed so many times in a row; it is tried again after a while.
    FetchFailing { partition: Partition, at: NextOffset, attempts: u32, text: String },
    /// Its fetch fails no more.
    FetchRecovered { partition: Partition },
    /// Write these progress rows.
    SaveProgress(Vec<CommitPoint>),
    /// Commit these offsets: their progress rows are written.
    Commit(Vec<CommitPoint>),
    /// Let go of these: the group may give them to another.
    Release(Vec<Partition>),
}
