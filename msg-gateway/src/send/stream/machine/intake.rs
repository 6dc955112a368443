//! The states of a request: it gets permits for its results, then its entries are enqueued one by one, and wait while
//! there is no capacity in flight.

use std::time::Instant;

use futures_util::future::BoxFuture;
use msg_common::limits::MAX_REQUEST_MSGS;
use msg_common::proto::{StreamSendEntry, StreamSendMsgRequest};
use prost::Message;

use crate::budget::{CapacityWait, LimitReached, Permit};
use crate::send::stream::failed_entries::FailedEntries;
use crate::send::stream::machine::entries::Remaining;
use crate::send::stream::machine::{Action, End, Machine};
use crate::send::{check_count, until_stored};
use crate::status::Failure;

/// The request in progress. Until it is accepted, the end of the stream drops it.
pub(super) enum Intake {
    Idle,
    /// It needs permits for its results.
    Read(StreamSendMsgRequest),
    /// No permits were available: it has to wait for them.
    NoPermits(StreamSendMsgRequest),
    AwaitingPermits(StreamSendMsgRequest, ResultsWait),
    /// It has the permits, and needs memory in case its entries fail.
    Reserving(Remaining, Permit),
    /// It is accepted, and its entries are being enqueued.
    Enqueuing(Remaining, Attempt),
    /// The first attempt found no capacity.
    NoCapacity(Remaining),
    /// The second attempt found no capacity either: the entries have to wait for it.
    Listening(Remaining, CapacityWait),
    Blocked(Remaining, Blocked),
}

/// Which attempt to enqueue the remaining entries this is.
pub(super) enum Attempt {
    First,
    /// Released permits notify this stream now. A permit that was released just before would be missed, so there is a
    /// second attempt.
    Second(CapacityWait),
    /// Capacity was released while the entries were blocked.
    Later(Blocked),
}

pub(super) struct Blocked {
    until: Instant,
    capacity: CapacityWait,
    _memory: Permit,
}

/// The wait of a request for the permits of its results.
pub(crate) struct ResultsWait {
    /// An error if they were not available in time.
    pub(crate) permits: BoxFuture<'static, Result<Permit, LimitReached>>,
    /// The permit for the memory of the request.
    pub(crate) _memory: Permit,
}

pub(crate) enum Waiting<'a> {
    /// [`Machine::permits`] is the event when the wait ends.
    Permits(&'a mut ResultsWait),
    /// [`Machine::capacity_released`] is the event when the wait ends.
    Capacity(&'a CapacityWait),
}

impl Intake {
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Intake::Idle)
    }

    pub(super) fn waiting(&mut self) -> Option<Waiting<'_>> {
        match self {
            Intake::AwaitingPermits(_, wait) => Some(Waiting::Permits(wait)),
            Intake::Blocked(_, blocked) => Some(Waiting::Capacity(&blocked.capacity)),
            _ => None,
        }
    }

    pub(super) fn blocked_until(&self) -> Option<Instant> {
        if let Intake::Blocked(_, blocked) = self { Some(blocked.until) } else { None }
    }

    /// Removes the entries that found no capacity until `now`.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Remaining> {
        if self.blocked_until().is_none_or(|until| until > now) {
            return None;
        }
        if let Intake::Blocked(remaining, _) = self.take() { Some(remaining) } else { None }
    }

    /// Drops a request that is not accepted yet, with its permits.
    pub(super) fn drop_request(&mut self) {
        if let Intake::Read(_) | Intake::NoPermits(_) | Intake::AwaitingPermits(..) | Intake::Reserving(..) = self {
            *self = Intake::Idle;
        }
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Intake::Idle)
    }
}

impl<R> Machine<R> {
    /// Advances the request in progress until it needs the driver or has to wait.
    pub(super) fn advance(&mut self) -> Option<Action<R>> {
        while let Intake::Enqueuing(remaining, _) = &mut self.intake {
            let Some(entry) = remaining.pop() else {
                self.intake = Intake::Idle;
                return None;
            };
            if let Some(action) = self.admit(entry) {
                return Some(action);
            }
        }
        match &self.intake {
            Intake::Read(request) => Some(Action::AcquireResults(results_of(request))),
            Intake::NoPermits(request) => {
                Some(Action::AwaitResults { count: results_of(request), bytes: memory_of(&request.entries) })
            }
            Intake::Reserving(remaining, _) => Some(Action::ReserveFailed(self.failed_bytes(remaining))),
            Intake::NoCapacity(_) => Some(Action::Listen),
            Intake::Listening(remaining, _) => Some(Action::AcquireMemory(memory_of(&remaining.entries))),
            Intake::Idle | Intake::AwaitingPermits(..) | Intake::Enqueuing(..) | Intake::Blocked(..) => None,
        }
    }

    /// Accepts the permits for the results of the request, or their error, which ends the stream.
    pub(crate) fn permits(&mut self, permits: Result<Permit, Failure>) {
        match self.intake.take() {
            Intake::Read(request) | Intake::AwaitingPermits(request, _) => {
                match permits.and_then(|permits| Ok((self.check(request)?, permits))) {
                    Ok((remaining, permits)) => self.intake = Intake::Reserving(remaining, permits),
                    Err(failure) => self.end_with(End::Failed(failure)),
                }
            }
            other => self.intake = other,
        }
    }

