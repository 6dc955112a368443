//! What a watcher has to look at: the places of its inboxes in which there is more than it has had.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// One watcher's.
pub struct Mailbox {
    /// The watcher's number, unique in this process.
    pub number: u64,
    marks: Mutex<Marks>,
    marked: Notify,
}

struct Marks {
    queue: VecDeque<usize>,
    /// By place: whether it is in the queue.
    queued: Box<[bool]>,
}

impl Mailbox {
    /// For so many inboxes; none is marked.
    pub fn new(number: u64, inboxes: usize) -> Self {
        let marks = Marks { queue: VecDeque::new(), queued: vec![false; inboxes].into() };
        Mailbox { number, marks: Mutex::new(marks), marked: Notify::new() }
    }

    /// There is more in this one.
    pub fn mark(&self, place: usize) {
        let mut marks = self.lock();
        if !std::mem::replace(&mut marks.queued[place], true) {
            marks.queue.push_back(place);
            drop(marks);
            self.marked.notify_one();
        }
    }

    /// This one again, before all others.
    pub fn put_back(&self, place: usize) {
        let mut marks = self.lock();
        if std::mem::replace(&mut marks.queued[place], true) {
            // Marked again meanwhile: it moves to the front.
            marks.queue.retain(|queued| *queued != place);
        }
        marks.queue.push_front(place);
    }

    /// The one that was marked first. Marked again while it is worked on, it comes again.
    pub fn next(&self) -> Option<usize> {
        let mut marks = self.lock();
        let place = marks.queue.pop_front()?;
        marks.queued[place] = false;
        Some(place)
    }

    /// Comes back when one is marked.
    pub async fn marked(&self) {
        while self.lock().queue.is_empty() {
            self.marked.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_queued_once_and_comes_again_when_marked_meanwhile() {
        let mailbox = Mailbox::new(1, 3);
        for place in [2, 0, 2] {
            mailbox.mark(place);
        }
        assert_eq!(mailbox.next(), Some(2));
        mailbox.mark(2);
        assert_eq!([mailbox.next(), mailbox.next(), mailbox.next()], [Some(0), Some(2), None]);
    }

    #[test]
    fn what_is_put_back_comes_first() {
        let mailbox = Mailbox::new(1, 3);
        for place in [2, 0, 1] {
            mailbox.mark(place);
        }
        assert_eq!(mailbox.next(), Some(2));
        mailbox.put_back(2);
        assert_eq!(mailbox.next(), Some(2));
        mailbox.mark(2);
        mailbox.put_back(2);
        assert_eq!([mailbox.next(), mailbox.next(), mailbox.next(), mailbox.next()], [Some(2), Some(0), Some(1), None]);
    }
}
