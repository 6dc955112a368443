//! The oracle: the promises of a stream, written down with plain lists and without any regard to speed.

use std::collections::{BTreeMap, VecDeque};

use super::{MAX_FAILED, MAX_INFLIGHT, MAX_WAIT, UNTIL};

/// What an entry of a request holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Valid { inbox: u8, id: u8 },
    Invalid,
    Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) correlation_id: u64,
    pub(super) content: Content,
    pub(super) until_stored: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Enqueued {
    pub(super) number: u64,
    entry: Entry,
    rank: u64,
    deadline: u64,
}

struct Failed {
    inbox: u8,
    id: u8,
    rank: u64,
}

/// A request that is not accepted yet.
pub(super) struct Request {
    pub(super) entries: Vec<Entry>,
    pub(super) is_valid: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    HalfClosed,
    Broken,
    Failed(&'static str),
}

#[derive(Default)]
pub(super) struct Model {
    pub(super) now: u64,
    pub(super) end: Option<Ending>,
    pub(super) request: Option<Request>,
    /// Accepted entries that are neither enqueued nor have a result, in order.
    pub(super) queue: VecDeque<Entry>,
    pub(super) open: Vec<Enqueued>,
    /// The `correlation_id`s of the entries whose rows are awaited.
    pub(super) rows: Vec<u64>,
    failed: Vec<Failed>,
    next_rank: u64,
    /// The results that are in no reply yet, in the order in which they became known.
    pub(super) results: VecDeque<(u64, &'static str)>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) blocked_until: Option<u64>,
    /// Capacity was released, so that the blocked entries are attempted again.
    pub(super) is_retrying: bool,
    pub(super) is_check_due: bool,
}

impl Model {
    pub(super) fn may_read(&self) -> bool {
        self.end.is_none() && self.request.is_none() && self.queue.is_empty() && self.unfinished() < MAX_INFLIGHT
    }

    /// The number of accepted entries whose results are in no reply yet.
    pub(super) fn unfinished(&self) -> usize {
        self.queue.len() + self.open.len() + self.rows.len() + self.results.len()
    }

    pub(super) fn is_done(&self) -> bool {
        self.end.is_some() && self.unfinished() == 0
    }

    pub(super) fn waiters(&self) -> usize {
        self.rows.len() + self.open.iter().filter(|enqueued| enqueued.entry.until_stored).count()
    }

    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Ends the stream, unless it ends already.
    pub(super) fn end(&mut self, end: Ending) {
        if self.end.is_none() {
            self.end = Some(end);
            self.request = None;
        }
    }

    pub(super) fn check_request(&mut self) {
        match &self.request {
            Some(request) if !request.is_valid => self.end(Ending::Failed("INVALID_FIELDS")),
            Some(_) if self.failed.len() > MAX_FAILED => self.end(Ending::Failed("OVERLOADED")),
            _ => {}
        }
    }

    pub(super) fn accept(&mut self) {
        let request = self.request.take().expect("a request is reserved");
        self.queue.extend(request.entries);
    }

    /// Gives the entries at the head of the queue their errors, until one has to be enqueued.
    pub(super) fn fail_heads(&mut self) {
        while let Some(&head) = self.queue.front() {
            let outcome = match self.is_next(head) {
                Some(true) => return,
                Some(false) => "PREDECESSOR_FAILED",
                None => "INVALID_FIELDS",
            };
            self.queue.pop_front();
            self.add_failed(head, None, outcome);
            self.result(head.correlation_id, outcome);
        }
    }

    /// Enqueues the head of the queue.
    pub(super) fn enqueue(&mut self, number: u64) {
        let entry = self.queue.pop_front().expect("an entry is enqueued");
        let rank = self.remove_failed(entry);
        self.open.push(Enqueued { number, entry, rank, deadline: self.deadline() });
    }

    /// Gives the head of the queue an error instead of enqueuing it.
    pub(super) fn fail_enqueue(&mut self, outcome: &'static str) {
        let entry = self.queue.pop_front().expect("an entry is enqueued");
        let rank = self.remove_failed(entry);
        self.add_failed(entry, Some(rank), outcome);
        self.result(entry.correlation_id, outcome);
    }

