//! Decides what happens to the entries of one stream, from the request to the result. It has no I/O and no clock, and
//! nothing in here waits: its methods are the events, and [`Machine::next_action`] returns what the driver has to do.
//!
//! After an event, the driver carries out every action until [`Action::Wait`]. Some actions have a result, which the
//! driver returns through the method that the action names, before it requests the next action.

mod entries;
mod intake;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use msg_common::limits::Limits;
use msg_common::proto::{Msg, Placement, StreamSendMsgRequest, StreamSendMsgResponse, StreamSendResult};
use tonic::Status;
use uuid::Uuid;

use crate::auth::rules::Caller;
use crate::budget::Permit;
use crate::metrics::outcome;
use crate::producer::Report;
use crate::send::into_result;
use crate::send::outcome::Outcome;
use crate::send::stream::failed_entries::FailedEntries;
use crate::send::stream::machine::entries::Open;
pub(super) use crate::send::stream::machine::entries::{Row, Ticket};
use crate::send::stream::machine::intake::Intake;
pub(super) use crate::send::stream::machine::intake::{ResultsWait, Waiting};
use crate::status::Failure;

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) limits: Limits,
    pub(super) caller: Caller,
    /// Returns the ID of a message. A message without a `client_msg_id` gets a new one at each call.
    pub(super) id_of: fn(&Msg) -> Uuid,
    /// How long to wait for a report, a row or capacity.
    pub(super) max_wait: Duration,
    /// How long after a record was enqueued it can still appear in the topic.
    pub(super) settle_time: Duration,
    /// When the caller's deadline ends the stream: nothing is awaited after this.
    pub(super) until: Option<Instant>,
    /// No request is read while this many entries have no result, or one that no reply contains yet.
    pub(super) max_inflight: usize,
    /// Maximum number of failed entries that have to be sent again. With more, the stream ends.
    pub(super) max_failed: usize,
    /// Maximum number of results of a reply.
    pub(super) max_reply: usize,
}

/// What the driver has to do. `R` is the permit to await the row of an entry.
pub(super) enum Action<R> {
    /// Acquire permits for this many results, now. [`Machine::permits`] or [`Machine::permits_exhausted`].
    AcquireResults(usize),
    /// Wait for the permits. `bytes` is the memory of the request meanwhile. [`Machine::awaiting_permits`].
    AwaitResults { count: usize, bytes: usize },
    /// Hold this many bytes for the failed entries that have to be sent again. [`Machine::reserved`].
    ReserveFailed(usize),
    /// Enqueue a record. [`Machine::enqueued`], [`Machine::not_enqueued`] or [`Machine::no_capacity`].
    Enqueue { ticket: Ticket, msg: Msg, until_stored: bool },
    /// Listen for capacity in flight. [`Machine::listening`].
    Listen,
    /// Acquire the memory of blocked entries, in bytes. [`Machine::blocked`].
    AcquireMemory(usize),
    /// Wait for the row of an accepted entry. [`Machine::stored`] is the event when the wait ends.
    AwaitRow(Row<R>),
    /// Check the topic: the outcome of an entry is unknown, and Kafka may be unavailable.
    CheckTopic,
    /// Count this many results of an outcome.
    Count(&'static str, u64),
    /// End the stream. Every entry has its result, and every result is in a reply.
    End(End),
    /// Wait for the next event.
    Wait,
}

#[derive(Debug)]
pub(super) enum End {
    /// The caller sends no further request.
    HalfClosed,
    /// The request stream is broken, with an error of the transport.
    Broken(Status),
    Failed(Failure),
}

/// The state of one stream. It drops a permit when its purpose ends, so that no release can be forgotten.
pub(super) struct Machine<R> {
    settings: Settings,
    /// The request that is in progress.
    intake: Intake,
    /// How the stream ends once every entry has its result. From then on no request is read.
    end: Option<End>,
    /// The enqueued entries without a report, by a number that is never reused. A `correlation_id` may be, and a
    /// report may come after its entry got a result.
    open: HashMap<u64, Open<R>>,
    next_number: u64,
    /// The `correlation_id`s of the enqueued entries without a result.
    correlations: HashSet<u64>,
    failed: FailedEntries,
    /// One permit for each accepted entry whose result is not in a reply yet.
    permits: Permit,
    /// The next time to expire entries: not later than the first deadline of an open entry.
    next_deadline: Option<Instant>,
    /// Results that are not in a reply yet.
    results: VecDeque<StreamSendResult>,
    /// Accepted entries for which [`Action::AwaitRow`] is due.
    rows: VecDeque<Row<R>>,
    /// An outcome is unknown: set until the driver gets [`Action::CheckTopic`].
    check_topic: bool,
    /// Results that are not counted yet, by outcome: a few pairs.
    counts: Vec<(&'static str, u64)>,
}

impl<R> Machine<R> {
    /// Creates the machine of a stream. `permits` is a permit for no result.
    pub(super) fn new(settings: Settings, permits: Permit) -> Self {
        Machine {
            settings,
            intake: Intake::Idle,
            end: None,
            open: HashMap::new(),
            next_number: 0,
            correlations: HashSet::new(),
            failed: FailedEntries::default(),
            permits,
            next_deadline: None,
            results: VecDeque::new(),
            rows: VecDeque::new(),
            check_topic: false,
            counts: Vec::new(),
        }
    }

