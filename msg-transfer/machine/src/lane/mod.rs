//! How a batch becomes rows, each message once, with the next `seq` of its inbox: the statements one by one, and what
//! follows from each answer.

mod bisection;
mod blocked;
pub mod cache;
mod conflicts;
pub mod entry;
mod failing;
pub mod request;
#[cfg(test)]
mod tests;
mod writing;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;

use self::bisection::Bisection;
pub use self::bisection::Failure;
pub use self::blocked::BlockedInbox;
use self::blocked::{Blocked, Retry, report_unblocked};
use self::cache::SeqCache;
use self::conflicts::Conflicts;
use self::entry::forget_found;
pub use self::entry::{DeadLetter, Entry, Kind, Message};
pub use self::request::{BatchFailure, NumberedEntry, Outcome, Request, Response};
use crate::consumer::{Event, LaneNumber, RecordRef};
use crate::failure::Class;
use crate::{ConnectionNumber, Partition};

/// Which lane a key goes to, whatever its partition.
pub fn lane_for(key: Option<&[u8]>, lanes: usize) -> LaneNumber {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    usize::try_from(hasher.finish() % lanes as u64).expect("below a usize")
}

/// A lane's settings.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Inboxes whose last `seq` is remembered.
    pub cached_inboxes: NonZeroUsize,
    /// Look for each first row's predecessor in the table, in the same transaction: for a database whose COMMIT may be
    /// answered before its rows can be seen.
    pub guard: bool,
    /// From so many bytes on a record may be too large for the server's time or memory.
    pub huge: usize,
    /// Most records at once of what has waited in a blocked inbox …
    pub batch_records: usize,
    /// … and their bytes.
    pub batch_bytes: usize,
    /// Most conflicts that keep their content …
    pub conflict_limit: usize,
    /// … of so many offsets of a partition.
    pub conflict_window: usize,
}

/// One lane, with one batch at a time.
#[derive(Debug)]
pub struct Machine<T> {
    number: LaneNumber,
    settings: Settings,
    cache: SeqCache,
    entries: Vec<Entry<T>>,
    /// What comes after them, when the batch was too much at once.
    rest: Vec<Entry<T>>,
    /// Most records at once: halved when the server has no time for them, doubled when it had.
    most: usize,
    /// The server had no time for this part, and a bisection found no blocked inbox.
    searched: bool,
    blocked: Blocked<T>,
    /// The blocked inbox that is being tried, if it is one.
    retry: Option<Retry>,
    conflicts: Conflicts,
    /// What was stored of the batch so far.
    outcome: Outcome,
    /// While the lane has a connection: the number of the reference connection that was open when it was made.
    connected: Option<ConnectionNumber>,
    pending: Pending,
    /// The rows of this attempt, sorted by inbox and `seq`.
    numbered: Vec<NumberedEntry>,
    /// For each inbox of this attempt its entries, and its last `seq` where it is known.
    inboxes: Vec<(Vec<usize>, Option<i64>)>,
    bisection: Option<Bisection>,
    /// The dead letters of this part were approved.
    approved: bool,
    last_failure: Option<Failure>,
    attempts: usize,
}

/// What the last request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    Approval,
    Connection(ConnectionNumber),
    Disconnection,
    Backoff,
    LastSeqs,
    Begin,
    Guard,
    Insert,
    /// Rolling back because some are in the table already.
    UndoInsert,
    FindInserted,
    FindRepeats,
    DeadLetters,
    /// Rolling back because an assignment ended.
    UndoFenced,
    Commit,
    /// Rolling back because a blocked inbox is still blocked.
    UndoRetry,
    /// Rolling back before a bisection.
    UndoRejected,
    /// Some of the rejected rows may be stored already.
    FindRejected,
    BeginBisection,
    Canary,
    /// A row beside a suspect, in its inbox.
    OwnCanary,
    UndoCanary,
    Probe,
    MoveSavepoint,
    UndoProbe,
    EndBisection,
}

impl<T: Message> Machine<T> {
    /// Has no connection and nothing to do.
    pub fn new(number: LaneNumber, settings: Settings) -> Self {
        Machine {
            number,
            settings,
            cache: SeqCache::new(settings.cached_inboxes),
            entries: Vec::new(),
            rest: Vec::new(),
            most: usize::MAX,
            searched: false,
            blocked: Blocked::default(),
            retry: None,
            conflicts: Conflicts::new(settings.conflict_limit, settings.conflict_window),
            outcome: Outcome::default(),
            connected: None,
            pending: Pending::Nothing,
            numbered: Vec::new(),
            inboxes: Vec::new(),
            bisection: None,
            approved: false,
            last_failure: None,
            attempts: 0,
        }
    }

