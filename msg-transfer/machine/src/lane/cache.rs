//! The last `seq` of the inboxes that a lane has seen lately, so that most batches need not ask the table.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::Epoch;

/// Bounded. An entry counts only under the assignment that it was made under: in between, another owner may have
/// written. Whoever loses sight of what the table holds (a COMMIT without an answer, a new connection) clears it.
#[derive(Debug)]
pub struct SeqCache(LruCache<String, (Epoch, i64)>);

impl SeqCache {
    /// Holds at most so many inboxes.
    pub fn new(capacity: NonZeroUsize) -> Self {
        SeqCache(LruCache::new(capacity))
    }

    /// The last `seq` of this inbox, if it is known under this assignment.
    pub fn get(&mut self, recv_id: &str, epoch: Epoch) -> Option<i64> {
        self.0.get(recv_id).filter(|(known_under, _)| *known_under == epoch).map(|(_, seq)| *seq)
    }

    /// The table holds everything of this inbox up to `seq`.
    pub fn put(&mut self, recv_id: &str, epoch: Epoch, seq: i64) {
        match self.0.get_mut(recv_id) {
            Some(entry) => *entry = (epoch, seq),
            None => {
                self.0.put(recv_id.to_owned(), (epoch, seq));
            }
        }
    }

    /// Forgets one inbox.
    pub fn remove(&mut self, recv_id: &str) {
        self.0.pop(recv_id);
    }

    /// Knows nothing any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_counts_only_under_its_own_assignment() {
        let mut cache = SeqCache::new(NonZeroUsize::new(2).expect("2"));
        cache.put("a", 1, 7);
        assert_eq!((cache.get("a", 1), cache.get("a", 2)), (Some(7), None));
        cache.put("a", 2, 9);
        assert_eq!((cache.get("a", 1), cache.get("a", 2)), (None, Some(9)));
    }

    #[test]
    fn the_inbox_not_used_for_longest_makes_room() {
        let mut cache = SeqCache::new(NonZeroUsize::new(2).expect("2"));
        cache.put("a", 1, 1);
        cache.put("b", 1, 1);
        cache.get("a", 1);
        cache.put("c", 1, 1);
        assert_eq!((cache.get("a", 1), cache.get("b", 1)), (Some(1), None));
    }
}
