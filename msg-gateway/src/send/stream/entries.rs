//! The entries of one stream, from the request to the result. Nothing in here waits.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use msg_common::limits::{MAX_REQUEST_MSGS, Violation};
use msg_common::proto::{
    Msg, Placement, StreamSendEntry, StreamSendMsgRequest, StreamSendMsgResponse, StreamSendResult,
};
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use crate::budget::{CapacityWait, Permit};
use crate::producer::{Report, ReportSender};
use crate::send::outcome::Outcome;
use crate::send::record::{PendingSend, Record, amount_in_flight, id_of};
use crate::send::stored::Awaited;
use crate::send::stream::failed_entries::FailedEntries;
use crate::send::stream::memory_of;
use crate::send::stream::replies::Reply;
use crate::send::{Sender, check_count, into_result, must_be_set, until_stored};
use crate::status::Failure;

/// Maximum number of failed entries that have to be sent again. With more, the stream ends.
const MAX_FAILED_ENTRIES: usize = 10_000;

/// The result of an entry whose row was awaited, with the entry's `correlation_id`.
pub(super) type Stored = (u64, Result<Placement, Failure>);

pub(super) struct Entries {
    sender: Arc<Sender>,
    traceparent: Option<Vec<u8>>,
    /// When the caller's deadline is near: nothing is awaited after this.
    until: Option<Instant>,
    reports: UnboundedSender<Report>,
    /// The enqueued entries without a report, by a number that is never reused. A `correlation_id` may be, and a
    /// report may come after its entry got a result.
    open: HashMap<u64, Open>,
    next: u64,
    /// The `correlation_id`s of all entries without a result.
    correlations: HashSet<u64>,
    failed: FailedEntries,
    /// The permit for the memory of `failed`.
    failed_bytes: Permit,
    /// One for each entry whose result is not in a reply yet.
    pub(super) permits: Permit,
    /// Entries that were read and wait for capacity in flight.
    pub(super) blocked: Option<BlockedEntries>,
    /// The next time to expire entries: not later than the first deadline of an open entry.
    next_deadline: Option<Instant>,
    /// Accepted entries whose rows are awaited.
    pub(super) stored: FuturesUnordered<BoxFuture<'static, Stored>>,
    /// Results that are not in a reply yet.
    pub(super) results: VecDeque<StreamSendResult>,
}

struct Open {
    correlation_id: u64,
    rank: u64,
    pending: PendingSend,
    deadline: Instant,
    awaited: Option<Awaited>,
}

/// The entries of a request that were not enqueued yet.
struct RemainingEntries {
    entries: VecDeque<StreamSendEntry>,
    /// The index of the first one in the request.
    index: usize,
    until_stored: bool,
}

/// Entries that wait for capacity in flight.
pub(super) struct BlockedEntries {
    remaining: RemainingEntries,
    until: Instant,
    /// Notified when a permit was released.
    pub(super) capacity: CapacityWait,
    _permit: Permit,
}

impl Entries {
    pub(super) fn new(
        sender: Arc<Sender>,
        traceparent: Option<Vec<u8>>,
        until: Option<Instant>,
        reports: UnboundedSender<Report>,
    ) -> Self {
        let (permits, failed_bytes) = (sender.budgets.stream_results.empty(), sender.budgets.blocked_requests.empty());
        Entries {
            sender,
            failed_bytes,
            traceparent,
            until,
            reports,
            open: HashMap::new(),
            next: 0,
            correlations: HashSet::new(),
            failed: FailedEntries::default(),
            permits,
            blocked: None,
            next_deadline: None,
            stored: FuturesUnordered::new(),
            results: VecDeque::new(),
        }
    }

    /// Returns whether another request may be read.
    pub(super) fn have_capacity(&self) -> bool {
        self.blocked.is_none() && self.correlations.len() + self.results.len() < self.sender.max_stream_inflight
    }

    /// Returns the next reply, with up to as many results as a request may have entries.
    pub(super) fn reply(&mut self) -> Reply {
        let count = self.results.len().min(MAX_REQUEST_MSGS);
        let permits = self.permits.split(count);
        Reply { response: StreamSendMsgResponse { results: self.results.drain(..count).collect() }, permits }
    }

    /// Returns whether every entry has a result, and every result is in a reply.
    pub(super) fn are_done(&self) -> bool {
        self.blocked.is_none() && self.correlations.is_empty() && self.results.is_empty()
    }

    /// Returns whether any record has no report.
    pub(super) fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Returns the earliest time at which [`Entries::expire`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.next_deadline.into_iter().chain(self.blocked.as_ref().map(|blocked| blocked.until)).min()
    }

