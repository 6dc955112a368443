//! The consequences of an error: another attempt, fewer records in one transaction, or a bisection.

use super::bisection::Bisection;
use super::state::{Batch, BisectStep, EndStep, Rows, Step};
use super::{ClassifiedError, Machine, Message, Request};
use crate::error::ErrorClass;

impl<T: Message> Machine<T> {
    pub(super) fn insert_failed(&mut self, batch: Box<Batch<T>>, rows: Rows, error: ClassifiedError) -> Request {
        match error.class {
            ErrorClass::Lost => self.abandon(batch, error),
            class if self.is_still_blocked(&batch, class) => self.roll_back_retry(*batch, error),
            // Bisected already, or too many blocked inboxes: with fewer records a record that is too slow is found
            // alone.
            ErrorClass::Heavy if batch.entries.len() > 1 && (batch.bisected || !self.can_block()) => {
                self.fail(batch, error)
            }
            ErrorClass::Permanent | ErrorClass::TooLarge | ErrorClass::Heavy => {
                self.start_bisection(batch, rows, error)
            }
            // Another transaction holds a lock that one inbox needs, or that all inboxes need.
            ErrorClass::Locked if self.can_block() => self.start_bisection(batch, rows, error),
            // The connection is open, so any error may concern one inbox only. A first conflict means that another
            // owner was faster; a later one may be a foreign unique index.
            _ if batch.attempts > 0 && self.can_block() => self.start_bisection(batch, rows, error),
            _ => self.abandon(batch, error),
        }
    }

    pub(super) fn commit_failed(&mut self, batch: Box<Batch<T>>, rows: Rows, error: ClassifiedError) -> Request {
        match error.class {
            class @ (ErrorClass::Conflict | ErrorClass::Locked) if self.is_still_blocked(&batch, class) => {
                self.roll_back_retry(*batch, error)
            }
            ErrorClass::Permanent | ErrorClass::TooLarge => self.start_bisection(batch, rows, error),
            ErrorClass::Locked if self.can_block() => self.start_bisection(batch, rows, error),
            ErrorClass::Conflict if batch.attempts > 0 && self.can_block() => self.start_bisection(batch, rows, error),
            _ => self.fail(batch, error),
        }
    }

    fn start_bisection(&mut self, batch: Box<Batch<T>>, rows: Rows, cause: ClassifiedError) -> Request {
        let bisection = Box::new(Bisection::new(rows.numbered.len(), cause));
        self.bisecting(batch, rows, bisection, BisectStep::Rollback, Request::Rollback)
    }

    /// Abandons this attempt. The next one stores fewer records in one transaction if the server has no time for these.
    pub(super) fn fail(&mut self, mut batch: Box<Batch<T>>, error: ClassifiedError) -> Request {
        if error.class == ErrorClass::Heavy && batch.entries.len() > 1 {
            *self.max_records(&mut batch) = batch.entries.len() / 2;
        }
        self.abandon(batch, error)
    }

    pub(super) fn abandon_for(&mut self, batch: Box<Batch<T>>, class: ErrorClass, text: &str) -> Request {
        self.abandon(batch, ClassifiedError { class, text: text.to_owned() })
    }

    /// Abandons this attempt and closes the connection. The rows may have been committed, so nothing is known of the
    /// table.
    pub(super) fn abandon(&mut self, mut batch: Box<Batch<T>>, error: ClassifiedError) -> Request {
        self.connection = None;
        self.cache.clear();
        batch.approved = false;
        batch.forget_all();
        if batch.retry.is_some() {
            // The lane has other inboxes to store meanwhile.
            let outcome = self.put_back(*batch, error);
            return self.ending(outcome, EndStep::Disconnection, Request::Disconnect);
        }
        batch.attempts += 1;
        self.storing(batch, Step::Disconnection(error), Request::Disconnect)
    }
}