    /// Returns what has to be done next.
    pub(super) fn next_action(&mut self) -> Action<R> {
        if let Some(row) = self.rows.pop_front() {
            return Action::AwaitRow(row);
        }
        if let Some(action) = self.advance() {
            return action;
        }
        if std::mem::take(&mut self.check_topic) {
            return Action::CheckTopic;
        }
        if let Some((outcome, count)) = self.counts.pop() {
            return Action::Count(outcome, count);
        }
        match self.end.take_if(|_| self.intake.is_idle() && self.correlations.is_empty() && self.results.is_empty()) {
            Some(end) => Action::End(end),
            None => Action::Wait,
        }
    }

    /// Returns whether another request may be read.
    pub(super) fn may_read(&self) -> bool {
        let unfinished = self.correlations.len() + self.results.len();
        self.end.is_none() && self.intake.is_idle() && unfinished < self.settings.max_inflight
    }

    /// Returns whether the stream does not end yet.
    pub(super) fn is_reading(&self) -> bool {
        self.end.is_none()
    }

    /// Returns whether any record has no report.
    pub(super) fn awaits_reports(&self) -> bool {
        !self.open.is_empty()
    }

    /// Returns whether a reply can be sent.
    pub(super) fn has_results(&self) -> bool {
        !self.results.is_empty()
    }

    /// Returns the wait of the request in progress, if it has to wait.
    pub(super) fn waiting(&mut self) -> Option<Waiting<'_>> {
        self.intake.waiting()
    }

    /// Returns the earliest time at which [`Machine::time`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let ends = self.settings.until.filter(|_| self.end.is_none());
        self.next_deadline.into_iter().chain(self.intake.blocked_until()).chain(ends).min()
    }

    /// Handles a request that was read.
    pub(super) fn request(&mut self, request: StreamSendMsgRequest) {
        debug_assert!(self.may_read(), "a request was read out of turn");
        self.intake = Intake::Read(request);
    }

    /// Handles the end of the requests: the caller sends no more.
    pub(super) fn half_closed(&mut self) {
        self.end_with(End::HalfClosed);
    }

    /// Handles a request that cannot be read.
    pub(super) fn broken(&mut self, status: Status) {
        self.end_with(End::Broken(status));
    }

    /// Ends the stream, because the gateway drains or the connection has reached its age.
    pub(super) fn connection_ending(&mut self) {
        self.end_with(End::Failed(Failure::StreamEnded));
    }

    /// Handles the delivery report of a record.
    pub(super) fn report(&mut self, report: Report) {
        let Some(open) = self.open.remove(&report.entry) else { return };
        self.complete(open, report.outcome);
    }

    /// Handles the end of the wait for a row.
    pub(super) fn stored(&mut self, correlation_id: u64, result: Result<Placement, Failure>) {
        self.finish(correlation_id, result);
    }

    /// Returns the next reply, and the permits of its results.
    pub(super) fn reply(&mut self) -> (StreamSendMsgResponse, Permit) {
        let count = self.results.len().min(self.settings.max_reply);
        let permits = self.permits.split(count);
        (StreamSendMsgResponse { results: self.results.drain(..count).collect() }, permits)
    }

    /// Times out entries without a report, rejects blocked entries that found no capacity in time, and ends the stream
    /// before the caller's deadline.
    pub(super) fn time(&mut self, now: Instant) {
        if let Some(remaining) = self.intake.expire(now) {
            let why = Failure::Overloaded("no capacity in flight was released in time".into());
            self.reject(remaining, &why);
        }
        if self.next_deadline.is_some_and(|deadline| deadline <= now) {
            self.expire(now);
        }
        if self.settings.until.is_some_and(|until| until <= now) {
            self.end_with(End::Failed(Failure::StreamDeadline));
        }
    }

    fn expire(&mut self, now: Instant) {
        let mut late: Vec<u64> =
            self.open.iter().filter(|(_, open)| open.deadline <= now).map(|(number, _)| *number).collect();
        late.sort_unstable();
        for entry in late {
            self.report(Report { entry, outcome: Outcome::Unknown });
        }
        // All entries that come later have later deadlines.
        self.next_deadline = self.open.values().map(|open| open.deadline).min();
    }

    /// Ends the stream once every entry has its result. The first end counts. A request that was not accepted is
    /// dropped, and the end of the stream says so.
    fn end_with(&mut self, end: End) {
        if self.end.is_none() {
            self.end = Some(end);
            self.intake.drop_request();
        }
    }

    /// Adds the result of an entry that was enqueued.
    fn finish(&mut self, correlation_id: u64, result: Result<Placement, Failure>) {
        self.correlations.remove(&correlation_id);
        self.push_result(correlation_id, result);
    }

    fn push_result(&mut self, correlation_id: u64, result: Result<Placement, Failure>) {
        let outcome = outcome(&result);
        match self.counts.iter_mut().find(|(counted, _)| *counted == outcome) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((outcome, 1)),
        }
        // Encode an error immediately: until it is read, it must not need more memory than its permit stands for.
        self.results.push_back(StreamSendResult { correlation_id, result: Some(into_result(result)) });
    }

    /// Returns when a wait that starts now ends.
    fn deadline(&self, now: Instant) -> Instant {
        let longest = now + self.settings.max_wait;
        self.settings.until.map_or(longest, |until| until.min(longest))
    }
}
