//! Inboxes that cannot be written for now, while others can: because of a foreign unique index, a lock, a slow trigger, or
//! a dead letter that cannot be inserted. Each waits with all of its records, in order, and is retried on its own; the
//! rest of the lane continues (ADR 28).

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use super::entry::{Known, forget_found};
use super::state::Batch;
use super::{ClassifiedError, Entry, Kind, Machine, Message};
use crate::consumer::{Event, RecordRef};
use crate::{Partition, RecordOffset};

/// Maximum number of blocked inboxes. Above it the cause is not single inboxes: no further one is searched, and the
/// lane waits for the database.
const MAX_BLOCKED: usize = 100;

/// The records that wait together, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Queue<'a> {
    Inbox(Cow<'a, str>),
    /// One record without an inbox, because it holds no message. No other record has to wait for its dead letter: the
    /// ledger keeps the partition's offset below it (P5).
    Record(Partition, RecordOffset),
}

/// A blocked inbox, for operators: without its name. `partition` and `offset` are the position of its first record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedInbox {
    pub partition: Partition,
    pub offset: RecordOffset,
    pub records: usize,
    pub error: ClassifiedError,
    /// The number of retries that failed since it was found.
    pub attempts: usize,
}

/// The records of one blocked inbox, or one blocked record without an inbox.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) entries: VecDeque<Entry<T>>,
    pub(super) error: ClassifiedError,
    pub(super) attempts: usize,
}

#[derive(Debug)]
pub(super) struct Blocked<T> {
    inboxes: HashMap<Queue<'static>, Waiting<T>>,
    /// The next one to be retried is first.
    order: VecDeque<Queue<'static>>,
}

#[derive(Debug)]
pub(super) struct Retry {
    pub(super) queue: Queue<'static>,
    pub(super) error: ClassifiedError,
    /// The number of retries that failed before this one.
    pub(super) attempts: usize,
    pub(super) max_records: usize,
}

impl<'a> Queue<'a> {
    fn of<T: Message>(entry: &'a Entry<T>) -> Self {
        match entry.kind {
            Kind::Message => Queue::Inbox(Cow::Borrowed(entry.body.recv_id())),
            Kind::Broken(..) | Kind::Newer(_) => Queue::Record(entry.record_ref.partition, entry.record_ref.offset),
        }
    }

    fn into_owned(self) -> Queue<'static> {
        match self {
            Queue::Inbox(recv_id) => Queue::Inbox(Cow::Owned(recv_id.into_owned())),
            Queue::Record(partition, offset) => Queue::Record(partition, offset),
        }
    }
}

