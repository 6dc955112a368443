//! The retry of a blocked inbox: its first record alone, then growing parts of the rest. If it fails, the records wait
//! again.

use super::blocked::{Queue, Retry, Waiting, insert};
use super::entry::Known;
use super::state::{Batch, EndStep, State};
use super::{BatchError, ClassifiedError, Machine, Message, Outcome, Request, Response, unexpected};
use crate::consumer::Event;
use crate::error::ErrorClass;

/// One of this number of attempts has the full timeouts: a slow row may need them. A lock does not.
const LONG_EVERY: usize = 4;

impl<T: Message> Machine<T> {
    /// Starts to retry the next blocked inbox, if there is one. Panics unless the last request was `Done`, or there was
    /// none.
    pub fn retry(&mut self, events: &mut Vec<Event>) -> Option<Request> {
        assert!(self.is_idle(), "one batch at a time");
        let (queue, Waiting { entries, error, attempts }) = self.blocked.pop()?;
        let batch = Batch::new(Some(Retry { queue, error, attempts, max_records: 1 }));
        Some(self.start_part(Box::new(batch), entries.into(), events))
    }

    /// Returns whether an attempt has short timeouts: a lane must not spend its time on an inbox that is not written
    /// anyway.
    pub(super) fn is_short(&self, batch: &Batch<T>) -> bool {
        let Some(retry) = &batch.retry else { return false };
        let is_long_turn = retry.attempts % LONG_EVERY == LONG_EVERY - 1;
        batch.entries.len() == 1
            && !batch.has_huge(self.settings.huge)
            && (retry.error.class == ErrorClass::Locked || !is_long_turn)
    }

    /// Returns whether this is a retry, and the error means no more than that the inbox is still blocked.
    pub(super) fn is_still_blocked(&self, batch: &Batch<T>, class: ErrorClass) -> bool {
        batch.retry.is_some()
            && match class {
                ErrorClass::Permanent | ErrorClass::TooLarge => false,
                // A huge record alone had the full timeouts: a bisection finds out whether it is the cause.
                ErrorClass::Heavy => batch.entries.len() > 1 || !batch.has_huge(self.settings.huge),
                _ => true,
            }
    }

    /// Ends a retry: nothing was committed, and the error says nothing about other inboxes.
    pub(super) fn roll_back_retry(&mut self, batch: Batch<T>, error: ClassifiedError) -> Request {
        let outcome = self.put_back(batch, error);
        self.ending(outcome, EndStep::Rollback, Request::Rollback)
    }

    /// Puts the records of a failed retry back to the blocked ones. Returns the result of the parts that were stored.
    pub(super) fn put_back(&mut self, batch: Batch<T>, error: ClassifiedError) -> Outcome {
        let Batch { entries, rest, outcome, retry, .. } = batch;
        let Some(retry) = retry else { return outcome };
        if let Queue::Inbox(recv_id) = &retry.queue {
            self.cache.remove(recv_id);
        }
        if !entries.is_empty() || !rest.is_empty() {
            let error = if error.class == ErrorClass::Lost { retry.error } else { error };
            // Some may wait already, found by a bisection of this retry: they were received after `entries`, and some
            // of `rest` after them.
            let waiting = self.blocked.waiting(retry.queue, error, retry.attempts + 1);
            for mut entry in entries.into_iter().rev() {
                entry.known = Known::New;
                waiting.push_front(entry);
            }
            for entry in rest {
                insert(waiting, entry);
            }
        }
        outcome
    }

    pub(super) fn end(&mut self, outcome: Outcome, step: EndStep, response: Response) -> Request {
        match (step, response) {
            (EndStep::Rollback | EndStep::Disconnection | EndStep::Backoff, Response::Ok) => Request::Done(outcome),
            (EndStep::Rollback, Response::Failed(error)) => self.disconnect_at_end(outcome, error),
            (EndStep::Rollback, response) => self.disconnect_at_end(outcome, unexpected("Rollback", &response)),
            (EndStep::RollbackFailed(error), Response::Ok) => self.wait_at_end(outcome, error),
            (step, response) => self.wait_at_end(outcome, unexpected(step, &response)),
        }
    }

    fn disconnect_at_end(&mut self, outcome: Outcome, error: ClassifiedError) -> Request {
        self.connection = None;
        self.cache.clear();
        self.ending(outcome, EndStep::RollbackFailed(error), Request::Disconnect)
    }

    /// Reports an error that belongs to no record.
    pub(super) fn wait_at_end(&mut self, outcome: Outcome, error: ClassifiedError) -> Request {
        self.ending(outcome, EndStep::Backoff, Request::Wait(BatchError { error, attempts: 1 }))
    }

    pub(super) fn ending(&mut self, outcome: Outcome, step: EndStep, request: Request) -> Request {
        self.state = State::Ending(outcome, step);
        request
    }
}
