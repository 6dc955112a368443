//! The model of the table: the rows of each inbox, and which rows a watcher may miss.

use std::collections::HashSet;

use msg_common::proto::{Msg, StoredMsg};

use super::INBOXES;
use crate::watch::feed::size;

#[derive(Default)]
pub(super) struct Table {
    inboxes: [Inbox; INBOXES],
    /// The sizes of all rows that were ever stored.
    sizes: HashSet<usize>,
}

#[derive(Default)]
struct Inbox {
    /// The bytes of content of each row, from `seq` 1 on. Purged rows are among them.
    rows: Vec<usize>,
    /// The highest `seq` that was purged.
    purged: usize,
    /// Rows were lost: a `seq` may be stored again.
    has_lost: bool,
}

fn seq_of(index: usize) -> i64 {
    i64::try_from(index).expect("it is small") + 1
}

fn index_after(seq: i64) -> usize {
    usize::try_from(seq).expect("no seq is negative")
}

impl Table {
    /// Stores a row. Returns its `seq`.
    pub(super) fn store(&mut self, inbox: usize, bytes: usize) -> i64 {
        let rows = &mut self.inboxes[inbox].rows;
        rows.push(bytes);
        let seq = seq_of(rows.len() - 1);
        self.sizes.insert(size(&row(inbox, seq, bytes)));
        seq
    }

    /// Deletes the oldest rows up to `tip`, which the feed has read: a row is purged long after it was stored. The
    /// newest row stays.
    pub(super) fn purge(&mut self, inbox: usize, rows: usize, tip: i64) {
        let Inbox { rows: stored, purged, .. } = &mut self.inboxes[inbox];
        let last = stored.len().saturating_sub(1).min(index_after(tip));
        *purged = (*purged + rows).min(last).max(*purged);
    }

    /// Deletes the newest rows.
    pub(super) fn lose(&mut self, inbox: usize, rows: usize) {
        let Inbox { rows: stored, purged, has_lost } = &mut self.inboxes[inbox];
        let left = stored.len().saturating_sub(rows).max(*purged + 1);
        *has_lost |= left < stored.len();
        stored.truncate(left);
    }

    pub(super) fn has_lost(&self, inbox: usize) -> bool {
        self.inboxes[inbox].has_lost
    }

    pub(super) fn has_row_of(&self, size: usize) -> bool {
        self.sizes.contains(&size)
    }

    pub(super) fn last_seqs(&self) -> Vec<i64> {
        self.inboxes.iter().map(|inbox| seq_of(inbox.rows.len()) - 1).collect()
    }

    pub(super) fn has(&self, inbox: usize, seq: i64) -> bool {
        (self.inboxes[inbox].purged..self.inboxes[inbox].rows.len()).contains(&(index_after(seq) - 1))
    }

    pub(super) fn after(&self, inbox: usize, cursor: i64) -> impl Iterator<Item = StoredMsg> {
        let Inbox { rows, purged, .. } = &self.inboxes[inbox];
        let first = index_after(cursor).max(*purged);
        rows.iter().enumerate().skip(first).map(move |(index, bytes)| row(inbox, seq_of(index), *bytes))
    }

    /// Returns whether a watcher may get the row `seq` next, after `cursor`: all rows in between were purged.
    pub(super) fn may_follow(&self, inbox: usize, cursor: i64, seq: i64) -> bool {
        seq == cursor + 1 || (seq > cursor && index_after(seq) - 1 <= self.inboxes[inbox].purged)
    }
}

fn row(inbox: usize, seq: i64, bytes: usize) -> StoredMsg {
    let msg = Msg { recv_id: inbox.to_string(), content: vec![0; bytes].into(), ..Msg::default() };
    StoredMsg { msg: Some(msg), seq, ..StoredMsg::default() }
}
