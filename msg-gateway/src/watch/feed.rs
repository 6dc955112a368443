//! The watched inboxes: the last `seq` that was read of each, its newest rows, and its watchers.
//!
//! A row is read from the table once, for all watchers of its inbox, and is cached for a while. Each watcher reads
//! from the cache the rows after its cursor, when its caller has capacity for them; rows that are not cached any more
//! it reads from the table. So no message is queued for a watcher, and a slow watcher needs no more memory than a fast
//! one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indexmap::IndexMap;
use msg_common::proto::{StoredHint, StoredMsg};
use tokio::sync::Notify;

use crate::watch::pending_inboxes::PendingInboxes;

/// Bytes that a cached row needs in addition to its encoded bytes.
const ROW_OVERHEAD: usize = 512;
const MAX_ROWS: usize = 100_000;

/// The watched inboxes and their cached rows.
pub(crate) struct Feed {
    max_bytes: usize,
    state: Mutex<State>,
    /// Notified when an inbox has rows to read.
    pub(crate) work: Notify,
}

#[derive(Default)]
struct State {
    inboxes: IndexMap<Arc<str>, Inbox>,
    /// Inboxes with rows that were not read yet.
    unread: VecDeque<Arc<str>>,
    /// Cached rows, oldest first: inbox, seq, bytes. When the last watcher of an inbox leaves, its entries stay until
    /// they are evicted.
    cached: VecDeque<(Arc<str>, i64, usize)>,
    bytes: usize,
    /// The index of the inbox that the next check starts with.
    round: usize,
}

#[derive(Default)]
struct Inbox {
    known: bool,
    /// The last `seq` that was read, or that the inbox had when its first watcher subscribed.
    tip: i64,
    /// The highest `seq` that is known to be stored.
    wanted: i64,
    /// Whether the inbox is in `unread`.
    queued: bool,
    /// `rows` holds every stored row from this `seq` to the tip.
    from: i64,
    rows: VecDeque<Arc<StoredMsg>>,
    /// The watchers by number: the pending inboxes of each, and the index of this inbox among them.
    watchers: IndexMap<u64, (Arc<PendingInboxes>, usize)>,
}

/// The part of an inbox that the cache has after a watcher's cursor.
#[derive(Debug, PartialEq)]
pub(crate) struct FeedSlice {
    /// In order, directly after the cursor. If it is empty and `tip` is above the cursor, the rows have to be read
    /// from the table.
    pub(crate) rows: Vec<Arc<StoredMsg>>,
    /// The last `seq` that was read of the inbox.
    pub(crate) tip: i64,
}