    /// Its number.
    pub fn number(&self) -> LaneNumber {
        self.number
    }

    /// The batch, as requests speak of it.
    pub fn entries(&self) -> &[Entry<T>] {
        &self.entries
    }

    /// The rows of the transaction under way, sorted by inbox and `seq`: those that a COMMIT's answer makes stored.
    pub fn numbered(&self) -> &[NumberedEntry] {
        &self.numbered
    }

    /// What the database said, while it is being found out which inboxes it said it of.
    pub fn searching(&self) -> Option<&Failure> {
        self.bisection.as_ref().map(Bisection::cause)
    }

    /// Takes the next batch. Only after `Done`, or as the first thing.
    pub fn begin(&mut self, entries: Vec<Entry<T>>, events: &mut Vec<Event>) -> Request {
        assert_eq!(self.pending, Pending::Nothing, "one batch at a time");
        self.outcome = Outcome::default();
        self.take(entries, events);
        self.turn(events)
    }

    fn take(&mut self, entries: Vec<Entry<T>>, events: &mut Vec<Event>) {
        self.entries = entries;
        self.attempts = 0;
        self.approved = false;
        self.searched = false;
        self.queue_blocked(events);
        forget_found(&mut self.entries);
    }

    /// Handles the response to the last request, and returns the next request.
    pub fn handle(&mut self, response: Response, events: &mut Vec<Event>) -> Request {
        match (self.pending, response) {
            (_, Response::Failed(failure)) => self.failed(failure),
            (Pending::Approval, _) => {
                self.approved = true;
                self.turn(events)
            }
            (Pending::Connection(connection_number), Response::Ok) => {
                self.connected = Some(connection_number);
                self.ask()
            }
            (Pending::Connection(_), _) => {
                // At once: what waits behind must not be stored before what the database may have lost.
                for entry in &self.entries {
                    entry.assignment.fence();
                }
                events.push(Event::Restart);
                self.turn(events)
            }
            (Pending::Disconnection, _) => match self.last_failure.take() {
                Some(failure) => {
                    self.pending = Pending::Backoff;
                    Request::Wait(BatchFailure { failure, attempts: self.attempts })
                }
                // A blocked inbox waits by itself.
                None => self.next_part(events),
            },
            (Pending::UndoRetry, _) => self.next_part(events),
            (Pending::Backoff | Pending::UndoFenced, _) => self.turn(events),
            (Pending::LastSeqs, Response::Seqs(seqs)) => self.assign_seqs(seqs),
            (Pending::Begin, _) => self.guard(),
            (Pending::Guard, Response::Count(found)) if found == self.heads().len() => self.insert(),
            (Pending::Guard, _) => self.again(Class::Conflict, "what was stored before cannot be seen yet"),
            (Pending::Insert, Response::Count(inserted)) => self.inserted(inserted),
            (Pending::UndoInsert, _) => {
                self.pending = Pending::FindInserted;
                Request::FindStored(self.numbered.iter().map(|row| row.entry).collect())
            }
            (Pending::FindInserted, Response::Found(found)) if !found.is_empty() => {
                self.found(&found);
                self.ask()
            }
            (Pending::FindRepeats, Response::Found(found)) if found.len() == self.repeats().len() => {
                self.found(&found);
                self.insert_dead_letters()
            }
            (Pending::FindInserted | Pending::FindRepeats, _) => {
                self.again(Class::Transient, "rows that were there are gone")
            }
            (Pending::DeadLetters, _) => self.commit(),
            (Pending::Commit, response) => self.committed(response == Response::Warned, events),
            (Pending::UndoRejected, _) => {
                self.pending = Pending::FindRejected;
                Request::FindStored(self.numbered.iter().map(|row| row.entry).collect())
            }
            (Pending::FindRejected, Response::Found(found)) if !found.is_empty() => {
                self.bisection = None;
                self.found(&found);
                self.ask()
            }
            (Pending::FindRejected, _) => {
                let begin = if self.bisection().is_short() { Request::BeginSearch } else { Request::BeginBisection };
                self.request(Pending::BeginBisection, begin)
            }
            (Pending::BeginBisection, _) => self.request(Pending::Canary, Request::Canary(None)),
            (Pending::Canary, response) => {
                // A trigger may swallow it.
                if matches!(response, Response::Count(1..)) {
                    self.bisection().accepted();
                }
                self.request(Pending::UndoCanary, Request::RollbackToSavepoint)
            }
            (Pending::Probe, response) => {
                // A duplicate is not written, and so proves nothing.
                if matches!(response, Response::Count(1..)) {
                    self.bisection().accepted();
                }
                self.request(Pending::MoveSavepoint, Request::MoveSavepoint)
            }
            (Pending::UndoProbe, _) => match self.bisection().suspect() {
                Some(row) => self.request(Pending::OwnCanary, Request::Canary(Some(self.numbered[row]))),
                None => self.probe(),
            },
            (Pending::OwnCanary, response) => {
                self.bisection().suspect_tried(matches!(response, Response::Count(1..)));
                self.request(Pending::UndoCanary, Request::RollbackToSavepoint)
            }
            (Pending::UndoCanary | Pending::MoveSavepoint, _) => self.probe(),
            (Pending::EndBisection, _) => self.judge(events),
            (pending, response) => unreachable!("{response:?} is no response to {pending:?}"),
        }
    }

