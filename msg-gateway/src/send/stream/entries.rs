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
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use crate::buffer_budget::BufferPermit;
use crate::producer::{Report, ReportSender};
use crate::send::budget::CapacityWait;
use crate::send::outcome::Outcome;
use crate::send::record::{PendingSend, Record, bytes_in_flight, id_of};
use crate::send::stored::Awaited;
use crate::send::stream::failed_entries::FailedEntries;
use crate::send::stream::memory_of;
use crate::send::stream::replies::Reply;
use crate::send::{Sender, check_count, into_result, must_be_set, until_stored};
use crate::status::Failure;

/// So many failed entries may wait to be sent again; more end the stream.
const MAX_FAILED_ENTRIES: usize = 10_000;

/// A row that is awaited: the entry's `correlation_id`, and what became of it.
pub(super) type Stored = (u64, Result<Placement, Failure>);

pub(super) struct Entries {
    sender: Arc<Sender>,
    traceparent: Option<Vec<u8>>,
    /// After this nothing is awaited: the caller's deadline is near.
    until: Option<Instant>,
    reports: UnboundedSender<Report>,
    /// Those that the producer has and has not reported, by a number that is never used again: a `correlation_id` is, and a
    /// report may come after its entry was answered.
    open: HashMap<u64, Open>,
    next: u64,
    /// Of all that are not answered.
    correlations: HashSet<u64>,
    failed: FailedEntries,
    /// Their bytes.
    failed_bytes: BufferPermit,
    /// One for each entry whose result is not on its way yet.
    pub(super) permits: OwnedSemaphorePermit,
    /// What was read and has no room yet.
    pub(super) blocked: Option<BlockedEntries>,
    /// When to look for those that are late; not after the first of them is.
    next_deadline: Option<Instant>,
    /// Rows that are awaited.
    pub(super) stored: FuturesUnordered<BoxFuture<'static, Stored>>,
    /// What is ready to be into_result.
    pub(super) results: VecDeque<StreamSendResult>,
}

struct Open {
    correlation_id: u64,
    rank: u64,
    pending: PendingSend,
    deadline: Instant,
    awaited: Option<Awaited>,
}

/// The remaining of a request.
struct RemainingEntries {
    entries: VecDeque<StreamSendEntry>,
    /// The first one's index in the request.
    index: usize,
    until_stored: bool,
}

/// Entries for which there is no room in flight.
pub(super) struct BlockedEntries {
    remaining: RemainingEntries,
    until: Instant,
    /// Tells when there may be.
    pub(super) capacity: CapacityWait,
    _permit: BufferPermit,
}

impl Entries {
    pub(super) fn new(
        sender: Arc<Sender>,
        traceparent: Option<Vec<u8>>,
        until: Option<Instant>,
        reports: UnboundedSender<Report>,
    ) -> Self {
        let permits = sender.results.clone().try_acquire_many_owned(0).expect("none are always there");
        let failed_bytes = sender.blocked_requests.acquire(0).expect("none are always there");
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

    /// Whether another request may be read.
    pub(super) fn have_capacity(&self) -> bool {
        self.blocked.is_none() && self.correlations.len() + self.results.len() < self.sender.max_stream_inflight
    }

    /// The next reply, of as many results as a request may have entries.
    pub(super) fn reply(&mut self) -> Reply {
        let count = self.results.len().min(MAX_REQUEST_MSGS);
        let permits = self.permits.split(count).expect("each entry has one");
        Reply { response: StreamSendMsgResponse { results: self.results.drain(..count).collect() }, permits }
    }

    /// Whether every entry is answered and into_result.
    pub(super) fn are_done(&self) -> bool {
        self.blocked.is_none() && self.correlations.is_empty() && self.results.is_empty()
    }

    /// Whether any record has no report.
    pub(super) fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// When [`Entries::look`] has something to do at the earliest.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.next_deadline.into_iter().chain(self.blocked.as_ref().map(|blocked| blocked.until)).min()
    }