    /// Accepts the entries of a request, with the permits for their results. An error ends the stream: none of the
    /// entries was accepted.
    pub(super) fn accept(&mut self, request: StreamSendMsgRequest, permits: Permit) -> Result<(), Failure> {
        let until_stored = match (check_count("entries", request.entries.len()), until_stored(request.wait_for)) {
            (None, Ok(until_stored)) => until_stored,
            (count, wait_for) => return Err(Failure::Invalid(count.into_iter().chain(wait_for.err()).collect())),
        };
        if self.failed.len() > MAX_FAILED_ENTRIES {
            return Err(Failure::Overloaded(
                "too many failed entries have to be sent again; go on with a new stream".into(),
            ));
        }
        self.reserve_failed(&request.entries)?;
        self.permits.merge(permits);
        let remaining = self.enqueue_all(RemainingEntries { entries: request.entries.into(), index: 0, until_stored });
        if remaining.entries.is_empty() {
            return Ok(());
        }
        // Now released permits notify this stream. Try once more: a permit that was released just before would be
        // missed.
        let capacity = self.sender.budgets.in_flight.wait_for_capacity();
        let remaining = self.enqueue_all(remaining);
        let bytes = memory_of(&remaining.entries);
        match self.sender.budgets.blocked_requests.try_acquire(bytes) {
            _ if remaining.entries.is_empty() => {}
            Ok(_permit) => {
                let until = self.deadline();
                self.blocked = Some(BlockedEntries { remaining, until, capacity, _permit });
            }
            Err(reached) => self.reject(remaining, &reached.into()),
        }
        Ok(())
    }

    /// Reserves memory for the failed entries that have to be sent again. If there are any, it reserves memory for all
    /// entries of the request too, because an entry behind a failed one fails as well.
    fn reserve_failed(&mut self, entries: &[StreamSendEntry]) -> Result<(), Failure> {
        let failed = self.failed.bytes();
        if failed == 0 {
            self.failed_bytes.shrink(0);
            return Ok(());
        }
        let names = entries.iter().filter_map(|entry| entry.msg.as_ref());
        let more: usize = names.map(|msg| FailedEntries::bytes_of(&msg.recv_id)).sum();
        Ok(self.failed_bytes.try_resize(failed + more)?)
    }

    /// Enqueues blocked entries, because capacity may have been released.
    pub(super) fn retry_blocked(&mut self) {
        let Some(blocked) = self.blocked.take() else { return };
        let remaining = self.enqueue_all(blocked.remaining);
        if !remaining.entries.is_empty() {
            self.blocked = Some(BlockedEntries { remaining, ..blocked });
        }
    }

    /// Handles the delivery report of an entry.
    pub(super) fn report(&mut self, report: Report) {
        let Some(open) = self.open.remove(&report.entry) else { return };
        self.complete(open, report.outcome);
    }

    /// Handles the result of an entry whose row was awaited.
    pub(super) fn stored(&mut self, (correlation_id, result): Stored) {
        self.answer(correlation_id, result);
    }

