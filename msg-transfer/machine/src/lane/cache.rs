//! The cache of the last `seq` of the inboxes that a lane wrote recently: most batches need no query for them.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::Epoch;

/// The last `seq` of some inboxes. An entry counts only under the assignment that it was written under: another owner
/// may have written since. After a COMMIT that was not confirmed, and with a new connection, the table may differ: then
/// it is cleared.
#[derive(Debug)]
pub(super) struct SeqCache(LruCache<String, (Epoch, i64)>);

impl SeqCache {
    pub(super) fn new(capacity: NonZeroUsize) -> Self {
        SeqCache(LruCache::new(capacity))
    }

    /// Returns the last `seq` of an inbox, if it was cached under this assignment.
    pub(super) fn get(&mut self, recv_id: &str, epoch: Epoch) -> Option<i64> {
        self.0.get(recv_id).filter(|(known_under, _)| *known_under == epoch).map(|(_, seq)| *seq)
    }

    /// Records that `seq` is the last one of this inbox in the table.
    pub(super) fn put(&mut self, recv_id: &str, epoch: Epoch, seq: i64) {
        match self.0.get_mut(recv_id) {
            Some(entry) => *entry = (epoch, seq),
            None => {
                self.0.put(recv_id.to_owned(), (epoch, seq));
            }
        }
    }

    pub(super) fn remove(&mut self, recv_id: &str) {
        self.0.pop(recv_id);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_counts_only_under_its_own_assignment() {
        let mut cache = SeqCache::new(NonZeroUsize::new(2).expect("2"));
        cache.put("a", 1, 7);
        assert_eq!((cache.get("a", 1), cache.get("a", 2)), (Some(7), None));
        cache.put("a", 2, 9);
        assert_eq!((cache.get("a", 1), cache.get("a", 2)), (None, Some(9)));
    }

    #[test]
    fn least_recently_used_inbox_is_evicted() {
        let mut cache = SeqCache::new(NonZeroUsize::new(2).expect("2"));
        cache.put("a", 1, 1);
        cache.put("b", 1, 1);
        cache.get("a", 1);
        cache.put("c", 1, 1);
        assert_eq!((cache.get("a", 1), cache.get("b", 1)), (Some(1), None));
    }
}