impl Feed {
    /// Creates a feed that caches up to `max_bytes` of rows.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Feed { max_bytes, state: Mutex::default(), work: Notify::new() }
    }

    pub(crate) fn subscribe(&self, pending: &Arc<PendingInboxes>, recv_ids: &[Arc<str>]) {
        let mut state = self.lock();
        for (index, recv_id) in recv_ids.iter().enumerate() {
            let inbox = state.inboxes.entry(recv_id.clone()).or_default();
            inbox.watchers.insert(pending.number, (pending.clone(), index));
        }
    }

    /// Starts a watcher that subscribed before the last `seq` of each inbox was read. Returns its cursors: the
    /// requested ones, or those last `seq`s. Marks the inboxes that have rows after them.
    pub(crate) fn start(
        &self,
        pending: &PendingInboxes,
        recv_ids: &[Arc<str>],
        last_seqs: &[i64],
        requested: impl Iterator<Item = Option<i64>>,
    ) -> Vec<i64> {
        let mut cursors = Vec::with_capacity(recv_ids.len());
        for (index, (requested, (recv_id, last_seq))) in requested.zip(recv_ids.iter().zip(last_seqs)).enumerate() {
            let tip = self.resolve_tip(recv_id, *last_seq);
            // Not the tip, which other watchers have set: it may be higher than the table's last `seq` after a
            // restore.
            let cursor = requested.unwrap_or(*last_seq);
            cursors.push(cursor);
            if cursor < tip {
                pending.mark(index);
            }
        }
        cursors
    }

    pub(crate) fn unsubscribe(&self, pending: &PendingInboxes, recv_ids: &[Arc<str>]) {
        let mut state = self.lock();
        for recv_id in recv_ids {
            let Some(inbox) = state.inboxes.get_mut(recv_id) else { continue };
            inbox.watchers.swap_remove(&pending.number);
            if inbox.watchers.is_empty() {
                state.inboxes.swap_remove(recv_id);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().inboxes.len()
    }

    /// Returns the bytes of the cached rows.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Records that the table had `seq` as the last one of the inbox, read after `subscribe`. Returns the tip, which
    /// may be higher.
    fn resolve_tip(&self, recv_id: &Arc<str>, seq: i64) -> i64 {
        let mut state = self.lock();
        let Some(inbox) = state.inboxes.get_mut(recv_id) else { return seq };
        let wanted = if inbox.known {
            seq
        } else {
            // The inbox had no watcher before, so no watcher has missed the rows up to here.
            (inbox.known, inbox.tip, inbox.from) = (true, seq, seq + 1);
            inbox.wanted
        };
        let tip = inbox.tip.max(seq);
        if state.request_read(recv_id, wanted) {
            drop(state);
            self.work.notify_one();
        }
        tip
    }

    /// Requests reads of the inboxes in the hint.
    pub(crate) fn hinted(&self, hint: &StoredHint) {
        let mut state = self.lock();
        if state.inboxes.is_empty() {
            return;
        }
        let mut any = false;
        for hinted in &hint.inboxes {
            any |= state.request_read(&hinted.recv_id, hinted.seq);
        }
        drop(state);
        if any {
            self.work.notify_one();
        }
    }

    /// Requests a read because the row `seq` exists. Returns whether that was not known yet.
    pub(crate) fn found_stored(&self, recv_id: &str, seq: i64) -> bool {
        let news = self.lock().request_read(recv_id, seq);
        if news {
            self.work.notify_one();
        }
        news
    }

    /// Returns up to `max` inboxes to read, each with its tip.
    pub(crate) fn next_unread(&self, max: usize) -> Vec<(Arc<str>, i64)> {
        let mut state = self.lock();
        let mut next = Vec::new();
        while next.len() < max
            && let Some(recv_id) = state.unread.pop_front()
        {
            // If the inbox was unsubscribed and subscribed again meanwhile, its tip is not known yet. Reading it now
            // would start at its first row.
            if let Some(inbox) = state.inboxes.get_mut(&recv_id).filter(|inbox| inbox.known && inbox.queued) {
                inbox.queued = false;
                next.push((recv_id, inbox.tip));
            }
        }
        next
    }

    /// Requests reads of these inboxes again, because reading them failed.
    pub(crate) fn put_back(&self, inboxes: &[(Arc<str>, i64)]) {
        let mut state = self.lock();
        for (recv_id, tip) in inboxes {
            state.request_read(recv_id, tip + 1);
        }
    }

    /// Adds the rows that were read of these inboxes, in the same order: up to `per_inbox` of each. `cut` says that
    /// the statement's own limits left rows out.
    pub(crate) fn publish(&self, read: &[(Arc<str>, i64)], rows: Vec<(usize, StoredMsg)>, per_inbox: usize, cut: bool) {
        let mut state = self.lock();
        // An inbox that was unsubscribed and subscribed again meanwhile has another tip. The rows that were read may
        // not directly follow it.
        let is_same = |(recv_id, tip): &(Arc<str>, i64)| {
            state.inboxes.get(recv_id).is_some_and(|inbox| inbox.known && inbox.tip == *tip)
        };
        let same: Vec<bool> = read.iter().map(is_same).collect();
        let mut counts = vec![0_usize; read.len()];
        for (index, row) in rows.into_iter().filter(|(index, _)| same[*index]) {
            counts[index] += 1;
            state.keep(&read[index].0, row);
        }
        for (index, (recv_id, _)) in read.iter().enumerate().filter(|(index, _)| same[*index]) {
            let count = counts[index];
            let Some(inbox) = state.inboxes.get_mut(recv_id) else { continue };
            if count > 0 {
                inbox.watchers.values().for_each(|(pending, index)| pending.mark(*index));
            }
            if count == per_inbox || (cut && inbox.tip < inbox.wanted) {
                let next = inbox.tip + 1;
                state.request_read(recv_id, next);
            } else {
                // A row that was hinted and is not in the table yet is found by a later check.
                inbox.wanted = inbox.wanted.min(inbox.tip);
            }
        }
        state.evict(self.max_bytes);
        if !state.unread.is_empty() {
            drop(state);
            self.work.notify_one();
        }
    }

    /// Returns the cached rows after `cursor`: up to `rows` and up to `bytes`, and at least one if one is cached.
    pub(crate) fn slice(&self, recv_id: &str, cursor: i64, rows: usize, bytes: usize) -> FeedSlice {
        let state = self.lock();
        let Some(inbox) = state.inboxes.get(recv_id) else { return FeedSlice { rows: Vec::new(), tip: cursor } };
        let mut slice = Vec::new();
        if cursor + 1 >= inbox.from && cursor < inbox.tip {
            let first = inbox.rows.partition_point(|row| row.seq <= cursor);
            let mut sum = 0;
            for row in inbox.rows.iter().skip(first).take(rows) {
                sum += size(row);
                if !slice.is_empty() && sum > bytes {
                    break;
                }
                slice.push(row.clone());
            }
        }
        FeedSlice { rows: slice, tip: inbox.tip }
    }

    /// Returns the next up to `max` inboxes to check for rows without a hint, each with the `seq` that would be new.
    pub(crate) fn next_checks(&self, max: usize) -> Vec<(Arc<str>, i64)> {
        let mut state = self.lock();
        let count = state.inboxes.len();
        if count == 0 {
            return Vec::new();
        }
        let start = state.round % count;
        state.round = start + max.min(count);
        let next = (start..start + max.min(count)).filter_map(|index| state.inboxes.get_index(index % count));
        next.filter(|(_, inbox)| inbox.known).map(|(recv_id, inbox)| (recv_id.clone(), inbox.tip + 1)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn request_read(&mut self, recv_id: &str, seq: i64) -> bool {
        let Some((recv_id, inbox)) = self.inboxes.get_key_value_mut(recv_id) else { return false };
        let news = seq > inbox.tip && (seq > inbox.wanted || !inbox.queued);
        inbox.wanted = inbox.wanted.max(seq);
        // Before the tip is known, a read would start at the first row of the inbox.
        if inbox.known && seq > inbox.tip && !inbox.queued {
            inbox.queued = true;
            self.unread.push_back(recv_id.clone());
        }
        news
    }

    fn keep(&mut self, recv_id: &Arc<str>, row: StoredMsg) {
        let Some(inbox) = self.inboxes.get_mut(recv_id) else { return };
        if row.seq <= inbox.tip {
            return;
        }
        if inbox.rows.is_empty() {
            inbox.from = inbox.tip + 1;
        }
        let bytes = size(&row);
        self.bytes += bytes;
        self.cached.push_back((recv_id.clone(), row.seq, bytes));
        inbox.tip = row.seq;
        inbox.rows.push_back(Arc::new(row));
    }

    fn evict(&mut self, max_bytes: usize) {
        while (self.bytes > max_bytes || self.cached.len() > MAX_ROWS)
            && let Some((recv_id, seq, bytes)) = self.cached.pop_front()
        {
            self.bytes -= bytes;
            if let Some(inbox) = self.inboxes.get_mut(&recv_id)
                && inbox.rows.front().is_some_and(|row| row.seq == seq)
            {
                inbox.rows.pop_front();
                inbox.from = inbox.from.max(seq + 1);
            }
        }
    }
}

/// Returns the bytes that a row counts for.
pub(crate) fn size(row: &StoredMsg) -> usize {
    use prost::Message;
    row.encoded_len() + ROW_OVERHEAD
}

#[cfg(test)]
mod tests;
