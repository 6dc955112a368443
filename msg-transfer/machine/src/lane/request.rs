//! What a lane's machine asks for, one thing at a time, and how it is answered.

use super::entry::DeadLetter;
use super::pass::Failure;
use crate::consumer::RecordRef;
use crate::{Generation, Reason};

/// A message and the `seq` that it is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberedEntry {
    /// Its index in the batch.
    pub entry: usize,
    /// The `seq`.
    pub seq: i64,
}

/// What to do next. Statements go over the lane's one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing: the batch is over, and came to this.
    Done(Outcome),
    /// Hand in `Event::DeadLettersRequested` for these, and wait for `Action::DeadLettersApproved`. Answer: `Ok`.
    ApproveDeadLetters(Vec<RecordRef>),
    /// Make a new connection, then ask the keeper whether the one of this generation still lives. Answer: `Ok`, `Stale`.
    Connect(Generation),
    /// Close the connection, whatever it is doing. Answer: `Ok`.
    Disconnect,
    /// Wait before the next attempt. Answer: `Ok`.
    Wait(Trouble),
    /// The last `seq` of the inbox of each of these entries, 0 for an empty one. Answer: `Seqs`, in order.
    LastSeqs(Vec<usize>),
    /// Begin a transaction. Answer: `Ok`.
    Begin,
    /// The same, with short time-outs: it is tried whether an inbox is still blocked. Answer: `Ok`.
    BeginRetry,
    /// How many of these rows have their predecessor, `seq` - 1 of the same inbox, in the table. Answer: `Count`.
    Guard(Vec<NumberedEntry>),
    /// Insert these but those whose id is in the table. Answer: `Count` of those that were inserted.
    Insert(Vec<NumberedEntry>),
    /// Which of these entries are in the table by their id, and whether they are the same there. Answer: `Found`.
    FindStored(Vec<usize>),
    /// Keep these aside. Answer: `Ok`.
    InsertDeadLetters(Vec<DeadLetter>),
    /// Commit. Answer: `Ok`, `Warned`.
    Commit,
    /// Roll back. Answer: `Ok`.
    Rollback,
    /// Begin a transaction in which deferred constraints speak at once, and set a savepoint. Answer: `Ok`.
    BeginPass,
    /// The same, with short time-outs: it looks for inboxes that are blocked. Answer: `Ok`.
    BeginSearch,
    /// Insert a row that nothing is wrong with: in place of this one, in its inbox, or else in nobody's. Answer: `Count`.
    Canary(Option<NumberedEntry>),
    /// Set the savepoint to where we are. Answer: `Ok`.
    MoveSavepoint,
    /// Go back to the savepoint. Answer: `Ok`.
    RollbackToSavepoint,
}

/// How it went. `Failed` answers any request but `ApproveDeadLetters`, `Disconnect`, `Wait` and `Done`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Ok,
    /// It is committed, with a warning: here, and perhaps not on a standby, or not to be seen yet.
    Warned,
    /// There is a server, but the starts may not have been read from it. No connection is kept.
    Stale,
    /// So many rows.
    Count(usize),
    /// One for each that was asked for.
    Seqs(Vec<i64>),
    /// Entries that are in the table, and whether all that the sender wrote is the same there.
    Found(Vec<(usize, bool)>),
    /// It is not done, or not known to be.
    Failed(Failure),
}

/// Why a batch is not stored yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The failure.
    pub failure: Failure,
    /// How many attempts of this batch have failed in a row.
    pub attempts: usize,
}

/// What a batch came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// New rows.
    pub stored: usize,
    /// Messages that were there already.
    pub duplicates: usize,
    /// Records kept aside.
    pub dead_letters: Vec<Reason>,
}
