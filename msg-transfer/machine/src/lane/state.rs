//! The states of a lane's machine. Each holds what exists only in it, so no step can find something missing.

use std::ops::Range;

use super::bisection::{Bisection, Probe};
use super::blocked::Retry;
use super::entry::{Known, forget_found};
use super::{ClassifiedError, Entry, Message, NumberedEntry, Outcome};
use crate::ConnectionNumber;

#[derive(Debug)]
pub(super) enum State<T> {
    Idle,
    Storing(Box<Batch<T>>, Step),
    /// The retry of a blocked inbox failed, and its records wait again. It ends when the connection is clean.
    Ending(Outcome, EndStep),
}

/// The records that the lane stores now.
#[derive(Debug)]
pub(super) struct Batch<T> {
    /// The part of the batch that is stored in the current transaction.
    pub(super) entries: Vec<Entry<T>>,
    /// The records after `entries`, if the batch is too large for one transaction.
    pub(super) rest: Vec<Entry<T>>,
    /// The number of attempts of `entries` that failed in a row.
    pub(super) attempts: usize,
    /// Whether the dead letters of `entries` were approved.
    pub(super) approved: bool,
    /// Whether a bisection of `entries` found no record that causes the error.
    pub(super) bisected: bool,
    /// The result of the parts that were stored so far.
    pub(super) outcome: Outcome,
    /// Set if the batch is the retry of a blocked inbox.
    pub(super) retry: Option<Retry>,
}

/// The last request for a batch that is stored.
#[derive(Debug)]
pub(super) enum Step {
    /// The consumer counts the dead letters against the limit.
    Approval,
    /// A connection is opened, and compared with the reference connection of this number.
    Connection(ConnectionNumber),
    LastSeqs(NewEntries),
    /// The rows are written in one transaction.
    Writing(Rows, WriteStep),
    /// The transaction is rolled back because an assignment ended, or because some inboxes are blocked. The rest of the
    /// batch is stored then.
    Rollback,
    /// The records that cause an error are searched.
    Bisecting(Rows, Box<Bisection>, BisectStep),
    /// The connection is closed after this error.
    Disconnection(ClassifiedError),
    Backoff,
}

/// The last request of a transaction that writes rows.
#[derive(Debug)]
pub(super) enum WriteStep {
    Begin,
    /// The predecessors of this number of rows are counted.
    Guard(usize),
    Insert,
    /// The faster statement inserts the rows, if all of their messages are new.
    InsertNew,
    /// The transaction is rolled back because some of its messages are stored already.
    DuplicateRollback,
    FindDuplicates,
    /// This number of repeats is compared with their rows.
    FindRepeats(usize),
    DeadLetters,
    Commit,
}

/// The last request of a bisection.
#[derive(Debug)]
pub(super) enum BisectStep {
    /// The transaction of the rejected rows is rolled back.
    Rollback,
    /// Some of the rejected rows may be stored already.
    FindDuplicates,
    Begin,
    Canary,
    /// A canary row is inserted in place of this row, which timed out alone.
    InboxCanary(usize),
    CanaryRollback,
    /// Some of the rows are inserted.
    Probe(Probe),
    ProbeRollback,
    /// The same, after this row timed out alone.
    SuspectRollback(usize),
    MoveSavepoint,
    End,
}

/// The last request of a retry that failed.
#[derive(Debug)]
pub(super) enum EndStep {
    Rollback,
    Disconnection,
    /// The rollback failed like this, so the connection is closed.
    RollbackFailed(ClassifiedError),
    Backoff,
}

/// The new messages of a batch, by their indices: sorted by inbox, and in order of receipt within an inbox.
#[derive(Debug)]
pub(super) struct NewEntries {
    pub(super) sorted: Vec<usize>,
    pub(super) inboxes: Vec<InboxEntries>,
}

/// The new messages of one inbox: a range of `NewEntries::sorted`.
#[derive(Debug)]
pub(super) struct InboxEntries {
    pub(super) range: Range<usize>,
    pub(super) cached: Option<i64>,
}

#[derive(Debug)]
pub(super) struct Rows {
    /// Sorted by inbox and `seq`.
    pub(super) numbered: Vec<NumberedEntry>,
    pub(super) inboxes: Vec<InboxRows>,
}

/// The first row of an inbox, and the `seq` of its last row.
#[derive(Debug)]
pub(super) struct InboxRows {
    pub(super) first: NumberedEntry,
    pub(super) last: i64,
}

impl<T> State<T> {
    /// Returns the batch, unless the lane is idle or has put the batch back.
    pub(super) fn batch(&self) -> Option<&Batch<T>> {
        match self {
            State::Storing(batch, _) => Some(batch),
            State::Idle | State::Ending(..) => None,
        }
    }

    pub(super) fn rows(&self) -> Option<&Rows> {
        match self {
            State::Storing(_, Step::Writing(rows, _) | Step::Bisecting(rows, ..)) => Some(rows),
            _ => None,
        }
    }
}

impl<T: Message> Batch<T> {
    pub(super) fn new(retry: Option<Retry>) -> Self {
        Batch {
            entries: Vec::new(),
            rest: Vec::new(),
            attempts: 0,
            approved: false,
            bisected: false,
            outcome: Outcome::default(),
            retry,
        }
    }

    pub(super) fn start_part(&mut self, entries: Vec<Entry<T>>) {
        self.entries = entries;
        self.attempts = 0;
        self.approved = false;
        self.bisected = false;
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.entries.iter().any(|entry| entry.assignment.is_fenced())
    }

    pub(super) fn has_huge(&self, huge: usize) -> bool {
        self.entries.iter().any(|entry| entry.record_ref.bytes >= huge)
    }

    pub(super) fn repeats(&self) -> Vec<usize> {
        (0..self.entries.len()).filter(|index| self.entries[*index].is(&Known::Repeat)).collect()
    }

    /// Records which messages are in the table, each with whether all fields that the sender wrote are the same there.
    pub(super) fn mark_found(&mut self, found: &[(usize, bool)]) {
        for (index, same) in found {
            self.entries[*index].known = if *same { Known::Duplicate } else { Known::Conflict };
        }
    }

    /// Forgets everything that is known of the messages, also which ones were rejected.
    pub(super) fn forget_all(&mut self) {
        for entry in &mut self.entries {
            entry.known = Known::New;
        }
        forget_found(&mut self.entries);
    }
}
