//! The inboxes of one watcher that have rows after its cursor.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The queue of one watcher's inboxes that have rows for it.
pub(crate) struct PendingInboxes {
    /// The watcher's number, unique in this process.
    pub(crate) number: u64,
    queue: Mutex<PendingQueue>,
    marked: Notify,
}

struct PendingQueue {
    indexes: VecDeque<usize>,
    queued: Box<[bool]>,
}

impl PendingInboxes {
    /// Creates an empty queue for this many inboxes.
    pub(crate) fn new(number: u64, inboxes: usize) -> Self {
        let queue = PendingQueue { indexes: VecDeque::new(), queued: vec![false; inboxes].into() };
        PendingInboxes { number, queue: Mutex::new(queue), marked: Notify::new() }
    }

    /// Queues an inbox, unless it is queued already.
    pub(crate) fn mark(&self, index: usize) {
        let mut queue = self.lock();
        if !std::mem::replace(&mut queue.queued[index], true) {
            queue.indexes.push_back(index);
            drop(queue);
            self.marked.notify_one();
        }
    }

    pub(crate) fn put_back(&self, index: usize) {
        let mut queue = self.lock();
        if std::mem::replace(&mut queue.queued[index], true) {
            // It was queued again meanwhile: move it to the front.
            queue.indexes.retain(|queued| *queued != index);
        }
        queue.indexes.push_front(index);
    }

    /// Removes and returns the first inbox. It may be queued again while the caller works on it.
    pub(crate) fn next(&self) -> Option<usize> {
        let mut queue = self.lock();
        let index = queue.indexes.pop_front()?;
        queue.queued[index] = false;
        Some(index)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().indexes.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn queued(&self) -> Vec<usize> {
        self.lock().indexes.iter().copied().collect()
    }

    /// Waits until an inbox is queued.
    pub(crate) async fn marked(&self) {
        while self.is_empty() {
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
    fn inbox_is_queued_once_and_again_if_marked_after_next() {
        let pending = PendingInboxes::new(1, 3);
        for index in [2, 0, 2] {
            pending.mark(index);
        }
        assert_eq!(pending.next(), Some(2));
        pending.mark(2);
        assert_eq!([pending.next(), pending.next(), pending.next()], [Some(0), Some(2), None]);
    }

    #[test]
    fn inbox_that_is_put_back_is_first() {
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
