//! Inboxes that cannot be written for now, while others can: a foreign unique index, a lock, a row that takes too long.
//! Each waits with all of its messages, in order, and is tried again by itself; the rest of the lane goes on.

use std::collections::{HashMap, VecDeque};

use super::entry::{Known, forget_found};
use super::state::Batch;
use super::{Entry, Failure, Kind, Machine, Message};
use crate::consumer::{Event, RecordRef};
use crate::{Partition, RecordOffset};

/// With so many blocked inboxes it is not a matter of single inboxes any more: no further one is looked for, and the lane
/// waits for the database.
const MAX_BLOCKED: usize = 100;

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

/// The records of one blocked inbox.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) entries: VecDeque<Entry<T>>,
    pub(super) failure: Failure,
    pub(super) attempts: usize,
}

/// All that wait.
#[derive(Debug)]
pub(super) struct Blocked<T> {
    inboxes: HashMap<String, Waiting<T>>,
    /// The next one to be tried is first.
    order: VecDeque<String>,
}

/// A blocked inbox that is retried.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) recv_id: String,
    pub(super) failure: Failure,
    /// The number of retries that failed before this one.
    pub(super) attempts: usize,
    /// The maximum number of records in one transaction of this retry.
    pub(super) max_records: usize,
}

impl<T> Default for Blocked<T> {
    fn default() -> Self {
        Blocked { inboxes: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T: Message> Blocked<T> {
    pub(super) fn pop(&mut self) -> Option<(String, Waiting<T>)> {
        let recv_id = self.order.pop_front()?;
        let waiting = self.inboxes.remove(&recv_id)?;
        Some((recv_id, waiting))
    }

    /// One that waits already keeps what is known of it.
    pub(super) fn waiting(&mut self, recv_id: String, failure: Failure, attempts: usize) -> &mut VecDeque<Entry<T>> {
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
    pub(super) fn queue_blocked(&mut self, batch: &mut Batch<T>, events: &mut Vec<Event>) {
        if self.blocked.inboxes.is_empty() {
            return;
        }
        let inboxes = &mut self.blocked.inboxes;
        let waits = |entry: &mut Entry<T>| entry.kind == Kind::Message && inboxes.contains_key(entry.body.recv_id());
        let behind: Vec<Entry<T>> = batch.entries.extract_if(.., waits).collect();
        report_blocked(behind.iter(), events);
        for mut entry in behind {
            entry.was_blocked = true;
            if let Some(waiting) = inboxes.get_mut(entry.body.recv_id()) {
                queue(&mut waiting.entries, entry);
            }
        }
    }

    /// These entries cannot be written now: each waits, and what is behind it in its inbox.
    pub(super) fn block(&mut self, batch: &mut Batch<T>, found: Vec<(usize, Failure)>, events: &mut Vec<Event>) {
        let mut first: HashMap<String, (usize, Failure)> = HashMap::new();
        for (entry, failure) in found {
            let recv_id = batch.entries[entry].body.recv_id().to_owned();
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
        let waiting: Vec<Entry<T>> = batch.entries.extract_if(.., waits).collect();
        report_blocked(waiting.iter(), events);
        // From the last to the first, each in front: what waits already came later, or it would have let none of these pass.
        for mut entry in waiting.into_iter().rev() {
            let recv_id = entry.body.recv_id().to_owned();
            entry.was_blocked = true;
            entry.known = Known::New;
            // It may be another owner who wrote: the table has to say how far.
            self.cache.remove(&recv_id);
            let tried = batch.retry.as_ref().filter(|retry| retry.recv_id == recv_id);
            let attempts = tried.map_or(0, |retry| retry.attempts + 1);
            let failure = first[&recv_id].1.clone();
            self.blocked.waiting(recv_id, failure, attempts).push_front(entry);
        }
        // What is left was found in a transaction that is rolled back.
        forget_found(&mut batch.entries);
    }
}

/// Behind those that came before it. What waits may be a later part of the same batch: a bisection found it before the batch was halved.
pub(super) fn queue<T>(waiting: &mut VecDeque<Entry<T>>, entry: Entry<T>) {
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
