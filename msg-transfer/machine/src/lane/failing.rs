//! The consequences of an error: another attempt, fewer records in one transaction, or a bisection.

use super::bisection::Bisection;
use super::state::{Batch, BisectStep, EndStep, Rows, Step};
use super::{ClassifiedError, Machine, Message, Request};
use crate::consumer::Event;
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
            class @ (ErrorClass::Conflict | ErrorClass::Locked | ErrorClass::Fatal)
                if self.is_still_blocked(&batch, class) =>
            {
                self.roll_back_retry(*batch, error)
            }
            ErrorClass::Permanent | ErrorClass::TooLarge => self.start_bisection(batch, rows, error),
            ErrorClass::Locked if self.can_block() => self.start_bisection(batch, rows, error),
            ErrorClass::Conflict | ErrorClass::Fatal if batch.attempts > 0 && self.can_block() => {
                // If the rows were committed in spite of the error, the bisection finds them before it tries any.
                self.cache.clear();
                self.start_bisection(batch, rows, error)
            }
            _ => self.fail(batch, error),
        }
    }

    fn start_bisection(&mut self, batch: Box<Batch<T>>, rows: Rows, cause: ClassifiedError) -> Request {
        let bisection = Box::new(Bisection::new(rows.numbered.len(), cause));
        self.bisecting(batch, rows, bisection, BisectStep::Rollback, Request::Rollback)
    }

    /// Handles an INSERT that inserted fewer rows than it has, though none of them is in the table. The transaction is
    /// rolled back. The first time, the others may have been deleted since. If it happens again, the database discards
    /// the rows of some inboxes without an error.
    pub(super) fn rows_without_effect(&mut self, batch: Box<Batch<T>>, rows: Rows) -> Request {
        let error = without_effect();
        if batch.retry.is_some() {
            return Request::Done(self.put_back(*batch, error));
        }
        if batch.attempts == 0 {
            return self.abandon(batch, ClassifiedError { class: ErrorClass::Transient, ..error });
        }
        if !self.can_block() {
            return self.abandon(batch, error);
        }
        let bisection = Box::new(Bisection::new(rows.numbered.len(), error));
        self.begin_bisection(batch, rows, bisection)
    }

    /// Handles repeats whose first message was inserted, or found in the table, and cannot be read.
    pub(super) fn repeats_unreadable(
        &mut self,
        batch: Box<Batch<T>>,
        found: &[(usize, bool)],
        events: &mut Vec<Event>,
    ) -> Request {
        let error = without_effect();
        if batch.retry.is_none() && (batch.attempts == 0 || !self.can_block()) {
            // A purge may have deleted them since.
            return self.abandon(batch, ClassifiedError { class: ErrorClass::Transient, ..error });
        }
        let is_found = |repeat: &usize| found.iter().any(|(entry, _)| entry == repeat);
        let unread = batch.repeats().into_iter().filter(|repeat| !is_found(repeat));
        let unread: Vec<(usize, ClassifiedError)> = unread.map(|repeat| (repeat, error.clone())).collect();
        self.block_and_roll_back(batch, unread, events)
    }

    /// Handles dead letters that cannot be inserted while others can. Most causes concern `dead_letters` as a whole, and
    /// none concerns `messages`. So their number is not limited: the lane never waits for them.
    pub(super) fn letters_failed(
        &mut self,
        batch: Box<Batch<T>>,
        failed: Vec<(usize, ClassifiedError)>,
        events: &mut Vec<Event>,
    ) -> Request {
        let is_transient = |(_, error): &&(usize, ClassifiedError)| error.class == ErrorClass::Transient;
        match failed.iter().find(is_transient) {
            Some((_, error)) if batch.retry.is_none() && batch.attempts == 0 => {
                let error = error.clone();
                self.abandon(batch, error)
            }
            _ => self.block_and_roll_back(batch, failed, events),
        }
    }

    /// Handles inboxes whose last `seq` cannot be read while that of others can. No transaction is open.
    pub(super) fn inboxes_unreadable(
        &mut self,
        mut batch: Box<Batch<T>>,
        failed: Vec<(usize, ClassifiedError)>,
        events: &mut Vec<Event>,
    ) -> Request {
        let (_, error) = failed[0].clone();
        if batch.retry.is_some() {
            return Request::Done(self.put_back(*batch, error));
        }
        if batch.attempts == 0 || !self.can_block() {
            return self.fail(batch, error);
        }
        self.block(&mut batch, failed, events);
        self.start_attempt(batch, events)
    }

    /// Blocks the inboxes of these entries, and rolls the open transaction back. The rest of the batch is stored then.
    fn block_and_roll_back(
        &mut self,
        mut batch: Box<Batch<T>>,
        failed: Vec<(usize, ClassifiedError)>,
        events: &mut Vec<Event>,
    ) -> Request {
        if batch.retry.is_some() {
            let (_, error) = failed[0].clone();
            return self.roll_back_retry(*batch, error);
        }
        self.block(&mut batch, failed, events);
        self.storing(batch, Step::Rollback, Request::Rollback)
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

/// Returns the error of a statement that succeeds without an effect on a row.
pub(super) fn without_effect() -> ClassifiedError {
    let text = "the INSERT of a row has no effect, and the row is not in the table: a trigger, a rule or a row-level \
                security policy of messages discards or hides it";
    ClassifiedError { class: ErrorClass::Fatal, text: text.to_owned() }
}
