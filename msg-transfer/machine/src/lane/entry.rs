//! A record in a lane, and what is known of it so far.

use std::collections::HashSet;
use std::sync::Arc;

use uuid::Uuid;

use crate::consumer::RecordRef;
use crate::{Assignment, Reason};

/// What the lane has to know of a message.
pub trait Message {
    /// Its inbox.
    fn recv_id(&self) -> &str;
    /// Its id; unique within its inbox.
    fn msg_id(&self) -> Uuid;
}

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message.
    Message,
    /// Nothing that could be stored: why, and a sentence about it.
    Broken(Reason, String),
    /// What a newer version wrote: its partition has to stop.
    Newer(String),
}

/// A record in a lane.
#[derive(Debug)]
pub struct Entry<T> {
    /// The assignment that it was received under.
    pub assignment: Arc<Assignment>,
    /// What is given back for it.
    pub record_ref: RecordRef,
    /// What it holds.
    pub kind: Kind,
    /// The record.
    pub body: T,
    pub(super) state: State,
    /// It has waited in a blocked inbox, and counts for what its partition may have there.
    pub(super) was_blocked: bool,
}

/// What is known of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not in the table, as far as we know.
    New,
    /// Comes after one of this batch with the same id.
    Repeat,
    /// The same message is in the table.
    Duplicate,
    /// Another message with its id is in the table.
    Conflict,
    /// The database refuses it, and takes others.
    Rejected(Reason, String),
}

/// A record to be kept aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its index in the batch.
    pub entry: usize,
    /// Why.
    pub reason: Reason,
    /// A sentence about it.
    pub detail: String,
    /// Whether the record's value and headers are kept. Until retention deletes it, Kafka has them.
    pub content: bool,
}

impl<T> Entry<T> {
    /// Nothing is known of it yet.
    pub fn new(assignment: Arc<Assignment>, record_ref: RecordRef, kind: Kind, body: T) -> Self {
        Entry { assignment, record_ref, kind, body, state: State::New, was_blocked: false }
    }

    pub(super) fn is_new(&self) -> bool {
        self.kind == Kind::Message && self.state == State::New
    }

    pub(super) fn is(&self, state: &State) -> bool {
        self.kind == Kind::Message && self.state == *state
    }

    /// Why it is to be kept aside, if it is.
    pub(super) fn dead(&self) -> Option<(Reason, &str)> {
        match (&self.kind, &self.state) {
            (Kind::Broken(reason, detail), _) | (Kind::Message, State::Rejected(reason, detail)) => {
                Some((*reason, detail))
            }
            (Kind::Message, State::Conflict) => {
                Some((Reason::IdempotencyConflict, "another message with this id is stored, and its fields differ"))
            }
            _ => None,
        }
    }
}

/// Forgets what was found in the table. The first of those with the same id is new; what is `Rejected` counts as none.
pub(super) fn forget_found<T: Message>(entries: &mut [Entry<T>]) {
    let mut seen: HashSet<(&str, Uuid)> = HashSet::with_capacity(entries.len());
    for entry in entries.iter_mut() {
        let Entry { kind: Kind::Message, state, body, .. } = entry else { continue };
        if !matches!(state, State::Rejected(..)) {
            let first = seen.insert((body.recv_id(), body.msg_id()));
            *state = if first { State::New } else { State::Repeat };
        }
    }
}
