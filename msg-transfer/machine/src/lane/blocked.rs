//! Inboxes that cannot be written for now, while others can: a foreign unique index, a lock, a row that takes too long.
//! Each waits with all of its messages, in order, and is tried again by itself; the rest of the lane goes on.

use std::collections::{HashMap, VecDeque};

use super::entry::{State, forget_found};
use super::{Entry, Failure, Kind, Machine, Message, Request};
use crate::consumer::{Event, RecordRef};
use crate::failure::Class;
use crate::{Partition, RecordOffset};

/// With so many blocked inboxes it is not a matter of single inboxes any more: no further one is looked for, and the lane
/// waits for the database.
const MAX_BLOCKED: usize = 100;

/// One attempt in so many has the server's whole time: a slow row may need it. A lock needs none.
const LONG_EVERY: usize = 4;

/// What an operator may be told of a blocked inbox: not its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedInbox {
    /// The partition of the record that cannot be stored now.
    pub partition: Partition,
    /// Its offset.
    pub offset: RecordOffset,
    /// How many records wait: this one, and those of its inbox behind it.
    pub records: usize,
    /// What the database said.
    pub failure: Failure,
    /// How many attempts have failed since it was found.
    pub attempts: usize,
}

/// One inbox that waits.
#[derive(Debug)]
struct Waiting<T> {
    entries: VecDeque<Entry<T>>,
    failure: Failure,
    attempts: usize,
}

/// All that wait.
#[derive(Debug)]
pub(super) struct Blocked<T> {
    inboxes: HashMap<String, Waiting<T>>,
    /// The next one to be tried is first.
    order: VecDeque<String>,
}

/// The attempt to store what waits of one inbox: its first record alone, then more at a time.
#[derive(Debug)]
pub(super) struct Retry {
    recv_id: String,
    failure: Failure,
    attempts: usize,
    /// Most records at once, as it was before.
    most: usize,
}

