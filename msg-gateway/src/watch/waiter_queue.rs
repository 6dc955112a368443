//! The waiters of each inbox, and which of them to look up next.
//!
//! The records of an inbox are completed in the order of their offsets. So a lookup queries the oldest waiters of an
//! inbox, and more of them only as long as it finds some: the cost depends on how many messages were stored, not on
//! how many waiters there are. A lookup also queries some of the others in turn, because the oldest ones may wait for
//! a row that never appears.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::watch::hinted_rows::HintedRow;
use crate::watch::verdict::{Awaited, WaitResult};

/// How many waiters of one inbox a lookup queries: the oldest ones, and as many of the others.
const CHUNK: usize = 32;
/// Maximum number of messages of one lookup, over all inboxes.
pub(crate) const MAX_LOOKUP_MSGS: usize = 1000;

/// The delay of the first lookup, because a hint may arrive before its waiter, or not at all.
pub(crate) const FIRST_LOOKUP_DELAY: Duration = Duration::from_millis(50);

/// A caller that waits for a row.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// `id` is set when the waiter is added.
    pub(crate) awaited: Awaited,
    pub(crate) since: Instant,
    pub(crate) result: oneshot::Sender<WaitResult>,
}

/// What a hint says about an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hinted {
    /// Every record that was completed has a row that the hint describes, and the waiters of these rows have their results.
    AllDescribed,
    /// Rows were stored that have to be queried.
    Rows,
    /// A record was completed without a row: a duplicate or a dead letter.
    WithoutRow,
}

impl Waiter {
    /// The rank among the waiters of the inbox. A waiter without an offset is last.
    fn rank(&self) -> Rank {
        (self.awaited.key.offset.unwrap_or(i64::MAX), self.awaited.id)
    }
}

type Rank = (i64, u64);

#[derive(Default)]
pub(crate) struct WaiterQueue {
    next: u64,
    waiters: HashMap<u64, Waiter>,
    state: State,
}

#[derive(Default)]
struct State {
    inboxes: HashMap<Arc<str>, Inbox>,
    /// When each inbox is looked up.
    timers: BTreeSet<(Instant, Arc<str>)>,
}

struct Inbox {
    recv_id: Arc<str>,
    waiters: BTreeSet<Rank>,
    timer: Instant,
    /// When the last hint about the inbox arrived.
    hinted: Option<Instant>,
    /// When the last hint arrived that may be about a record without a row.
    hinted_without_row: Option<Instant>,
    /// How many waiters got their result since the last lookup.
    completed: usize,
    /// The last waiter that was queried in turn.
    turn: Rank,
}

impl WaiterQueue {
    /// Adds a waiter, to be looked up at `first_lookup` at the latest. Returns its ID, and whether no other lookup is
    /// due earlier.
    pub(crate) fn add(&mut self, mut waiter: Waiter, first_lookup: Instant) -> (u64, bool) {
        let id = self.next;
        self.next += 1;
        waiter.awaited.id = id;
        let first = self.next_lookup().is_none_or(|when| when > first_lookup);
        let State { inboxes, timers } = &mut self.state;
        let recv_id: Arc<str> = waiter.awaited.key.recv_id.as_str().into();
        let inbox = inboxes.entry(recv_id.clone()).or_insert_with(|| {
            timers.insert((first_lookup, recv_id.clone()));
            let (waiters, turn) = (BTreeSet::new(), (i64::MIN, 0));
            Inbox { recv_id, waiters, timer: first_lookup, hinted: None, hinted_without_row: None, completed: 0, turn }
        });
        inbox.waiters.insert(waiter.rank());
        inbox.look_up_by(first_lookup, timers);
        self.waiters.insert(id, waiter);
        (id, first)
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.take(id);
    }

    /// Removes a waiter that has its result. Returns it, and whether a hint arrived while it waited.
    pub(crate) fn complete(&mut self, id: u64, now: Instant) -> Option<(Waiter, bool)> {
        let (waiter, hinted) = self.take(id)?;
        let State { inboxes, timers } = &mut self.state;
        if let Some(inbox) = inboxes.get_mut(waiter.awaited.key.recv_id.as_str()) {
            // The rows of the next waiters may exist as well.
            inbox.completed += 1;
            inbox.look_up_by(now, timers);
        }
        let hinted = hinted.is_some_and(|when| when >= waiter.since);
        Some((waiter, hinted))
    }

    pub(crate) fn len(&self) -> usize {
        self.waiters.len()
    }