    /// Gives all entries of the queue errors.
    pub(super) fn reject_all(&mut self) {
        while let Some(entry) = self.queue.pop_front() {
            let outcome = match self.is_next(entry) {
                Some(true) => "OVERLOADED",
                Some(false) => "PREDECESSOR_FAILED",
                None => "INVALID_FIELDS",
            };
            self.add_failed(entry, None, outcome);
            self.result(entry.correlation_id, outcome);
        }
        self.blocked_until = None;
    }

    pub(super) fn block(&mut self) {
        self.blocked_until = Some(self.deadline());
    }

    /// Handles a report. It may come after its entry timed out.
    pub(super) fn report(&mut self, number: u64, outcome: &'static str) {
        let Some(at) = self.open.iter().position(|enqueued| enqueued.number == number) else { return };
        let Enqueued { entry, rank, .. } = self.open.remove(at);
        self.is_check_due |= outcome == "OUTCOME_UNKNOWN";
        if outcome == "OK" && entry.until_stored {
            self.rows.push(entry.correlation_id);
            return;
        }
        self.add_failed(entry, Some(rank), outcome);
        self.result(entry.correlation_id, outcome);
    }

    pub(super) fn stored(&mut self, correlation_id: u64, outcome: &'static str) {
        self.rows.retain(|row| *row != correlation_id);
        self.result(correlation_id, outcome);
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        let ends = self.end.is_none().then_some(UNTIL);
        self.open.iter().map(|enqueued| enqueued.deadline).chain(self.blocked_until).chain(ends).min()
    }

    pub(super) fn expire(&mut self) {
        if self.blocked_until.is_some_and(|until| until <= self.now) {
            self.reject_all();
        }
        let late: Vec<u64> = self.open.iter().filter(|one| one.deadline <= self.now).map(|one| one.number).collect();
        late.into_iter().for_each(|number| self.report(number, "OUTCOME_UNKNOWN"));
        if UNTIL <= self.now {
            self.end(Ending::Failed("STREAM_ENDED"));
        }
    }

    /// Returns whether an entry may be enqueued now, or an earlier failed entry to its inbox has to be sent again
    /// first. `None`: it breaks a rule.
    fn is_next(&self, entry: Entry) -> Option<bool> {
        let Content::Valid { inbox, id } = entry.content else { return None };
        let open = self.open.iter().map(|enqueued| enqueued.entry.correlation_id);
        if open.chain(self.rows.iter().copied()).any(|used| used == entry.correlation_id) {
            return None;
        }
        let first = self.failed.iter().filter(|failed| failed.inbox == inbox).min_by_key(|failed| failed.rank);
        Some(first.is_none_or(|first| first.id == id))
    }

    /// Remembers an entry that leaves a gap, at its rank or as the last one.
    fn add_failed(&mut self, entry: Entry, rank: Option<u64>, outcome: &'static str) {
        let Content::Valid { inbox, id } = entry.content else { return };
        let is_known = self.failed.iter().any(|failed| (failed.inbox, failed.id) == (inbox, id));
        if is_known || ["OK", "INVALID_FIELDS", "TOO_LARGE", "NOT_STORED_YET"].contains(&outcome) {
            return;
        }
        let rank = rank.unwrap_or_else(|| self.rank());
        self.failed.push(Failed { inbox, id, rank });
    }

    /// Forgets a failed entry that is sent again. Returns its rank.
    fn remove_failed(&mut self, entry: Entry) -> u64 {
        let Content::Valid { inbox, id } = entry.content else { unreachable!("an invalid entry is enqueued") };
        match self.failed.iter().position(|failed| (failed.inbox, failed.id) == (inbox, id)) {
            Some(at) => self.failed.remove(at).rank,
            None => self.rank(),
        }
    }

    fn rank(&mut self) -> u64 {
        self.next_rank += 1;
        self.next_rank
    }

    fn result(&mut self, correlation_id: u64, outcome: &'static str) {
        self.results.push_back((correlation_id, outcome));
        *self.counts.entry(outcome).or_default() += 1;
    }

    fn deadline(&self) -> u64 {
        UNTIL.min(self.now + MAX_WAIT)
    }
}
