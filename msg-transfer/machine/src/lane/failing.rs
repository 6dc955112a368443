//! What follows from a failure: another attempt, less at once, or a bisection that looks for the records that are refused.

use super::bisection::{Bisection, Verdict};
use super::entry::{State, forget_found};
use super::{Failure, Machine, Message, Pending, Request};
use crate::Reason;
use crate::consumer::Event;
use crate::failure::Class;

impl<T: Message> Machine<T> {
    pub(super) fn failed(&mut self, failure: Failure) -> Request {
        use Class::{Conflict, Heavy, Locked, Lost, Permanent, TooLarge};
        let repeated = self.attempts > 0;
        match (self.pending, failure.class) {
            (_, Lost) => self.give_up(failure),
            (Pending::Canary, Permanent | TooLarge | Conflict) => {
                self.bisection().canary_rejected();
                self.request(Pending::UndoCanary, Request::RollbackToSavepoint)
            }
            (Pending::OwnCanary, _) => {
                self.bisection().suspect_tried(false);
                self.request(Pending::UndoCanary, Request::RollbackToSavepoint)
            }
            (Pending::Probe, _) => {
                self.bisection().rejected(failure);
                self.request(Pending::UndoProbe, Request::RollbackToSavepoint)
            }
            (Pending::Insert, _) | (Pending::Commit, Conflict | Locked) if self.is_still_blocked(failure.class) => {
                // Nothing was committed, and nothing is learned from the others.
                self.put_back(Some(failure));
                self.request(Pending::UndoRetry, Request::Rollback)
            }
            (Pending::Insert, Heavy) if self.entries.len() > 1 && !self.searched && self.can_block() => {
                self.begin_bisection(failure)
            }
            (_, Heavy) if self.bisection.is_none() && self.entries.len() > 1 => {
                // Less at once; alone it will be seen whether it is the record.
                self.most = self.entries.len() / 2;
                self.give_up(failure)
            }
            (Pending::Insert, Permanent | TooLarge | Heavy) | (Pending::Commit, Permanent | TooLarge) => {
                self.begin_bisection(failure)
            }
            // Somebody holds what one inbox needs, or what all need.
            (Pending::Insert | Pending::Commit, Locked) if self.can_block() => self.begin_bisection(failure),
            // At first it is another owner who was faster. Again it may be a foreign unique index.
            (Pending::Insert | Pending::Commit, Conflict) if repeated && self.can_block() => {
                self.begin_bisection(failure)
            }
            // Over a connection that lives: whatever it is, it may be said of one inbox alone.
            (Pending::Insert, _) if repeated && self.can_block() => self.begin_bisection(failure),
            _ => self.give_up(failure),
        }
    }

    /// Whether what was tried is a blocked inbox, and this says no more than that it is blocked.
    fn is_still_blocked(&self, class: Class) -> bool {
        let is_huge = self.entries.iter().any(|entry| entry.record_ref.bytes >= self.settings.huge);
        self.retry.is_some()
            && match class {
                Class::Permanent | Class::TooLarge => false,
                // Alone, and with the server's whole time: a bisection tells whether it is the record.
                Class::Heavy => self.entries.len() > 1 || !is_huge,
                _ => true,
            }
    }

    fn begin_bisection(&mut self, cause: Failure) -> Request {
        self.bisection = Some(Bisection::new(self.numbered.len(), cause));
        self.request(Pending::UndoRejected, Request::Rollback)
    }

    pub(super) fn again(&mut self, class: Class, text: &str) -> Request {
        self.give_up(Failure { class, text: text.to_owned() })
    }

    /// Gives this attempt up. What was sent may or may not have been committed, so nothing is known of the table.
    pub(super) fn give_up(&mut self, failure: Failure) -> Request {
        self.connected = None;
        self.cache.clear();
        self.bisection = None;
        self.approved = false;
        for entry in &mut self.entries {
            entry.state = State::New;
        }
        forget_found(&mut self.entries);
        if self.retry.is_some() {
            // The lane has others to store meanwhile.
            self.put_back(Some(failure));
            return self.request(Pending::Disconnection, Request::Disconnect);
        }
        self.attempts += 1;
        self.last_failure = Some(failure);
        self.request(Pending::Disconnection, Request::Disconnect)
    }

    pub(super) fn bisection(&mut self) -> &mut Bisection {
        self.bisection.as_mut().expect("a bisection is running")
    }

    pub(super) fn probe(&mut self) -> Request {
        let fenced = self.entries.iter().any(|entry| entry.assignment.is_fenced());
        match self.bisection().next().filter(|_| !fenced) {
            Some(range) => self.request(Pending::Probe, Request::Insert(self.numbered[range].to_vec())),
            None => self.request(Pending::EndBisection, Request::Rollback),
        }
    }

    /// What the bisection came to.
    pub(super) fn judge(&mut self, events: &mut Vec<Event>) -> Request {
        let bisection = self.bisection.take().expect("a bisection is running");
        let huge = |row: usize| self.entries[self.numbered[row].entry].record_ref.bytes >= self.settings.huge;
        if self.entries.iter().any(|entry| entry.assignment.is_fenced()) {
            return self.turn(events);
        }
        match bisection.verdict(huge) {
            Verdict::NoRecord(failure) => {
                self.searched = true;
                if failure.class == Class::Heavy && self.entries.len() > 1 {
                    self.most = self.entries.len() / 2;
                }
                self.give_up(failure)
            }
            Verdict::Found { rejected, blocked } => {
                let entry = |(row, failure): (usize, Failure)| (self.numbered[row].entry, failure);
                let blocked: Vec<(usize, Failure)> = blocked.into_iter().map(entry).collect();
                for (row, failure) in rejected {
                    let reason = match failure.class {
                        Class::Permanent => Reason::RejectedByDatabase,
                        _ => Reason::TooLarge,
                    };
                    self.entries[self.numbered[row].entry].state = State::Rejected(reason, failure.text);
                }
                // What repeats a rejected one takes its place, and is tried for itself.
                forget_found(&mut self.entries);
                self.approved = false;
                if !blocked.is_empty() {
                    self.block(blocked, events);
                }
                self.turn(events)
            }
        }
    }
}