impl<T> Default for Blocked<T> {
    fn default() -> Self {
        Blocked { inboxes: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T: Message> Blocked<T> {
    pub(super) fn pop(&mut self) -> Option<(Queue<'static>, Waiting<T>)> {
        let queue = self.order.pop_front()?;
        let waiting = self.inboxes.remove(&queue)?;
        Some((queue, waiting))
    }

    /// Returns the records of a blocked inbox. One that waits already keeps its error and its attempts.
    pub(super) fn waiting(
        &mut self,
        queue: Queue<'static>,
        error: ClassifiedError,
        attempts: usize,
    ) -> &mut VecDeque<Entry<T>> {
        let order = &mut self.order;
        let waiting = self.inboxes.entry(queue).or_insert_with_key(|queue| {
            // One that was just found is retried first, because most causes are short. Others wait for their turn.
            if attempts == 0 {
                order.push_front(queue.clone())
            } else {
                order.push_back(queue.clone())
            }
            Waiting { entries: VecDeque::new(), error, attempts }
        });
        &mut waiting.entries
    }
}

impl<T: Message> Machine<T> {
    /// Returns the blocked inboxes of this lane; the next one to be retried is first.
    pub fn blocked(&self) -> impl Iterator<Item = BlockedInbox> {
        let Blocked { inboxes, order } = &self.blocked;
        order.iter().filter_map(|queue| inboxes.get(queue)).filter_map(|waiting| {
            let RecordRef { partition, offset, .. } = waiting.entries.front()?.record_ref;
            let (records, error) = (waiting.entries.len(), waiting.error.clone());
            Some(BlockedInbox { partition, offset, records, error, attempts: waiting.attempts })
        })
    }

    /// Drops the waiting records that may not be written any more.
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
        order.retain(|queue| inboxes.contains_key(queue));
        if !fenced.is_empty() {
            events.extend([Event::Unblocked(fenced.clone()), Event::Dropped(fenced)]);
        }
    }

    /// Returns whether one more inbox may be blocked.
    pub(super) fn can_block(&self) -> bool {
        self.blocked.inboxes.len() < MAX_BLOCKED
    }

    /// Moves the records of blocked inboxes from the batch to the waiting ones.
    pub(super) fn queue_blocked(&mut self, batch: &mut Batch<T>, events: &mut Vec<Event>) {
        if self.blocked.inboxes.is_empty() {
            return;
        }
        let inboxes = &self.blocked.inboxes;
        let waits = |entry: &mut Entry<T>| inboxes.contains_key(&Queue::of(entry));
        let later: Vec<Entry<T>> = batch.entries.extract_if(.., waits).collect();
        report_blocked(later.iter(), events);
        for mut entry in later {
            entry.was_blocked = true;
            if let Some(waiting) = self.blocked.inboxes.get_mut(&Queue::of(&entry).into_owned()) {
                insert(&mut waiting.entries, entry);
            }
        }
    }

    /// Blocks the inboxes of these entries: each entry waits, and all later ones of its inbox.
    pub(super) fn block(
        &mut self,
        batch: &mut Batch<T>,
        found: Vec<(usize, ClassifiedError)>,
        events: &mut Vec<Event>,
    ) {
        let mut first: HashMap<Queue<'static>, (usize, ClassifiedError)> = HashMap::new();
        for (entry, error) in found {
            let queue = Queue::of(&batch.entries[entry]).into_owned();
            let known = first.entry(queue).or_insert_with(|| (entry, error.clone()));
            if entry < known.0 {
                *known = (entry, error);
            }
        }
        let mut index = 0;
        let waits = |entry: &mut Entry<T>| {
            index += 1;
            first.get(&Queue::of(entry)).is_some_and(|(from, _)| index > *from)
        };
        let waiting: Vec<Entry<T>> = batch.entries.extract_if(.., waits).collect();
        report_blocked(waiting.iter(), events);
        // From the last to the first, each to the front: records that wait already were received later.
        for mut entry in waiting.into_iter().rev() {
            let queue = Queue::of(&entry).into_owned();
            entry.was_blocked = true;
            entry.known = Known::New;
            if let Queue::Inbox(recv_id) = &queue {
                // Another owner may have written to the inbox: its last `seq` is read from the table.
                self.cache.remove(recv_id);
            }
            let retried = batch.retry.as_ref().filter(|retry| retry.queue == queue);
            let attempts = retried.map_or(0, |retry| retry.attempts + 1);
            let error = first[&queue].1.clone();
            self.blocked.waiting(queue, error, attempts).push_front(entry);
        }
        // What is known of the others was found in a transaction that is rolled back.
        forget_found(&mut batch.entries);
    }
}

/// Inserts an entry after those that were received before it. A later part of the same batch may wait already, if a
/// bisection blocked it before the batch was halved.
pub(super) fn insert<T>(waiting: &mut VecDeque<Entry<T>>, entry: Entry<T>) {
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

/// Reports the records that start to wait.
fn report_blocked<'a, T: 'a>(entries: impl Iterator<Item = &'a Entry<T>>, events: &mut Vec<Event>) {
    let started: Vec<RecordRef> = entries.filter(|entry| !entry.was_blocked).map(|entry| entry.record_ref).collect();
    if !started.is_empty() {
        events.push(Event::Blocked(started));
    }
}

/// Reports the records that do not wait any more.
pub(super) fn report_unblocked<'a, T: 'a>(entries: impl Iterator<Item = &'a Entry<T>>, events: &mut Vec<Event>) {
    let ended: Vec<RecordRef> = entries.filter(|entry| entry.was_blocked).map(|entry| entry.record_ref).collect();
    if !ended.is_empty() {
        events.push(Event::Unblocked(ended));
    }
}
