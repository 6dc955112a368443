//! The watched inboxes: how far each is known to reach, its newest rows, and who watches it.
//!
//! A row is read from the table once, however many watch its inbox, and kept for a while. Watchers take from here what they
//! have not had, when they are able to; what is not here any more they read from the table. So nothing is queued for a
//! watcher, and a slow one costs no more memory than a fast one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indexmap::IndexMap;
use msg_common::proto::{StoredHint, StoredMsg};
use tokio::sync::Notify;

use crate::watch::pending_inboxes::PendingInboxes;

/// What a row costs beside its bytes.
const ROW_OVERHEAD: usize = 512;
/// Most rows that are kept.
const MAX_ROWS: usize = 100_000;

/// The watched inboxes.
pub struct Feed {
    max_bytes: usize,
    state: Mutex<State>,
    /// Something is to be read.
    pub work: Notify,
}

#[derive(Default)]
struct State {
    inboxes: IndexMap<Arc<str>, Inbox>,
    /// Inboxes that reach further than what was read.
    unread: VecDeque<Arc<str>>,
    /// Kept rows, oldest first: inbox, seq, bytes. An inbox that nobody watches any more leaves its entries behind.
    kept: VecDeque<(Arc<str>, i64, usize)>,
    bytes: usize,
    /// Where the round of looks is.
    round: usize,
}

#[derive(Default)]
struct Inbox {
    /// The tip was looked up.
    known: bool,
    /// Everything up to here was read, or was there before anybody watched.
    tip: i64,
    /// There is a row with this seq.
    wanted: i64,
    /// It is in `unread`.
    queued: bool,
    /// Of what is stored from here to the tip, all is in `rows`.
    from: i64,
    rows: VecDeque<Arc<StoredMsg>>,
    /// By the number of the watcher: where it has its cursor.
    watchers: IndexMap<u64, (Arc<PendingInboxes>, usize)>,
}

/// What a watcher gets from here.
#[derive(Debug, PartialEq)]
pub struct FeedSlice {
    /// In order, from its cursor on. Empty with `tip` above the cursor: to be read from the table.
    pub rows: Vec<Arc<StoredMsg>>,
    /// How far the inbox resolve_tip.
    pub tip: i64,
}

impl Feed {
    /// Keeps up to `max_bytes` of rows.
    pub fn new(max_bytes: usize) -> Self {
        Feed { max_bytes, state: Mutex::default(), work: Notify::new() }
    }

    /// Somebody watches these inboxes from now on.
    pub fn subscribe(&self, pending: &Arc<PendingInboxes>, recv_ids: &[Arc<str>]) {
        let mut state = self.lock();
        for (index, recv_id) in recv_ids.iter().enumerate() {
            let inbox = state.inboxes.entry(recv_id.clone()).or_default();
            inbox.watchers.insert(pending.number, (pending.clone(), index));
        }
    }

    /// And no longer.
    pub fn unsubscribe(&self, pending: &PendingInboxes, recv_ids: &[Arc<str>]) {
        let mut state = self.lock();
        for recv_id in recv_ids {
            let Some(inbox) = state.inboxes.get_mut(recv_id) else { continue };
            inbox.watchers.swap_remove(&pending.number);
            if inbox.watchers.is_empty() {
                state.inboxes.swap_remove(recv_id);
            }
        }
    }

    /// How many inboxes are watched.
    pub fn len(&self) -> usize {
        self.lock().inboxes.len()
    }

    /// Whether nobody watches anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the rows that are kept.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// The table was looked at after `enter`: an inbox resolve_tip at least so far. How far it does.
    pub fn resolve_tip(&self, recv_id: &Arc<str>, seq: i64) -> i64 {
        let mut state = self.lock();
        let Some(inbox) = state.inboxes.get_mut(recv_id) else { return seq };
        let wanted = if inbox.known {
            seq
        } else {
            // Nobody watched it before: what is below was not missed by anyone.
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

    /// Hints: what is behind them is to be read.
    pub fn hinted(&self, hint: &StoredHint) {
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

    /// There is a row with this seq, which no hint told of. Whether that was news.
    pub fn found_stored(&self, recv_id: &str, seq: i64) -> bool {
        let news = self.lock().request_read(recv_id, seq);
        if news {
            self.work.notify_one();
        }
        news
    }

    /// The next inboxes to read, each with how far it was read.
    pub fn next_unread(&self, max: usize) -> Vec<(Arc<str>, i64)> {
        let mut state = self.lock();
        let mut next = Vec::new();
        while next.len() < max
            && let Some(recv_id) = state.unread.pop_front()
        {
            // One that was left and entered again meanwhile is not known yet, and would be read from its beginning.
            if let Some(inbox) = state.inboxes.get_mut(&recv_id).filter(|inbox| inbox.known && inbox.queued) {
                inbox.queued = false;
                next.push((recv_id, inbox.tip));
            }
        }
        next
    }

    /// These could not be read: again.
    pub fn put_back(&self, inboxes: &[(Arc<str>, i64)]) {
        let mut state = self.lock();
        for (recv_id, tip) in inboxes {
            state.request_read(recv_id, tip + 1);
        }
    }

    /// What was read of them, in the same order; up to `per_inbox` of each, and when `cut`, not all of that.
    pub fn publish(&self, read: &[(Arc<str>, i64)], rows: Vec<(usize, StoredMsg)>, per_inbox: usize, cut: bool) {
        let mut state = self.lock();
        // An inbox that was left and entered again meanwhile is another one: what was read may not be what comes next in it.
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
                // What was hinted and is not there will be found by a look.
                inbox.wanted = inbox.wanted.min(inbox.tip);
            }
        }
        state.evict(self.max_bytes);
        if !state.unread.is_empty() {
            drop(state);
            self.work.notify_one();
        }
    }

    /// What comes after `cursor`, at max so many rows and bytes, but for one row.
    pub fn slice(&self, recv_id: &str, cursor: i64, rows: usize, bytes: usize) -> FeedSlice {
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

    /// The next inboxes of the round, with the seq that would be new in each.
    pub fn next_checks(&self, max: usize) -> Vec<(Arc<str>, i64)> {
        let mut state = self.lock();
        let count = state.inboxes.len();
        if count == 0 {
            return Vec::new();
        }
        let begin = state.round % count;
        state.round = begin + max.min(count);
        let next = (begin..begin + max.min(count)).filter_map(|index| state.inboxes.get_index(index % count));
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
        // Before the tip is known it would be read from its beginning.
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
        self.kept.push_back((recv_id.clone(), row.seq, bytes));
        inbox.tip = row.seq;
        inbox.rows.push_back(Arc::new(row));
    }

    fn evict(&mut self, max_bytes: usize) {
        while (self.bytes > max_bytes || self.kept.len() > MAX_ROWS)
            && let Some((recv_id, seq, bytes)) = self.kept.pop_front()
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

/// What a row counts for.
pub fn size(row: &StoredMsg) -> usize {
    use prost::Message;
    row.encoded_len() + ROW_OVERHEAD
}

#[cfg(test)]
mod tests;