    pub(crate) fn has_waiters(&self, recv_id: &str) -> bool {
        self.state.inboxes.contains_key(recv_id)
    }

    /// Removes the waiter whose record made this row of the inbox, and returns it.
    pub(crate) fn complete_hinted(&mut self, recv_id: &str, row: &HintedRow) -> Option<Waiter> {
        let inbox = self.state.inboxes.get(recv_id)?;
        let mut at_offset = inbox.waiters.range((row.offset, 0)..=(row.offset, u64::MAX));
        let (_, id) = *at_offset.find(|(_, id)| self.waiters[id].awaited.is_its_hinted_row(row))?;
        Some(self.take(id)?.0)
    }

    /// Records a hint about an inbox. Makes the inbox due unless the hint described all that was completed. Returns whether
    /// it was made due.
    pub(crate) fn hinted(&mut self, recv_id: &str, hinted: Hinted, now: Instant) -> bool {
        let State { inboxes, timers } = &mut self.state;
        let Some(inbox) = inboxes.get_mut(recv_id) else { return false };
        inbox.hinted = Some(now);
        if hinted == Hinted::WithoutRow {
            inbox.hinted_without_row = Some(now);
        }
        if hinted == Hinted::AllDescribed {
            return false;
        }
        inbox.look_up_by(now, timers);
        true
    }

    pub(crate) fn next_lookup(&self) -> Option<Instant> {
        self.state.timers.first().map(|(when, _)| *when)
    }

    /// Returns the waiters to look up now. Their inboxes are due again at `again` at the latest, which must be after
    /// `now`.
    pub(crate) fn due(&mut self, now: Instant, again: Instant) -> Vec<Awaited> {
        let State { inboxes, timers } = &mut self.state;
        let mut due = Vec::new();
        while due.len() < MAX_LOOKUP_MSGS
            && let Some((when, recv_id)) = timers.first()
            && *when <= now
        {
            let inbox = inboxes.get_mut(recv_id).expect("an inbox with a timer has waiters");
            let next = inbox.next().map(|id| &self.waiters[&id]);
            let without_row = inbox.hinted_without_row;
            due.extend(next.map(|Waiter { awaited, since, .. }| Awaited {
                may_be_dead: without_row.is_some_and(|when| when >= *since) || now >= *since + FIRST_LOOKUP_DELAY,
                ..awaited.clone()
            }));
            inbox.set_timer(again, timers);
        }
        due
    }

    fn take(&mut self, id: u64) -> Option<(Waiter, Option<Instant>)> {
        let waiter = self.waiters.remove(&id)?;
        let recv_id = waiter.awaited.key.recv_id.as_str();
        let State { inboxes, timers } = &mut self.state;
        let inbox = inboxes.get_mut(recv_id)?;
        inbox.waiters.remove(&waiter.rank());
        let hinted = inbox.hinted;
        if inbox.waiters.is_empty() {
            timers.remove(&(inbox.timer, inbox.recv_id.clone()));
            inboxes.remove(recv_id);
        }
        Some((waiter, hinted))
    }
}

impl Inbox {
    /// Returns the waiters to look up now.
    fn next(&mut self) -> impl Iterator<Item = u64> + use<> {
        // Twice as many as the last lookup found: the more messages are stored, the more are looked up together.
        let chunk = (2 * std::mem::take(&mut self.completed)).clamp(CHUNK, MAX_LOOKUP_MSGS / 2);
        let mut next: Vec<Rank> = self.waiters.iter().take(chunk).copied().collect();
        let after = next.last().copied().unwrap_or_default().max(self.turn);
        let oldest = next.len();
        next.extend(self.waiters.range((Excluded(after), Unbounded)).take(chunk));
        // After the last waiter, the first one is next.
        self.turn = next[oldest..].last().copied().unwrap_or((i64::MIN, 0));
        next.into_iter().map(|(_, id)| id)
    }

    fn look_up_by(&mut self, when: Instant, timers: &mut BTreeSet<(Instant, Arc<str>)>) {
        if when < self.timer {
            self.set_timer(when, timers);
        }
    }

    fn set_timer(&mut self, when: Instant, timers: &mut BTreeSet<(Instant, Arc<str>)>) {
        timers.remove(&(self.timer, self.recv_id.clone()));
        timers.insert((when, self.recv_id.clone()));
        self.timer = when;
    }
}

#[cfg(test)]
mod tests;
