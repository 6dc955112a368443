//! The consequences of a failure: another attempt, fewer records in one transaction, or a bisection.

use super::bisection::Bisection;
use super::state::{Batch, BisectStep, EndStep, Rows, Step};
use super::{Failure, Machine, Message, Request};
use crate::failure::Class;

impl<T: Message> Machine<T> {
    pub(super) fn insert_failed(&mut self, batch: Box<Batch<T>>, rows: Rows, failure: Failure) -> Request {
        match failure.class {
            Class::Lost => self.abandon(batch, failure),
            class if self.is_still_blocked(&batch, class) => self.roll_back_retry(*batch, failure),
            // Bisected already, or too many blocked inboxes: with fewer records a record that is too slow is found
            // alone.
            Class::Heavy if batch.entries.len() > 1 && (batch.bisected || !self.can_block()) => {
                self.fail(batch, failure)
            }
            Class::Permanent | Class::TooLarge | Class::Heavy => self.start_bisection(batch, rows, failure),
            // Another transaction holds a lock that one inbox needs, or that all inboxes need.
            Class::Locked if self.can_block() => self.start_bisection(batch, rows, failure),
            // The connection is open, so any error may concern one inbox only. A first conflict means that another
            // owner was faster; a later one may be a foreign unique index.
            _ if batch.attempts > 0 && self.can_block() => self.start_bisection(batch, rows, failure),
            _ => self.abandon(batch, failure),
        }
    }

    pub(super) fn commit_failed(&mut self, batch: Box<Batch<T>>, rows: Rows, failure: Failure) -> Request {
        match failure.class {
            class @ (Class::Conflict | Class::Locked) if self.is_still_blocked(&batch, class) => {
                self.roll_back_retry(*batch, failure)
            }
            Class::Permanent | Class::TooLarge => self.start_bisection(batch, rows, failure),
            Class::Locked if self.can_block() => self.start_bisection(batch, rows, failure),
            Class::Conflict if batch.attempts > 0 && self.can_block() => self.start_bisection(batch, rows, failure),
            _ => self.fail(batch, failure),
        }
    }

    fn start_bisection(&mut self, batch: Box<Batch<T>>, rows: Rows, cause: Failure) -> Request {
        let bisection = Box::new(Bisection::new(rows.numbered.len(), cause));
        self.bisecting(batch, rows, bisection, BisectStep::Rollback, Request::Rollback)
    }

    /// Abandons this attempt. The next one stores fewer records in one transaction if the server has no time for these.
    pub(super) fn fail(&mut self, mut batch: Box<Batch<T>>, failure: Failure) -> Request {
        if failure.class == Class::Heavy && batch.entries.len() > 1 {
            *self.max_records(&mut batch) = batch.entries.len() / 2;
        }
        self.abandon(batch, failure)
    }

    pub(super) fn abandon_for(&mut self, batch: Box<Batch<T>>, class: Class, text: &str) -> Request {
        self.abandon(batch, Failure { class, text: text.to_owned() })
    }

    /// Abandons this attempt and closes the connection. The rows may have been committed, so nothing is known of the
    /// table.
    pub(super) fn abandon(&mut self, mut batch: Box<Batch<T>>, failure: Failure) -> Request {
        self.connection = None;
        self.cache.clear();
        batch.approved = false;
        batch.forget_all();
        if batch.retry.is_some() {
            // The lane has other inboxes to store meanwhile.
            let outcome = self.put_back(*batch, failure);
            return self.ending(outcome, EndStep::Disconnection, Request::Disconnect);
        }
        batch.attempts += 1;
        self.storing(batch, Step::Disconnection(failure), Request::Disconnect)
    }
}