    /// Makes the request wait, because there are no permits for its results.
    pub(crate) fn permits_exhausted(&mut self) {
        self.intake = match self.intake.take() {
            Intake::Read(request) => Intake::NoPermits(request),
            other => other,
        };
    }

    /// Accepts the wait for the permits, or an error, which ends the stream.
    pub(crate) fn awaiting_permits(&mut self, wait: Result<ResultsWait, Failure>) {
        match (self.intake.take(), wait) {
            (Intake::NoPermits(request), Ok(wait)) => self.intake = Intake::AwaitingPermits(request, wait),
            (Intake::NoPermits(_), Err(failure)) => self.end_with(End::Failed(failure)),
            (other, _) => self.intake = other,
        }
    }

    /// Accepts the request, because the memory for failed entries is held. An error ends the stream.
    pub(crate) fn reserved(&mut self, reserved: Result<(), Failure>) {
        match (self.intake.take(), reserved) {
            (Intake::Reserving(remaining, permits), Ok(())) => {
                self.permits.merge(permits);
                self.intake = Intake::Enqueuing(remaining, Attempt::First);
            }
            (Intake::Reserving(..), Err(failure)) => self.end_with(End::Failed(failure)),
            (other, _) => self.intake = other,
        }
    }

    /// Accepts the listener for capacity. Released permits notify it from now on.
    pub(crate) fn listening(&mut self, capacity: CapacityWait) {
        self.intake = match self.intake.take() {
            Intake::NoCapacity(remaining) => Intake::Enqueuing(remaining, Attempt::Second(capacity)),
            other => other,
        };
    }

    /// Blocks the remaining entries until there is capacity, or rejects them, if there is no memory for them.
    pub(crate) fn blocked(&mut self, memory: Result<Permit, Failure>, now: Instant) {
        match (self.intake.take(), memory) {
            (Intake::Listening(remaining, capacity), Ok(_memory)) => {
                self.intake = Intake::Blocked(remaining, Blocked { until: self.deadline(now), capacity, _memory });
            }
            (Intake::Listening(remaining, _), Err(why)) => self.reject(remaining, &why),
            (other, _) => self.intake = other,
        }
    }

    pub(crate) fn capacity_released(&mut self) {
        self.intake = match self.intake.take() {
            Intake::Blocked(remaining, blocked) => Intake::Enqueuing(remaining, Attempt::Later(blocked)),
            other => other,
        };
    }

    /// Puts back an entry for which there is no capacity. The entries behind it wait with it.
    pub(super) fn put_back(&mut self, entry: StreamSendEntry) {
        self.intake = match self.intake.take() {
            Intake::Enqueuing(mut remaining, attempt) => {
                remaining.put_back(entry);
                match attempt {
                    Attempt::First => Intake::NoCapacity(remaining),
                    Attempt::Second(capacity) => Intake::Listening(remaining, capacity),
                    Attempt::Later(blocked) => Intake::Blocked(remaining, blocked),
                }
            }
            other => other,
        };
    }

    /// Checks a request as a whole. An error ends the stream: none of the entries is accepted.
    fn check(&self, request: StreamSendMsgRequest) -> Result<Remaining, Failure> {
        let until_stored = match (check_count("entries", request.entries.len()), until_stored(request.wait_for)) {
            (None, Ok(until_stored)) => until_stored,
            (count, wait_for) => return Err(Failure::Invalid(count.into_iter().chain(wait_for.err()).collect())),
        };
        if self.failed.len() > self.settings.max_failed {
            let text = "too many failed entries have to be sent again; continue with a new stream";
            return Err(Failure::Overloaded(text.into()));
        }
        Ok(Remaining { entries: request.entries.into(), index: 0, until_stored })
    }

    /// Returns the memory of the failed entries. If there are any, it includes all entries of the request, because an
    /// entry behind a failed one fails as well.
    fn failed_bytes(&self, remaining: &Remaining) -> usize {
        let failed = self.failed.bytes();
        if failed == 0 {
            return 0;
        }
        let msgs = remaining.entries.iter().filter_map(|entry| entry.msg.as_ref());
        failed + msgs.map(|msg| FailedEntries::bytes_of(&msg.recv_id)).sum::<usize>()
    }
}

/// Returns the memory of decoded entries: an attribute of a few bytes is two strings in a tree.
fn memory_of<'a>(entries: impl IntoIterator<Item = &'a StreamSendEntry>) -> usize {
    const ATTRIBUTE_BYTES: usize = 160;
    let of = |entry: &StreamSendEntry| {
        let attributes = entry.msg.as_ref().map_or(0, |msg| msg.attributes.len());
        entry.encoded_len() + size_of::<StreamSendEntry>() + attributes * ATTRIBUTE_BYTES
    };
    entries.into_iter().map(of).sum()
}

fn results_of(request: &StreamSendMsgRequest) -> usize {
    request.entries.len().min(MAX_REQUEST_MSGS)
}