impl<T> Default for Blocked<T> {
    fn default() -> Self {
        Blocked { inboxes: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T: Message> Blocked<T> {
    /// One that waits already keeps what is known of it.
    fn waiting(&mut self, recv_id: String, failure: Failure, attempts: usize) -> &mut VecDeque<Entry<T>> {
        let order = &mut self.order;
        let waiting = self.inboxes.entry(recv_id).or_insert_with_key(|recv_id| {
            // Found just now: what was short is over soon. Tried before: behind the others.
            if attempts == 0 {
                order.push_front(recv_id.clone())
            } else {
                order.push_back(recv_id.clone())
            }
            Waiting { entries: VecDeque::new(), failure, attempts }
        });
        &mut waiting.entries
    }
}

impl<T: Message> Machine<T> {
    /// The blocked inboxes of this lane; the next one to be tried is first.
    pub fn blocked(&self) -> impl Iterator<Item = BlockedInbox> {
        let Blocked { inboxes, order } = &self.blocked;
        order.iter().filter_map(|recv_id| inboxes.get(recv_id)).filter_map(|waiting| {
            let RecordRef { partition, offset, .. } = waiting.entries.front()?.record_ref;
            let (records, failure) = (waiting.entries.len(), waiting.failure.clone());
            Some(BlockedInbox { partition, offset, records, failure, attempts: waiting.attempts })
        })
    }

    /// Tries the next blocked inbox, if there is one. Only after `Done`, or as the first thing; goes on like a batch.
    pub fn retry(&mut self, events: &mut Vec<Event>) -> Option<Request> {
        assert_eq!(self.pending, super::Pending::Nothing, "one batch at a time");
        let recv_id = self.blocked.order.pop_front()?;
        let Waiting { entries, failure, attempts } = self.blocked.inboxes.remove(&recv_id)?;
        self.outcome = super::Outcome::default();
        self.retry = Some(Retry { recv_id, failure, attempts, most: self.most });
        self.most = 1;
        self.take(entries.into(), events);
        Some(self.turn(events))
    }

    /// Drops what waits and may not be written any more.
    pub fn sweep(&mut self, events: &mut Vec<Event>) {
        let mut fenced = Vec::new();
        let Blocked { inboxes, order } = &mut self.blocked;
        inboxes.retain(|_, waiting| {
            waiting.entries.retain(|entry| {
                let is_fenced = entry.assignment.is_fenced();
                fenced.extend(is_fenced.then_some(entry.record_ref));
                !is_fenced
            });
            !waiting.entries.is_empty()
        });
        order.retain(|recv_id| inboxes.contains_key(recv_id));
        if !fenced.is_empty() {
            events.extend([Event::Unblocked(fenced.clone()), Event::Dropped(fenced)]);
        }
    }

    /// Whether one more inbox may wait by itself.
    pub(super) fn can_block(&self) -> bool {
        self.blocked.inboxes.len() < MAX_BLOCKED
    }

    /// What belongs to an inbox that waits goes behind it.
    pub(super) fn queue_blocked(&mut self, events: &mut Vec<Event>) {
        if self.blocked.inboxes.is_empty() {
            return;
        }
        let inboxes = &mut self.blocked.inboxes;
        let waits = |entry: &mut Entry<T>| entry.kind == Kind::Message && inboxes.contains_key(entry.body.recv_id());
        let behind: Vec<Entry<T>> = self.entries.extract_if(.., waits).collect();
        report_blocked(behind.iter(), events);
        for mut entry in behind {
            entry.was_blocked = true;
            if let Some(waiting) = inboxes.get_mut(entry.body.recv_id()) {
                queue(&mut waiting.entries, entry);
            }
        }
    }

    /// These entries cannot be written now: each waits, and what is behind it in its inbox.
    pub(super) fn block(&mut self, found: Vec<(usize, Failure)>, events: &mut Vec<Event>) {
        let mut first: HashMap<String, (usize, Failure)> = HashMap::new();
        for (entry, failure) in found {
            let recv_id = self.entries[entry].body.recv_id().to_owned();
            let known = first.entry(recv_id).or_insert_with(|| (entry, failure.clone()));
            if entry < known.0 {
                *known = (entry, failure);
            }
        }
        let mut index = 0;
        let waits = |entry: &mut Entry<T>| {
            index += 1;
            entry.kind == Kind::Message && first.get(entry.body.recv_id()).is_some_and(|(from, _)| index > *from)
        };
        let waiting: Vec<Entry<T>> = self.entries.extract_if(.., waits).collect();
        report_blocked(waiting.iter(), events);
        // From the last to the first, each in front: what waits already came later, or it would have let none of these pass.
        for mut entry in waiting.into_iter().rev() {
            let recv_id = entry.body.recv_id().to_owned();
            entry.was_blocked = true;
            entry.state = State::New;
            // It may be another owner who wrote: the table has to say how far.
            self.cache.remove(&recv_id);
            let tried = self.retry.as_ref().filter(|retry| retry.recv_id == recv_id);
            let attempts = tried.map_or(0, |retry| retry.attempts + 1);
            let failure = first[&recv_id].1.clone();
            self.blocked.waiting(recv_id, failure, attempts).push_front(entry);
        }
        // What is left was found in a transaction that is rolled back.
        forget_found(&mut self.entries);
    }

    /// Whether this attempt has short time-outs: a lane must not spend its time on an inbox that is not written anyway.
    pub(super) fn is_short(&self) -> bool {
        let is_huge = |entry: &Entry<T>| entry.record_ref.bytes >= self.settings.huge;
        let alone = self.entries.len() == 1 && !self.entries.iter().any(is_huge);
        let is_short =
            |retry: &Retry| retry.failure.class == Class::Locked || retry.attempts % LONG_EVERY != LONG_EVERY - 1;
        alone && self.retry.as_ref().is_some_and(is_short)
    }

    /// The attempt to store a blocked inbox failed: what is left of it waits again.
    pub(super) fn put_back(&mut self, failure: Option<Failure>) {
        let Some(retry) = self.retry.take() else { return };
        self.most = retry.most;
        self.cache.remove(&retry.recv_id);
        let (entries, rest) = (std::mem::take(&mut self.entries), std::mem::take(&mut self.rest));
        if !entries.is_empty() || !rest.is_empty() {
            let failure = failure.filter(|failure| failure.class != Class::Lost).unwrap_or(retry.failure);
            // Some may wait already, found by a bisection of this attempt: they are behind the first, and amid the rest.
            let waiting = self.blocked.waiting(retry.recv_id, failure, retry.attempts + 1);
            for entry in entries.into_iter().rev() {
                waiting.push_front(entry);
            }
            for entry in rest {
                queue(waiting, entry);
            }
        }
    }

    /// The attempt is over: what was blocked is stored or dropped, or waits again.
    pub(super) fn end_retry(&mut self) {
        if let Some(retry) = self.retry.take() {
            self.most = retry.most;
        }
    }
}

/// Behind those that came before it. What waits may be a later part of the same batch: a bisection found it before the batch was halved.
fn queue<T>(waiting: &mut VecDeque<Entry<T>>, entry: Entry<T>) {
    let RecordRef { partition, epoch, offset, .. } = entry.record_ref;
    let is_same = |other: &Entry<T>| (other.record_ref.partition, other.record_ref.epoch) == (partition, epoch);
    let is_later = |other: &Entry<T>| is_same(other) && other.record_ref.offset > offset;
    if waiting.back().is_some_and(|last| is_same(last) && !is_later(last)) {
        waiting.push_back(entry);
        return;
    }
    let at = waiting.iter().position(is_later).unwrap_or(waiting.len());
    waiting.insert(at, entry);
}

/// Reports what begins to wait.
fn report_blocked<'a, T: 'a>(entries: impl Iterator<Item = &'a Entry<T>>, events: &mut Vec<Event>) {
    let begin: Vec<RecordRef> = entries.filter(|entry| !entry.was_blocked).map(|entry| entry.record_ref).collect();
    if !begin.is_empty() {
        events.push(Event::Blocked(begin));
    }
}

/// Reports which of these do not wait any more.
pub(super) fn report_unblocked<'a, T: 'a>(entries: impl Iterator<Item = &'a Entry<T>>, events: &mut Vec<Event>) {
    let end: Vec<RecordRef> = entries.filter(|entry| entry.was_blocked).map(|entry| entry.record_ref).collect();
    if !end.is_empty() {
        events.push(Event::Unblocked(end));
    }
}
