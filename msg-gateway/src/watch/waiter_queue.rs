//! Who waits for STORED, by inbox, and whom to look for next.
//!
//! An inbox's records are completed in the order of their offsets. So a look asks for the inbox's oldest waiters, and goes on
//! with more of them only while it finds some: what a look costs follows from what was stored, not from how many wait. A
//! few others are looked_up for beside them in turn, because the oldest ones may wait for something that never comes.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::watch::verdict::{Awaited, WaitResult};

/// Waiters of one inbox that a look asks for: the oldest ones, and as many others.
const CHUNK: usize = 32;
/// Most waiters that one look asks for, of all inboxes.
pub const MAX_LOOKUP_MSGS: usize = 1000;

/// A caller that waits.
pub struct Waiter {
    /// For what; its `id` is set when it is added.
    pub awaited: Awaited,
    /// Since when.
    pub since: Instant,
    /// Where it listens.
    pub result: oneshot::Sender<WaitResult>,
}

impl Waiter {
    /// Its rank among those of its inbox. Without an offset it comes last.
    fn rank(&self) -> Rank {
        (self.awaited.key.offset.unwrap_or(i64::MAX), self.awaited.id)
    }
}

type Rank = (i64, u64);

/// All who wait.
#[derive(Default)]
pub struct WaiterQueue {
    next: u64,
    waiters: HashMap<u64, Waiter>,
    state: State,
}

#[derive(Default)]
struct State {
    inboxes: HashMap<Arc<str>, Inbox>,
    /// When each inbox is looked at.
    timers: BTreeSet<(Instant, Arc<str>)>,
}

struct Inbox {
    recv_id: Arc<str>,
    waiters: BTreeSet<Rank>,
    timer: Instant,
    /// The last hint about it.
    hinted: Option<Instant>,
    /// How many were completed since the last look.
    completed: usize,
    /// The last one that was looked_up for in turn.
    turn: Rank,
}

impl WaiterQueue {
    /// One more, who is looked for at `first_lookup` at the latest. Its number, and whether nothing else is due sooner.
    pub fn add(&mut self, mut waiter: Waiter, first_lookup: Instant) -> (u64, bool) {
        let id = self.next;
        self.next += 1;
        waiter.awaited.id = id;
        let first = self.next_lookup().is_none_or(|when| when > first_lookup);
        let State { inboxes, timers } = &mut self.state;
        let recv_id: Arc<str> = waiter.awaited.key.recv_id.as_str().into();
        let inbox = inboxes.entry(recv_id.clone()).or_insert_with(|| {
            timers.insert((first_lookup, recv_id.clone()));
            let (waiters, turn) = (BTreeSet::new(), (i64::MIN, 0));
            Inbox { recv_id, waiters, timer: first_lookup, hinted: None, completed: 0, turn }
        });
        inbox.waiters.insert(waiter.rank());
        inbox.look_up_by(first_lookup, timers);
        self.waiters.insert(id, waiter);
        (id, first)
    }

    /// A waiter gave up.
    pub fn remove(&mut self, id: u64) {
        self.take(id);
    }

    /// A waiter has its result; and whether a hint came while it waited.
    pub fn complete(&mut self, id: u64, now: Instant) -> Option<(Waiter, bool)> {
        let (waiter, hinted) = self.take(id)?;
        let State { inboxes, timers } = &mut self.state;
        if let Some(inbox) = inboxes.get_mut(waiter.awaited.key.recv_id.as_str()) {
            // Those behind it may be there as well.
            inbox.completed += 1;
            inbox.look_up_by(now, timers);
        }
        let hinted = hinted.is_some_and(|when| when >= waiter.since);
        Some((waiter, hinted))
    }

    /// Something was completed in this inbox. Whether anybody waits for it.
    pub fn hinted(&mut self, recv_id: &str, now: Instant) -> bool {
        let State { inboxes, timers } = &mut self.state;
        let Some(inbox) = inboxes.get_mut(recv_id) else { return false };
        inbox.hinted = Some(now);
        inbox.look_up_by(now, timers);
        true
    }

    /// When to look next.
    pub fn next_lookup(&self) -> Option<Instant> {
        self.state.timers.first().map(|(when, _)| *when)
    }

    /// Whom to look for now. Their inboxes are looked at again at `again` at the latest, which is after `now`.
    pub fn due(&mut self, now: Instant, again: Instant) -> Vec<Awaited> {
        let State { inboxes, timers } = &mut self.state;
        let mut due = Vec::new();
        while due.len() < MAX_LOOKUP_MSGS
            && let Some((when, recv_id)) = timers.first()
            && *when <= now
        {
            let inbox = inboxes.get_mut(recv_id).expect("an inbox with a timer has waiters");
            due.extend(inbox.next().map(|id| self.waiters[&id].awaited.clone()));
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
    /// The waiters to ask for now.
    fn next(&mut self) -> impl Iterator<Item = u64> + use<> {
        // As many again as the last look found: the more is stored, the more is looked_up for at once.
        let chunk = (2 * std::mem::take(&mut self.completed)).clamp(CHUNK, MAX_LOOKUP_MSGS / 2);
        let mut next: Vec<Rank> = self.waiters.iter().take(chunk).copied().collect();
        let after = next.last().copied().unwrap_or_default().max(self.turn);
        let oldest = next.len();
        next.extend(self.waiters.range((Excluded(after), Unbounded)).take(chunk));
        // After the last of all it is the first one's turn.
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