    /// Times out entries without a report, and rejects blocked entries that found no capacity in time.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.blocked.as_ref().is_some_and(|blocked| blocked.until <= now)
            && let Some(blocked) = self.blocked.take()
        {
            let why = Failure::Overloaded("no capacity in flight was released in time".into());
            self.reject(blocked.remaining, &why);
        }
        if self.next_deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        let mut late: Vec<u64> =
            self.open.iter().filter(|(_, open)| open.deadline <= now).map(|(entry, _)| *entry).collect();
        late.sort_unstable();
        for entry in late {
            self.report(Report { entry, outcome: Outcome::Unknown });
        }
        // All entries that come later have later deadlines.
        self.next_deadline = self.open.values().map(|open| open.deadline).min();
    }

    /// Enqueues entries in order while there is capacity. Returns the remaining ones.
    fn enqueue_all(&mut self, mut remaining: RemainingEntries) -> RemainingEntries {
        while let Some(entry) = remaining.entries.pop_front() {
            if let Some(entry) = self.enqueue_or_reject(entry, remaining.index, remaining.until_stored) {
                remaining.entries.push_front(entry);
                break;
            }
            remaining.index += 1;
        }
        remaining
    }

    /// Enqueues an entry, or gives it its error. Returns the entry if there is no capacity for it.
    fn enqueue_or_reject(
        &mut self,
        StreamSendEntry { correlation_id, msg }: StreamSendEntry,
        index: usize,
        until_stored: bool,
    ) -> Option<StreamSendEntry> {
        let (msg, msg_id) = match self.check(correlation_id, msg, index) {
            Ok(checked) => checked,
            Err(failure) => {
                self.push_result(correlation_id, Err(failure));
                return None;
            }
        };
        let number = self.next;
        self.next += 1;
        let Some(rank) = self.failed.rank_if_next(&msg.recv_id, msg_id, number) else {
            self.failed.add(&msg.recv_id, msg_id, number);
            self.push_result(correlation_id, Err(Failure::PredecessorFailed));
            return None;
        };
        let Ok(permit) = self.sender.budgets.in_flight.try_acquire(amount_in_flight(&msg)) else {
            return Some(StreamSendEntry { correlation_id, msg: Some(msg) });
        };
        let awaited = match until_stored.then(|| Awaited::new(&self.sender.waiters, &msg)).transpose() {
            Ok(awaited) => awaited,
            Err(failure) => {
                self.failed.add(&msg.recv_id, msg_id, rank);
                self.push_result(correlation_id, Err(failure));
                return None;
            }
        };
        self.failed.remove_sent(&msg.recv_id, msg_id);
        let answer = ReportSender::Many { entry: number, reports: self.reports.clone() };
        let record = Record::new(msg, msg_id, self.sender.partitions);
        let (pending, result) = record.enqueue(&self.sender.producer, self.traceparent.as_deref(), answer, permit);
        self.correlations.insert(correlation_id);
        let open = Open { correlation_id, rank, pending, deadline: self.deadline(), awaited };
        match result {
            Ok(()) => {
                self.next_deadline.get_or_insert(open.deadline);
                self.open.insert(number, open);
            }
            Err(failure) => self.fail(&open, failure),
        }
        None
    }

    /// Checks an entry. Returns its message and the message's ID.
    fn check(&self, correlation_id: u64, msg: Option<Msg>, index: usize) -> Result<(Msg, Uuid), Failure> {
        if self.correlations.contains(&correlation_id) {
            let field = format!("entries[{index}].correlation_id");
            let description = "is that of an entry that has no result yet".into();
            return Err(Failure::Invalid(vec![Violation { field, description }]));
        }
        let path = || format!("entries[{index}].msg");
        let msg = msg.ok_or_else(|| Failure::Invalid(vec![must_be_set(&path())]))?;
        self.sender.check_entry(&msg, path)?;
        let msg_id = id_of(&msg);
        Ok((msg, msg_id))
    }

    fn reject(&mut self, remaining: RemainingEntries, why: &Failure) {
        for (index, StreamSendEntry { correlation_id, msg }) in (remaining.index..).zip(remaining.entries) {
            let result = match self.check(correlation_id, msg, index) {
                Ok((msg, msg_id)) => {
                    let rank = self.failed.rank_if_next(&msg.recv_id, msg_id, self.next);
                    self.failed.add(&msg.recv_id, msg_id, rank.unwrap_or(self.next));
                    self.next += 1;
                    Err(rank.map_or(Failure::PredecessorFailed, |_| why.clone()))
                }
                Err(failure) => Err(failure),
            };
            self.push_result(correlation_id, result);
        }
    }

    fn complete(&mut self, mut open: Open, outcome: Outcome) {
        match (self.sender.result_of(&open.pending, outcome), open.awaited.take()) {
            (Ok(placement), Some(awaited)) => {
                let Open { correlation_id, pending, deadline, .. } = open;
                let stored =
                    async move { (correlation_id, awaited.stored(pending.recv_id, placement, deadline).await) };
                self.stored.push(Box::pin(stored));
            }
            (Ok(placement), None) => self.answer(open.correlation_id, Ok(placement)),
            (Err(failure), _) => self.fail(&open, failure),
        }
    }

    fn fail(&mut self, open: &Open, failure: Failure) {
        if failure.leaves_a_gap() {
            self.failed.add(&open.pending.recv_id, open.pending.msg_id, open.rank);
        }
        self.answer(open.correlation_id, Err(failure));
    }

    /// Adds the result of an entry that was enqueued.
    fn answer(&mut self, correlation_id: u64, result: Result<Placement, Failure>) {
        self.correlations.remove(&correlation_id);
        self.push_result(correlation_id, result);
    }

    fn push_result(&mut self, correlation_id: u64, result: Result<Placement, Failure>) {
        self.sender.stream_metrics.count(&result);
        self.results.push_back(StreamSendResult { correlation_id, result: Some(into_result(result)) });
    }

    fn deadline(&self) -> Instant {
        let longest = Instant::now() + self.sender.timing.max_wait;
        self.until.map_or(longest, |until| until.min(longest))
    }
}
