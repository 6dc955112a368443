//! One entry of a stream: its checks, its record, and its result.

use std::collections::VecDeque;
use std::time::Instant;

use msg_common::limits::Violation;
use msg_common::proto::{Msg, Placement, StreamSendEntry};
use uuid::Uuid;

use crate::send::outcome::Outcome;
use crate::send::record::PendingSend;
use crate::send::stream::machine::{Action, Machine};
use crate::send::{check_entry, must_be_set, result_of};
use crate::status::Failure;

/// The entries of a request that were not enqueued yet.
pub(super) struct Remaining {
    pub(super) entries: VecDeque<StreamSendEntry>,
    /// The index of the first one in the request.
    pub(super) index: usize,
    pub(super) until_stored: bool,
}

/// An entry, and its index in the request.
pub(super) struct NextEntry {
    entry: StreamSendEntry,
    index: usize,
    until_stored: bool,
}

/// An entry that the driver enqueues.
pub(crate) struct Ticket {
    /// The number of the entry, which its report has to carry.
    pub(crate) number: u64,
    pub(crate) msg_id: Uuid,
    correlation_id: u64,
    rank: u64,
}

/// An enqueued entry without a report.
pub(super) struct Open<R> {
    correlation_id: u64,
    rank: u64,
    pending: PendingSend,
    pub(super) deadline: Instant,
    /// The permit to await its row, if the caller waits for it.
    row: Option<R>,
}

/// An accepted entry whose row is awaited.
pub(crate) struct Row<R> {
    pub(crate) correlation_id: u64,
    pub(crate) recv_id: String,
    pub(crate) placement: Placement,
    pub(crate) deadline: Instant,
    pub(crate) permit: R,
}

impl Remaining {
    pub(super) fn pop(&mut self) -> Option<NextEntry> {
        let entry = self.entries.pop_front()?;
        let index = self.index;
        self.index += 1;
        Some(NextEntry { entry, index, until_stored: self.until_stored })
    }

    /// Puts back the entry that was popped last.
    pub(super) fn put_back(&mut self, entry: StreamSendEntry) {
        self.entries.push_front(entry);
        self.index -= 1;
    }
}

impl<R> Machine<R> {
    /// Returns the action that enqueues an entry, or gives the entry its error.
    pub(super) fn admit(&mut self, NextEntry { entry, index, until_stored }: NextEntry) -> Option<Action<R>> {
        let StreamSendEntry { correlation_id, msg } = entry;
        let (msg, msg_id) = match self.check_msg(correlation_id, msg, index) {
            Ok(checked) => checked,
            Err(failure) => {
                self.push_result(correlation_id, Err(failure));
                return None;
            }
        };
        let number = self.number();
        let Some(rank) = self.failed.rank_if_next(&msg.recv_id, msg_id, number) else {
            self.failed.add(&msg.recv_id, msg_id, number);
            self.push_result(correlation_id, Err(Failure::PredecessorFailed));
            return None;
        };
        let ticket = Ticket { number, msg_id, correlation_id, rank };
        Some(Action::Enqueue { ticket, msg, until_stored })
    }

    /// Keeps an entry that was enqueued until its report. `row` is the permit to await its row, if the caller waits
    /// for it.
    pub(crate) fn enqueued(&mut self, ticket: &Ticket, pending: PendingSend, row: Option<R>, now: Instant) {
        let &Ticket { number, msg_id, correlation_id, rank } = ticket;
        self.failed.remove_sent(&pending.recv_id, msg_id);
        self.correlations.insert(correlation_id);
        let open = Open { correlation_id, rank, pending, deadline: self.deadline(now), row };
        self.next_deadline.get_or_insert(open.deadline);
        self.open.insert(number, open);
    }

    /// Gives an entry its error, because it could not be enqueued.
    pub(crate) fn not_enqueued(&mut self, ticket: &Ticket, recv_id: &str, failure: Failure) {
        self.failed.remove_sent(recv_id, ticket.msg_id);
        if failure.leaves_a_gap() {
            self.failed.add(recv_id, ticket.msg_id, ticket.rank);
        }
        self.push_result(ticket.correlation_id, Err(failure));
    }

    /// Makes an entry wait, because there is no capacity in flight for it.
    pub(crate) fn no_capacity(&mut self, ticket: &Ticket, msg: Msg) {
        self.put_back(StreamSendEntry { correlation_id: ticket.correlation_id, msg: Some(msg) });
    }

    /// Gives entries that were not enqueued their errors.
    pub(super) fn reject(&mut self, mut remaining: Remaining, why: &Failure) {
        while let Some(NextEntry { entry: StreamSendEntry { correlation_id, msg }, index, .. }) = remaining.pop() {
            let result = match self.check_msg(correlation_id, msg, index) {
                Ok((msg, msg_id)) => {
                    let number = self.number();
                    let rank = self.failed.rank_if_next(&msg.recv_id, msg_id, number);
                    self.failed.add(&msg.recv_id, msg_id, rank.unwrap_or(number));
                    Err(rank.map_or(Failure::PredecessorFailed, |_| why.clone()))
                }
                Err(failure) => Err(failure),
            };
            self.push_result(correlation_id, result);
        }
    }

    /// Turns the outcome of an entry into its result, or awaits its row.
    pub(super) fn complete(&mut self, open: Open<R>, outcome: Outcome) {
        let Open { correlation_id, rank, pending, deadline, row } = open;
        self.check_topic |= outcome == Outcome::Unknown;
        match (result_of(&pending, outcome, self.settings.settle_time), row) {
            (Ok(placement), Some(permit)) => {
                self.rows.push_back(Row { correlation_id, recv_id: pending.recv_id, placement, deadline, permit });
            }
            (Ok(placement), None) => self.finish(correlation_id, Ok(placement)),
            (Err(failure), _) => {
                if failure.leaves_a_gap() {
                    self.failed.add(&pending.recv_id, pending.msg_id, rank);
                }
                self.finish(correlation_id, Err(failure));
            }
        }
    }

    /// Checks an entry. Returns its message and the message's ID.
    fn check_msg(&self, correlation_id: u64, msg: Option<Msg>, index: usize) -> Result<(Msg, Uuid), Failure> {
        if self.correlations.contains(&correlation_id) {
            let field = format!("entries[{index}].correlation_id");
            let description = "is that of an entry that has no result yet".into();
            return Err(Failure::Invalid(vec![Violation { field, description }]));
        }
        let path = || format!("entries[{index}].msg");
        let msg = msg.ok_or_else(|| Failure::Invalid(vec![must_be_set(&path())]))?;
        check_entry(&self.settings.limits, &self.settings.caller, &msg, path)?;
        let msg_id = (self.settings.id_of)(&msg);
        Ok((msg, msg_id))
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }
}
