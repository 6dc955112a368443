//! What a watcher has to look at: the places of its inboxes in which there is more than it has had.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// One watcher's.
pub struct PendingInboxes {
    /// The watcher's number, unique in this process.
    pub number: u64,
    queue: Mutex<PendingQueue>,
    marked: Notify,
}

struct PendingQueue {
    indexes: VecDeque<usize>,
    /// By index: whether it is in the queue.
    queued: Box<[bool]>,
}

impl PendingInboxes {
    /// For so many inboxes; none is marked.
    pub fn new(number: u64, inboxes: usize) -> Self {
        let queue = PendingQueue { indexes: VecDeque::new(), queued: vec![false; inboxes].into() };
        PendingInboxes { number, queue: Mutex::new(queue), marked: Notify::new() }
    }

    /// There is more in this one.
    pub fn mark(&self, index: usize) {
        let mut queue = self.lock();
        if !std::mem::replace(&mut queue.queued[index], true) {
            queue.indexes.push_back(index);
            drop(queue);
            self.marked.notify_one();
        }
    }

    /// This one again, before all others.
    pub fn put_back(&self, index: usize) {
        let mut queue = self.lock();
        if std::mem::replace(&mut queue.queued[index], true) {
            // Marked again meanwhile: it moves to the front.
            queue.indexes.retain(|queued| *queued != index);
        }
        queue.indexes.push_front(index);
    }

    /// The one that was marked first. Marked again while it is worked on, it comes again.
    pub fn next(&self) -> Option<usize> {
        let mut queue = self.lock();
        let index = queue.indexes.pop_front()?;
        queue.queued[index] = false;
        Some(index)
    }

    /// Comes back when one is marked.
    pub async fn marked(&self) {
        while self.lock().indexes.is_empty() {
            self.marked.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, PendingQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_queued_once_and_comes_again_when_marked_meanwhile() {
        let pending = PendingInboxes::new(1, 3);
        for index in [2, 0, 2] {
            pending.mark(index);
        }
        assert_eq!(pending.next(), Some(2));
        pending.mark(2);
        assert_eq!([pending.next(), pending.next(), pending.next()], [Some(0), Some(2), None]);
    }

    #[test]
    fn what_is_put_back_comes_first() {
        let pending = PendingInboxes::new(1, 3);
        for index in [2, 0, 1] {
            pending.mark(index);
        }
        assert_eq!(pending.next(), Some(2));
        pending.put_back(2);
        assert_eq!(pending.next(), Some(2));
        pending.mark(2);
        pending.put_back(2);
        assert_eq!([pending.next(), pending.next(), pending.next(), pending.next()], [Some(2), Some(0), Some(1), None]);
    }
}