    fn request(&mut self, pending: Pending, request: Request) -> Request {
        self.pending = pending;
        request
    }

    /// From the beginning, with what may still be written.
    fn turn(&mut self, events: &mut Vec<Event>) -> Request {
        self.let_go(events);
        if self.entries.is_empty() {
            return self.next_part(events);
        }
        let most = self.most_at_once();
        if self.entries.len() > most {
            let more = self.entries.split_off(most);
            self.rest.splice(..0, more);
        }
        let dead = self.entries.iter().filter(|entry| entry.dead().is_some_and(|(reason, _)| reason.counts()));
        let dead: Vec<RecordRef> = dead.map(|entry| entry.record_ref).collect();
        if !dead.is_empty() && !self.approved {
            return self.request(Pending::Approval, Request::ApproveDeadLetters(dead));
        }
        let connection_number = self.entries.iter().filter_map(|entry| entry.assignment.connection_number()).max();
        let connection_number = connection_number.expect("a record is received only after its start was read");
        if self.fence_older(connection_number, events) {
            return self.turn(events);
        }
        if self.connected == Some(connection_number) {
            return self.ask();
        }
        // Another server may lack messages that came before: stored on it, later ones would pass them.
        self.connected = None;
        self.cache.clear();
        self.request(Pending::Connection(connection_number), Request::Connect(connection_number))
    }

    fn most_at_once(&self) -> usize {
        if self.retry.is_none() {
            return self.most;
        }
        // What has waited may be far more than a batch.
        let fits = |bytes: &mut usize, entry: &Entry<T>| {
            let before = *bytes;
            *bytes += entry.record_ref.bytes;
            (before < self.settings.batch_bytes).then_some(())
        };
        let most = self.most.min(self.settings.batch_records).max(1);
        self.entries.iter().take(most).scan(0, fits).count().max(1)
    }

    /// Goes on with the rest of the batch, if there is one.
    fn next_part(&mut self, events: &mut Vec<Event>) -> Request {
        if self.rest.is_empty() {
            self.end_retry();
            let outcome = std::mem::take(&mut self.outcome);
            return self.request(Pending::Nothing, Request::Done(outcome));
        }
        let rest = std::mem::take(&mut self.rest);
        self.take(rest, events);
        self.turn(events)
    }

    /// Fences what was received under a start that was read over an earlier connection: the server of this one may lack what
    /// came before it. Whether there was any.
    fn fence_older(&self, connection_number: ConnectionNumber, events: &mut Vec<Event>) -> bool {
        let older = |entry: &&Entry<T>| entry.assignment.connection_number() < Some(connection_number);
        let older: BTreeSet<Partition> = self
            .entries
            .iter()
            .filter(older)
            .map(|entry| {
                entry.assignment.fence();
                entry.record_ref.partition
            })
            .collect();
        events.extend(older.iter().map(|partition| Event::RestartPartition(*partition)));
        !older.is_empty()
    }

    /// Lets go of what may not be written any more.
    fn let_go(&mut self, events: &mut Vec<Event>) {
        for entry in &self.entries {
            if let Kind::Newer(reason) = &entry.kind
                && !entry.assignment.is_fenced()
            {
                // At once, and for all lanes: a later record to the same inbox must not pass this one.
                entry.assignment.fence();
                let RecordRef { partition, epoch, offset, .. } = entry.record_ref;
                events.push(Event::Halt { partition, epoch, reason: format!("offset {offset}: {reason}") });
            }
        }
        let fenced: Vec<Entry<T>> = self.entries.extract_if(.., |entry| entry.assignment.is_fenced()).collect();
        if !fenced.is_empty() {
            report_unblocked(fenced.iter(), events);
            events.push(Event::Dropped(fenced.iter().map(|entry| entry.record_ref).collect()));
            forget_found(&mut self.entries);
        }
    }
}
