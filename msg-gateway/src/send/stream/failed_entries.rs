//! The entries of a stream that failed and have to be sent again. After an entry was not sent, or its outcome is
//! unknown, any other entry to the same inbox would be out of order.

use std::collections::{HashMap, VecDeque};

use uuid::Uuid;

/// The failed entries of each inbox, by rank: the order in which they first came.
#[derive(Debug, Default)]
pub(super) struct FailedEntries {
    inboxes: HashMap<String, VecDeque<FailedEntry>>,
    len: usize,
    name_bytes: usize,
}

/// Bytes that an inbox needs in addition to its name, and bytes of an entry.
const INBOX_BYTES: usize = 160;
const ENTRY_BYTES: usize = 64;

#[derive(Debug)]
struct FailedEntry {
    rank: u64,
    msg_id: Uuid,
}

impl FailedEntries {
    /// Returns the rank to send an entry with, or `None` if another entry to its inbox has to be sent first. The rank
    /// is `rank`, unless the entry failed before and has one.
    pub(super) fn rank_if_next(&self, recv_id: &str, msg_id: Uuid, rank: u64) -> Option<u64> {
        let Some(first) = self.inboxes.get(recv_id).and_then(VecDeque::front) else {
            return Some(rank);
        };
        (first.msg_id == msg_id).then_some(first.rank)
    }

    pub(super) fn remove_sent(&mut self, recv_id: &str, msg_id: Uuid) {
        let Some(inbox) = self.inboxes.get_mut(recv_id) else { return };
        if inbox.front().is_some_and(|first| first.msg_id == msg_id) {
            inbox.pop_front();
            self.len -= 1;
        }
        if inbox.is_empty() {
            self.inboxes.remove(recv_id);
            self.name_bytes -= recv_id.len();
        }
    }

    /// Adds a failed entry at its rank. Reports of entries that were in flight together may come in any order, and an
    /// entry may fail again after later ones did.
    pub(super) fn add(&mut self, recv_id: &str, msg_id: Uuid, rank: u64) {
        let inbox = match self.inboxes.get_mut(recv_id) {
            Some(inbox) => inbox,
            None => {
                self.name_bytes += recv_id.len();
                self.inboxes.entry(recv_id.to_owned()).or_default()
            }
        };
        if inbox.iter().any(|entry| entry.msg_id == msg_id) {
            return;
        }
        let at = inbox.partition_point(|entry| entry.rank < rank);
        inbox.insert(at, FailedEntry { rank, msg_id });
        self.len += 1;
    }

    pub(super) fn bytes(&self) -> usize {
        self.name_bytes + self.inboxes.len() * INBOX_BYTES + self.len * ENTRY_BYTES
    }

    /// Returns the memory that one more failed entry may need.
    pub(super) fn bytes_of(recv_id: &str) -> usize {
        recv_id.len() + INBOX_BYTES + ENTRY_BYTES
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    /// Sends an entry if it is the next one.
    fn sent(failed: &mut FailedEntries, recv_id: &str, n: u128) -> Option<u64> {
        let rank = failed.rank_if_next(recv_id, id(n), 100)?;
        failed.remove_sent(recv_id, id(n));
        Some(rank)
    }

    #[test]
    fn inbox_is_free_until_an_entry_to_it_fails() {
        let mut failed = FailedEntries::default();
        assert_eq!(sent(&mut failed, "bob", 1), Some(100));
        failed.add("bob", id(1), 1);
        assert_eq!(sent(&mut failed, "bob", 2), None);
        assert_eq!(sent(&mut failed, "carol", 2), Some(100));
        assert_eq!(failed.bytes(), FailedEntries::bytes_of("bob"));
        assert_eq!(sent(&mut failed, "bob", 1), Some(1));
        assert_eq!(failed.bytes(), 0);
    }

    #[test]
    fn failed_entries_are_resent_in_their_first_order() {
        let mut failed = FailedEntries::default();
        // Reports may come in this order.
        for n in [3, 1, 2] {
            failed.add("bob", id(n), n as u64);
        }
        for (n, rank) in
            [(2, None), (3, None), (9, None), (1, Some(1)), (3, None), (2, Some(2)), (9, None), (3, Some(3))]
        {
            assert_eq!(sent(&mut failed, "bob", n), rank, "{n}");
        }
        assert_eq!((sent(&mut failed, "bob", 9), failed.len()), (Some(100), 0));
    }

    #[test]
    fn entry_that_fails_again_is_first_again() {
        let mut failed = FailedEntries::default();
        failed.add("bob", id(1), 1);
        failed.add("bob", id(2), 2);
        let rank = sent(&mut failed, "bob", 1).expect("it is the next one");
        failed.add("bob", id(1), rank);
        assert_eq!(sent(&mut failed, "bob", 2), None);
        assert_eq!(sent(&mut failed, "bob", 1), Some(1));
        assert_eq!(sent(&mut failed, "bob", 2), Some(2));
    }

    #[test]
    fn entry_has_one_rank() {
        let mut failed = FailedEntries::default();
        failed.add("bob", id(1), 1);
        failed.add("bob", id(1), 5);
        assert_eq!(failed.len(), 1);
        assert_eq!(sent(&mut failed, "bob", 1), Some(1));
        assert_eq!(failed.len(), 0);
    }
}
