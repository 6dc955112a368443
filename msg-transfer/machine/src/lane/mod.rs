//! The lane's machine: how a batch becomes rows, each message once, with the next `seq` of its inbox. It decides which
//! statement is next from the response to the one before.

mod bisecting;
mod bisection;
mod blocked;
mod cache;
mod conflicts;
mod entry;
mod failing;
mod part;
mod request;
mod retrying;
mod state;
#[cfg(test)]
mod tests;
mod writing;

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;

use self::blocked::Blocked;
pub use self::blocked::BlockedInbox;
use self::cache::SeqCache;
use self::conflicts::Conflicts;
pub use self::entry::{DeadLetter, Entry, Kind, Message};
pub use self::request::{BatchError, NumberedEntry, Outcome, Request, Response};
use self::state::{Batch, State, Step};
use crate::ConnectionNumber;
use crate::consumer::{Event, LaneNumber};
use crate::error::{ClassifiedError, ErrorClass};

/// Returns the lane of a key. All partitions share the lanes.
pub fn lane_for(key: Option<&[u8]>, lanes: usize) -> LaneNumber {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    usize::try_from(hasher.finish() % lanes as u64).expect("it is below a usize")
}

/// The settings of a lane: what it caches, checks, and stores in one transaction.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The number of inboxes whose last `seq` is cached.
    pub cached_inboxes: NonZeroUsize,
    /// Whether each first row's predecessor is read in the same transaction: for a database whose rows may become
    /// visible after its COMMIT has succeeded.
    pub guard: bool,
    /// Whether rows are first inserted by the faster statement, which fails if one of their messages is stored.
    pub insert_new: bool,
    /// The bytes from which a record may be too large for the server's time or memory.
    pub huge: usize,
    /// The maximum number of records of a blocked inbox in one transaction.
    pub batch_records: usize,
    /// The maximum bytes of records of a blocked inbox in one transaction, except for its last record.
    pub batch_bytes: usize,
    /// The maximum number of conflicts whose dead letters hold content, in `conflict_window` offsets of a partition.
    pub conflict_limit: usize,
    /// The range of offsets that `conflict_limit` counts over.
    pub conflict_window: usize,
}

/// The machine of one lane. It stores one batch at a time.
#[derive(Debug)]
pub struct Machine<T> {
    number: LaneNumber,
    settings: Settings,
    cache: SeqCache,
    blocked: Blocked<T>,
    conflicts: Conflicts,
    /// The number of batches until the faster statement inserts rows again: until then, some messages may be stored
    /// already, or the database rejects the statement.
    skipping_batches: usize,
    /// The maximum number of records in one transaction: halved when the server has no time for them, doubled by each
    /// COMMIT.
    max_records: usize,
    /// If the lane has a connection: the number of the reference connection that was open after it was opened.
    connection: Option<ConnectionNumber>,
    state: State<T>,
}

impl<T: Message> Machine<T> {
    /// Creates a machine without a connection and without a batch.
    pub fn new(number: LaneNumber, settings: Settings) -> Self {
        Machine {
            number,
            settings,
            cache: SeqCache::new(settings.cached_inboxes),
            blocked: Blocked::default(),
            conflicts: Conflicts::new(settings.conflict_limit, settings.conflict_window),
            skipping_batches: 0,
            max_records: usize::MAX,
            connection: None,
            state: State::Idle,
        }
    }

    pub fn number(&self) -> LaneNumber {
        self.number
    }

    /// Returns the entries that requests refer to by their index.
    pub fn entries(&self) -> &[Entry<T>] {
        self.state.batch().map_or(&[], |batch| &batch.entries)
    }

    /// Returns the rows of the current transaction, sorted by inbox and `seq`. They are stored when the COMMIT
    /// succeeds.
    pub fn numbered(&self) -> &[NumberedEntry] {
        self.state.rows().map_or(&[], |rows| &rows.numbered)
    }

    /// Returns the error whose cause a bisection searches.
    pub fn searching(&self) -> Option<&ClassifiedError> {
        match &self.state {
            State::Storing(_, Step::Bisecting(_, bisection, _)) => Some(bisection.cause()),
            _ => None,
        }
    }

    /// Starts the next batch. Panics unless the last request was `Done`, or there was none.
    pub fn begin(&mut self, entries: Vec<Entry<T>>, events: &mut Vec<Event>) -> Request {
        assert!(self.is_idle(), "one batch at a time");
        self.start_part(Box::new(Batch::new(None)), entries, events)
    }

    fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Handles the response to the last request, and returns the next request. A response that does not fit the request
    /// is a bug in the code around the machine. It is a fatal error: nothing is stored by it, and operators see it.
    pub fn handle(&mut self, response: Response, events: &mut Vec<Event>) -> Request {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => self.wait_at_end(Outcome::default(), unexpected("Idle", &response)),
            State::Storing(batch, step) => self.store(batch, step, response, events),
            State::Ending(outcome, step) => self.end(outcome, step, response),
        }
    }

    fn store(&mut self, mut batch: Box<Batch<T>>, step: Step, response: Response, events: &mut Vec<Event>) -> Request {
        match (step, response) {
            (Step::Writing(rows, step), response) => self.write(batch, rows, step, response, events),
            (Step::Bisecting(rows, bisection, step), response) => {
                self.bisect(batch, rows, bisection, step, response, events)
            }
            (Step::Approval, Response::Ok) => {
                batch.approved = true;
                self.start_attempt(batch, events)
            }
            (Step::Connection(connection_number), Response::Ok) => {
                self.connection = Some(connection_number);
                // Records that an earlier connection or an earlier owner stored may be received again.
                self.skip_stored_for(1);
                self.read_last_seqs(batch)
            }
            (Step::Connection(_), Response::Stale) => {
                // Fence immediately: later records must not be stored before those that the database may have lost.
                for entry in &batch.entries {
                    entry.assignment.fence();
                }
                events.push(Event::Restart);
                self.start_attempt(batch, events)
            }
            (Step::LastSeqs(new), Response::Seqs(seqs)) => self.number_rows(batch, new, seqs),
            (Step::LastSeqs(_), Response::FailedFor(failed)) if !failed.is_empty() => {
                self.inboxes_unreadable(batch, failed, events)
            }
            (Step::Rollback | Step::Backoff, Response::Ok) => self.start_attempt(batch, events),
            (Step::Connection(_) | Step::LastSeqs(_) | Step::Rollback, Response::Failed(error)) => {
                self.fail(batch, error)
            }
            (Step::Disconnection(error), Response::Ok) => self.back_off(batch, error),
            (step @ (Step::Disconnection(_) | Step::Backoff), response) => {
                // There is no connection to close, and without a wait this could loop.
                self.back_off(batch, unexpected(step, &response))
            }
            (step, response) => self.abandon(batch, unexpected(step, &response)),
        }
    }

    fn back_off(&mut self, batch: Box<Batch<T>>, error: ClassifiedError) -> Request {
        let attempts = batch.attempts;
        self.storing(batch, Step::Backoff, Request::Wait(BatchError { error, attempts }))
    }

    fn storing(&mut self, batch: Box<Batch<T>>, step: Step, request: Request) -> Request {
        self.state = State::Storing(batch, step);
        request
    }
}

/// Returns the error that stands for a response that does not fit the last request.
fn unexpected(step: impl Debug, response: &Response) -> ClassifiedError {
    // A step and a response may hold a whole batch.
    let [step, response] = [format!("{step:?}"), format!("{response:?}")];
    let text = format!("msg-transfer has a bug: the response {response:.80} does not fit the step {step:.80}");
    ClassifiedError { class: ErrorClass::Fatal, text }
}
