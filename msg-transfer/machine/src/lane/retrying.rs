//! The retry of a blocked inbox: its first record alone, then growing parts of the rest. If it fails, the records wait
//! again.

use super::blocked::{Retry, Waiting, queue};
use super::state::{Batch, EndStep, State};
use super::{BatchFailure, Failure, Machine, Message, Outcome, Request, Response, unexpected};
use crate::consumer::Event;
use crate::failure::Class;

/// One of this number of attempts has the full timeouts: a slow row may need them. A lock does not.
const LONG_EVERY: usize = 4;

impl<T: Message> Machine<T> {
    /// Starts to retry the next blocked inbox, if there is one. Panics unless the last request was `Done`, or there was
    /// none.
    pub fn retry(&mut self, events: &mut Vec<Event>) -> Option<Request> {
        assert!(self.is_idle(), "one batch at a time");
        let (recv_id, Waiting { entries, failure, attempts }) = self.blocked.pop()?;
        let batch = Batch::new(Some(Retry { recv_id, failure, attempts, max_records: 1 }));
        Some(self.start_part(Box::new(batch), entries.into(), events))
    }

    /// Returns whether an attempt has short timeouts: a lane must not spend its time on an inbox that is not written
    /// anyway.
    pub(super) fn is_short(&self, batch: &Batch<T>) -> bool {
        let Some(retry) = &batch.retry else { return false };
        let is_long_turn = retry.attempts % LONG_EVERY == LONG_EVERY - 1;
        batch.entries.len() == 1
            && !batch.has_huge(self.settings.huge)
            && (retry.failure.class == Class::Locked || !is_long_turn)
    }

    /// Returns whether this is a retry, and the failure means no more than that the inbox is still blocked.
    pub(super) fn is_still_blocked(&self, batch: &Batch<T>, class: Class) -> bool {
        batch.retry.is_some()
            && match class {
                Class::Permanent | Class::TooLarge => false,
                // A huge record alone had the full timeouts: a bisection finds out whether it is the cause.
                Class::Heavy => batch.entries.len() > 1 || !batch.has_huge(self.settings.huge),
                _ => true,
            }
    }

    /// Ends a retry: nothing was committed, and the failure says nothing about other inboxes.
    pub(super) fn roll_back_retry(&mut self, batch: Batch<T>, failure: Failure) -> Request {
        let outcome = self.put_back(batch, failure);
        self.ending(outcome, EndStep::Rollback, Request::Rollback)
    }

    /// Puts the records of a failed retry back to the blocked ones. Returns the result of the parts that were stored.
    pub(super) fn put_back(&mut self, batch: Batch<T>, failure: Failure) -> Outcome {
        let Batch { entries, rest, outcome, retry, .. } = batch;
        let Some(retry) = retry else { return outcome };
        self.cache.remove(&retry.recv_id);
        if !entries.is_empty() || !rest.is_empty() {
            let failure = if failure.class == Class::Lost { retry.failure } else { failure };
            // Some may wait already, found by a bisection of this retry: they were received after `entries`, and some
            // of `rest` after them.
            let waiting = self.blocked.waiting(retry.recv_id, failure, retry.attempts + 1);
            for entry in entries.into_iter().rev() {
                waiting.push_front(entry);
            }
            for entry in rest {
                queue(waiting, entry);
            }
        }
        outcome
    }

    pub(super) fn end(&mut self, outcome: Outcome, step: EndStep, response: Response) -> Request {
        match (step, response) {
            (EndStep::Rollback | EndStep::Disconnection | EndStep::Backoff, Response::Ok) => Request::Done(outcome),
            (EndStep::Rollback, Response::Failed(failure)) => self.disconnect_at_end(outcome, failure),
            (EndStep::Rollback, response) => self.disconnect_at_end(outcome, unexpected("Rollback", &response)),
            (EndStep::RollbackFailed(failure), Response::Ok) => self.wait_at_end(outcome, failure),
            (step, response) => self.wait_at_end(outcome, unexpected(step, &response)),
        }
    }

    fn disconnect_at_end(&mut self, outcome: Outcome, failure: Failure) -> Request {
        self.connection = None;
        self.cache.clear();
        self.ending(outcome, EndStep::RollbackFailed(failure), Request::Disconnect)
    }

    /// Reports a failure that belongs to no record.
    pub(super) fn wait_at_end(&mut self, outcome: Outcome, failure: Failure) -> Request {
        self.ending(outcome, EndStep::Backoff, Request::Wait(BatchFailure { failure, attempts: 1 }))
    }

    pub(super) fn ending(&mut self, outcome: Outcome, step: EndStep, request: Request) -> Request {
        self.state = State::Ending(outcome, step);
        request
    }
}
