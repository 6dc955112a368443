//! An entry of a batch: a record in a lane, and the lane's knowledge about it.

use std::collections::HashSet;
use std::sync::Arc;

use uuid::Uuid;

use crate::consumer::RecordRef;
use crate::{Assignment, Reason};

/// The part of a message that the lane's machine reads.
pub trait Message {
    /// Returns the inbox that the message is sent to.
    fn recv_id(&self) -> &str;
    /// Returns the message ID, which is unique within its inbox.
    fn msg_id(&self) -> Uuid;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message that can become a row.
    Message,
    /// Not storable: the reason and the detail for the dead letter.
    Broken(Reason, String),
    /// Written by a newer version: the partition has to be halted.
    Newer(String),
}

#[derive(Debug)]
pub struct Entry<T> {
    /// The assignment that the record was received under.
    pub assignment: Arc<Assignment>,
    /// The reference by which the record is reported to the consumer.
    pub record_ref: RecordRef,
    pub kind: Kind,
    /// The record itself, which the machine only passes on.
    pub body: T,
    pub(super) known: Known,
    /// Whether it has waited in a blocked inbox. It counts for its partition's share of blocked records then.
    pub(super) was_blocked: bool,
}

/// The lane's knowledge about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Not in the table, as far as is known.
    New,
    /// Follows an entry of this batch with the same ID.
    Repeat,
    /// The same message is in the table.
    Duplicate,
    /// Another message with the same ID is in the table.
    Conflict,
    /// Rejected by the database, which accepts other messages.
    Rejected(Reason, String),
}

/// An entry of the batch that will be inserted into `dead_letters`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub entry: usize,
    /// The reason of the contract, which a caller of GetMsgStatus reads.
    pub reason: Reason,
    /// What is wrong with the record, in a sentence for operators.
    pub detail: String,
    /// Whether the dead letter holds the record's value and headers. Kafka has them until retention deletes the record.
    pub content: bool,
}

impl<T> Entry<T> {
    /// Creates an entry of which nothing is known yet.
    pub fn new(assignment: Arc<Assignment>, record_ref: RecordRef, kind: Kind, body: T) -> Self {
        Entry { assignment, record_ref, kind, body, known: Known::New, was_blocked: false }
    }

    pub(super) fn is_new(&self) -> bool {
        self.kind == Kind::Message && self.known == Known::New
    }

    pub(super) fn is(&self, known: &Known) -> bool {
        self.kind == Kind::Message && self.known == *known
    }

    /// Returns the reason and the detail if the record has to be dead-lettered.
    pub(super) fn dead(&self) -> Option<(Reason, &str)> {
        match (&self.kind, &self.known) {
            (Kind::Broken(reason, detail), _) | (Kind::Message, Known::Rejected(reason, detail)) => {
                Some((*reason, detail))
            }
            (Kind::Message, Known::Conflict) => {
                Some((Reason::IdempotencyConflict, "another message with this id is stored, and its fields differ"))
            }
            _ => None,
        }
    }
}

/// Forgets which messages were found in the table. Of several entries with the same ID the first is `New`; `Rejected`
/// ones do not count.
pub(super) fn forget_found<T: Message>(entries: &mut [Entry<T>]) {
    let mut seen: HashSet<(&str, Uuid)> = HashSet::with_capacity(entries.len());
    for entry in entries.iter_mut() {
        let Entry { kind: Kind::Message, known, body, .. } = entry else { continue };
        if !matches!(known, Known::Rejected(..)) {
            let first = seen.insert((body.recv_id(), body.msg_id()));
            *known = if first { Known::New } else { Known::Repeat };
        }
    }
}