    /// Takes a request's entries, which have these permits. An error is the stream's: none of them was taken, and no further
    /// ones may be.
    pub(super) fn accept(
        &mut self,
        request: StreamSendMsgRequest,
        permits: OwnedSemaphorePermit,
    ) -> Result<(), Failure> {
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
        // From now on room that is given back is into_result of: so once more, or the last of it could have been missed.
        let capacity = self.sender.budget.wait_for_capacity();
        let remaining = self.enqueue_all(remaining);
        let bytes = memory_of(&remaining.entries);
        match self.sender.blocked_requests.acquire(bytes) {
            Some(_) if remaining.entries.is_empty() => {}
            Some(_permit) => {
                let until = self.deadline();
                self.blocked = Some(BlockedEntries { remaining, until, capacity, _permit });
            }
            None => self.reject(remaining, "too many bytes of requests wait for room"),
        }
        Ok(())
    }

    /// Bytes for the failed entries that have to come again, among what streams hold of requests; and, where there are any, for all of
    /// a request's, since an entry fails that is behind one of those.
    fn reserve_failed(&mut self, entries: &[StreamSendEntry]) -> Result<(), Failure> {
        let failed = self.failed.bytes();
        if failed == 0 {
            self.failed_bytes.try_resize(0);
            return Ok(());
        }
        let names = entries.iter().filter_map(|entry| entry.msg.as_ref());
        let more: usize = names.map(|msg| FailedEntries::bytes_of(&msg.recv_id)).sum();
        if !self.failed_bytes.try_resize(failed + more) {
            return Err(Failure::Overloaded(
                "failed entries of all streams take too many bytes; continue with a new stream, or raise MAX_ARRIVING_BYTES".into(),
            ));
        }
        Ok(())
    }

    /// There may be room now.
    pub(super) fn retry_blocked(&mut self) {
        let Some(blocked) = self.blocked.take() else { return };
        let remaining = self.enqueue_all(blocked.remaining);
        if !remaining.entries.is_empty() {
            self.blocked = Some(BlockedEntries { remaining, ..blocked });
        }
    }

    /// What became of a record.
    pub(super) fn report(&mut self, report: Report) {
        let Some(open) = self.open.remove(&report.entry) else { return };
        self.complete(open, report.outcome);
    }

    /// What became of an entry whose row was awaited.
    pub(super) fn stored(&mut self, (correlation_id, result): Stored) {
        self.answer(correlation_id, result);
    }

    /// Answers those that have no report in time, and refuses those that have found no room in time.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.blocked.as_ref().is_some_and(|blocked| blocked.until <= now)
            && let Some(blocked) = self.blocked.take()
        {
            self.reject(blocked.remaining, "no room in flight for too long");
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
        // All that come later have later deadlines.
        self.next_deadline = self.open.values().map(|open| open.deadline).min();
    }

    /// Takes entries in order, as long as there is room; what is left.
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

    /// Hands an entry over, or answers it; gives it back when there is no room for it.
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
        let Ok(permit) = self.sender.budget.acquire(bytes_in_flight(&msg)) else {
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

    /// The message of an entry and its id, if the entry breaks no rule.
    fn check(&self, correlation_id: u64, msg: Option<Msg>, index: usize) -> Result<(Msg, Uuid), Failure> {
        if self.correlations.contains(&correlation_id) {
            let field = format!("entries[{index}].correlation_id");
            let description = "is that of an entry that is not answered yet".into();
            return Err(Failure::Invalid(vec![Violation { field, description }]));
        }
        let path = || format!("entries[{index}].msg");
        let msg = msg.ok_or_else(|| Failure::Invalid(vec![must_be_set(&path())]))?;
        self.sender.check_entry(&msg, path)?;
        let msg_id = id_of(&msg);
        Ok((msg, msg_id))
    }

    fn reject(&mut self, remaining: RemainingEntries, why: &str) {
        for (index, StreamSendEntry { correlation_id, msg }) in (remaining.index..).zip(remaining.entries) {
            let result = match self.check(correlation_id, msg, index) {
                Ok((msg, msg_id)) => {
                    let rank = self.failed.rank_if_next(&msg.recv_id, msg_id, self.next);
                    self.failed.add(&msg.recv_id, msg_id, rank.unwrap_or(self.next));
                    self.next += 1;
                    Err(rank.map_or(Failure::PredecessorFailed, |_| Failure::Overloaded(why.into())))
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

    /// The result of an entry that was taken.
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
