//! The requests of a lane's machine, one at a time, and their responses.

use super::entry::DeadLetter;
use crate::consumer::RecordRef;
use crate::error::ClassifiedError;
use crate::{ConnectionNumber, Reason};

/// An entry of the batch, by its index, and the `seq` that its row gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberedEntry {
    pub entry: usize,
    pub seq: i64,
}

/// The next step of a batch. Statements are sent over the lane's one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The batch is over. Needs no response.
    Done(Outcome),
    /// Send `Event::DeadLettersRequested` for these records, and wait for `Action::DeadLettersApproved`. Response:
    /// `Ok`.
    ApproveDeadLetters(Vec<RecordRef>),
    /// Make a new connection, then check that the reference connection with this number is still open. Response: `Ok`,
    /// `Stale`.
    Connect(ConnectionNumber),
    /// Close the connection, whatever it is doing. Response: `Ok`.
    Disconnect,
    /// Wait before the next attempt. Response: `Ok`.
    Wait(BatchError),
    /// Read the last `seq` of the inbox of each of these entries, 0 for an empty inbox. Response: `Seqs`, in order, or
    /// `FailedFor`.
    LastSeqs(Vec<usize>),
    /// Begin a transaction. Response: `Ok`.
    Begin,
    /// Begin a transaction with short timeouts, to try whether an inbox is still blocked. Response: `Ok`.
    BeginRetry,
    /// Count the rows whose predecessor, `seq` - 1 of the same inbox, is in the table. Response: `Count`.
    Guard(Vec<NumberedEntry>),
    /// Insert these rows, except those whose ID is in the table. Response: `Count` of the inserted rows.
    Insert(Vec<NumberedEntry>),
    /// Insert these rows by the faster statement, which fails if the ID or the `seq` of one is in the table. Response:
    /// `Count` of the inserted rows.
    InsertNew(Vec<NumberedEntry>),
    /// Look up which of these entries are in the table by their ID, and whether their content is the same. Response:
    /// `Found`.
    FindStored(Vec<usize>),
    /// Insert these dead letters. Response: `Ok`, or `FailedFor` while the transaction is still open.
    InsertDeadLetters(Vec<DeadLetter>),
    /// End the transaction with COMMIT. Response: `Ok`, `Warned`.
    Commit,
    /// Roll the transaction back. Response: `Ok`.
    Rollback,
    /// Begin a transaction in which deferred constraints are checked immediately, and set a savepoint. Response: `Ok`.
    BeginBisection,
    /// The same as `BeginBisection` with short timeouts, to find blocked inboxes. Response: `Ok`.
    BeginSearch,
    /// Insert the canary row: in place of this entry in its inbox, or in an inbox of its own. Response: `Count`.
    Canary(Option<NumberedEntry>),
    /// Move the savepoint to the current state of the transaction. Response: `Ok`.
    MoveSavepoint,
    /// Go back to the savepoint. Response: `Ok`.
    RollbackToSavepoint,
}

/// The response to a request. `Failed` is a response to every request except `ApproveDeadLetters`, `Disconnect`, `Wait`
/// and `Done`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The request succeeded, and has no other result.
    Ok,
    /// The COMMIT succeeded with a warning: a standby may not have the rows, or they may not be visible yet.
    Warned,
    /// A server is available, but the start offsets may have been read from another one. The connection was closed.
    Stale,
    /// The number of rows that were counted or inserted.
    Count(usize),
    /// One `seq` for each entry of the request.
    Seqs(Vec<i64>),
    /// The entries that are in the table, and whether all fields that the sender wrote are the same there.
    Found(Vec<(usize, bool)>),
    /// The request failed for these entries, at least one, and succeeds for others.
    FailedFor(Vec<(usize, ClassifiedError)>),
    Failed(ClassifiedError),
}

/// Why a batch is not stored yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchError {
    pub error: ClassifiedError,
    /// The number of attempts of this batch that failed in a row.
    pub attempts: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub stored: usize,
    /// The number of messages that were stored already.
    pub duplicates: usize,
    pub dead_letters: Vec<Reason>,
}
