//! What follows from a failure: another attempt, less at once, or a pass that looks for the records that are refused.

use super::entry::{State, forget_found};
use super::pass::{Pass, Verdict};
use super::{Failure, Machine, Message, Pending, Request};
use crate::Reason;
use crate::consumer::Event;
use crate::failure::Class;

impl<T: Message> Machine<T> {
    pub(super) fn failed(&mut self, failure: Failure) -> Request {
        use Class::{Heavy, Permanent, TooLarge};
        match (self.pending, failure.class) {
            (_, Heavy) if self.pass.is_none() && self.entries.len() > 1 => {
                // Less at once; alone it will be seen whether it is the record.
                self.most = self.entries.len() / 2;
                self.give_up(failure)
            }
            (Pending::Insert, Permanent | TooLarge | Heavy) | (Pending::Commit, Permanent | TooLarge) => {
                self.pass = Some(Pass::new(self.placed.len(), failure));
                self.request(Pending::UndoRefused, Request::Rollback)
            }
            (Pending::Canary, Permanent | TooLarge) => {
                self.pass().canary_refused();
                self.request(Pending::UndoCanary, Request::RollbackToSavepoint)
            }
            (Pending::Probe, Permanent | TooLarge | Heavy) => {
                self.pass().refused(failure);
                self.request(Pending::UndoProbe, Request::RollbackToSavepoint)
            }
            _ => self.give_up(failure),
        }
    }

    pub(super) fn again(&mut self, class: Class, text: &str) -> Request {
        self.give_up(Failure { class, text: text.to_owned() })
    }

    /// Gives this attempt up. What was sent may or may not have been committed, so nothing is known of the table.
    pub(super) fn give_up(&mut self, failure: Failure) -> Request {
        self.connected = None;
        self.cache.clear();
        self.pass = None;
        self.permitted = false;
        for entry in &mut self.entries {
            entry.state = State::New;
        }
        forget_found(&mut self.entries);
        self.attempts += 1;
        self.trouble = Some(failure);
        self.request(Pending::Disconnection, Request::Disconnect)
    }

    pub(super) fn pass(&mut self) -> &mut Pass {
        self.pass.as_mut().expect("we are in a pass")
    }

    pub(super) fn probe(&mut self) -> Request {
        let fenced = self.entries.iter().any(|entry| entry.assignment.is_fenced());
        match self.pass().next().filter(|_| !fenced) {
            Some(range) => self.request(Pending::Probe, Request::Insert(self.placed[range].to_vec())),
            None => self.request(Pending::EndPass, Request::Rollback),
        }
    }

    /// What the pass came to.
    pub(super) fn judge(&mut self, events: &mut Vec<Event>) -> Request {
        let pass = self.pass.take().expect("we are in a pass");
        let huge = |row: usize| self.entries[self.placed[row].entry].receipt.bytes >= self.settings.huge;
        if self.entries.iter().any(|entry| entry.assignment.is_fenced()) {
            return self.turn(events);
        }
        match pass.verdict(huge) {
            Verdict::NoRecord(failure) => self.give_up(failure),
            Verdict::Rejected(rows) => {
                for (row, failure) in rows {
                    let reason = match failure.class {
                        Class::Permanent => Reason::RejectedByDatabase,
                        _ => Reason::TooLarge,
                    };
                    self.entries[self.placed[row].entry].state = State::Rejected(reason, failure.text);
                }
                // What repeats a rejected one takes its place, and is tried for itself.
                forget_found(&mut self.entries);
                self.permitted = false;
                self.turn(events)
            }
        }
    }
}
