//! How much may be in flight: messages that were taken and whose delivery report has not come, by count and bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// What a record takes beside its key and value, in bytes: librdkafka's own structures, headers and queue entries.
pub const RECORD_OVERHEAD: usize = 512;

/// The limits, and what is taken of them.
#[derive(Debug)]
pub struct SendBudget {
    max_msgs: usize,
    max_bytes: usize,
    msgs: AtomicUsize,
    bytes: AtomicUsize,
    waiters: AtomicUsize,
    released: Notify,
}

/// A place in flight, or several. It belongs to the record and not to the call: a caller that sends and cancels must not
/// pass the limit.
#[derive(Debug)]
pub struct SendPermit {
    budget: Arc<SendBudget>,
    msgs: usize,
    bytes: usize,
}

/// Somebody who waits for room, which only streams do.
#[derive(Debug)]
pub struct CapacityWait {
    budget: Arc<SendBudget>,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// Too many messages.
    Msgs,
    /// Too many bytes.
    Bytes,
}

impl SendBudget {
    /// Nothing in flight yet.
    pub fn new(max_msgs: usize, max_bytes: usize) -> Arc<Self> {
        let (msgs, bytes, waiters) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(SendBudget { max_msgs, max_bytes, msgs, bytes, waiters, released: Notify::new() })
    }

    /// A place for a record of `bytes`.
    pub fn acquire(self: &Arc<Self>, bytes: usize) -> Result<SendPermit, LimitReached> {
        self.acquire_all(1, bytes)
    }

    /// A place for so many records of so many bytes in all, or for none of them. What is larger than a limit is let in when it
    /// is alone: it would otherwise be told to try again for ever.
    pub fn acquire_all(self: &Arc<Self>, msgs: usize, bytes: usize) -> Result<SendPermit, LimitReached> {
        // Added first and taken back when it was too much: two at once cannot both pass the last place. The order counts
        // for those who wait: see `wait`.
        let before = self.msgs.fetch_add(msgs, Ordering::SeqCst);
        if before > 0 && before + msgs > self.max_msgs {
            self.msgs.fetch_sub(msgs, Ordering::SeqCst);
            return Err(LimitReached::Msgs);
        }
        let before = self.bytes.fetch_add(bytes, Ordering::SeqCst);
        if before > 0 && before + bytes > self.max_bytes {
            self.msgs.fetch_sub(msgs, Ordering::SeqCst);
            self.bytes.fetch_sub(bytes, Ordering::SeqCst);
            return Err(LimitReached::Bytes);
        }
        Ok(SendPermit { budget: self.clone(), msgs, bytes })
    }

    /// From now on, whoever gives room back tells so. Try again after this and before [`CapacityWait::released`]: room that was given
    /// back before this was not told of.
    pub fn wait_for_capacity(self: &Arc<Self>) -> CapacityWait {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        CapacityWait { budget: self.clone() }
    }

    /// Messages in flight, and their bytes.
    pub fn used(&self) -> (usize, usize) {
        (self.msgs.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl SendPermit {
    /// One record's part of it, which is given back with that record.
    pub fn split(&mut self, bytes: usize) -> SendPermit {
        self.msgs -= 1;
        self.bytes -= bytes;
        SendPermit { budget: self.budget.clone(), msgs: 1, bytes }
    }
}

impl Drop for SendPermit {
    fn drop(&mut self) {
        self.budget.msgs.fetch_sub(self.msgs, Ordering::SeqCst);
        self.budget.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        if self.budget.waiters.load(Ordering::SeqCst) > 0 {
            self.budget.released.notify_one();
        }
    }
}

impl CapacityWait {
    /// Comes back when room was given back, to one of those who wait at a time, in turn.
    pub async fn released(&self) {
        self.budget.released.notified().await;
    }
}

impl Drop for CapacityWait {
    fn drop(&mut self) {
        // Who was woken may have left room for the next.
        if self.budget.waiters.fetch_sub(1, Ordering::SeqCst) > 1 {
            self.budget.released.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_a_limit() {
        let budget = SendBudget::new(2, 1000);
        let first = budget.acquire(1).expect("there is room");
        let _second = budget.acquire(1).expect("there is room");
        assert_eq!(budget.acquire(1).expect_err("it is full"), LimitReached::Msgs);
        drop(first);
        assert!(budget.acquire(1).is_ok());
    }

    #[test]
    fn the_bytes_are_a_limit() {
        let budget = SendBudget::new(10, 1000);
        let _first = budget.acquire(600).expect("there is room");
        assert_eq!(budget.acquire(401).expect_err("it is full"), LimitReached::Bytes);
        assert_eq!(budget.used(), (1, 600));
        assert!(budget.acquire(400).is_ok());
    }

    #[test]
    fn what_is_alone_may_be_larger_than_the_limit() {
        let budget = SendBudget::new(10, 1000);
        let alone = budget.acquire(2000).expect("it is alone");
        assert!(budget.acquire(1).is_err());
        drop(alone);
        assert_eq!(budget.used(), (0, 0));
        let alone = budget.acquire_all(11, 500).expect("they are alone");
        assert_eq!(budget.acquire(1).expect_err("it is full"), LimitReached::Msgs);
        drop(alone);
        let _one = budget.acquire(1).expect("there is room");
        assert_eq!(budget.acquire_all(11, 500).expect_err("they are not alone"), LimitReached::Msgs);
    }

    #[test]
    fn many_are_let_in_together_or_not_at_all_and_each_gives_back_its_own() {
        let budget = SendBudget::new(3, 1000);
        let one = budget.acquire(100).expect("there is room");
        assert_eq!(budget.acquire_all(3, 10).expect_err("it is full"), LimitReached::Msgs);
        assert_eq!(budget.acquire_all(2, 901).expect_err("it is full"), LimitReached::Bytes);
        assert_eq!(budget.used(), (1, 100));
        let mut both = budget.acquire_all(2, 900).expect("there is room");
        let first = both.split(300);
        drop(one);
        assert_eq!(budget.used(), (2, 900));
        drop(both);
        assert_eq!(budget.used(), (1, 300));
        drop(first);
        assert_eq!(budget.used(), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_is_told_of_room_and_tells_the_next() {
        let budget = SendBudget::new(1, 1000);
        let permit = budget.acquire(1).expect("there is room");
        let (first, second) = (budget.wait_for_capacity(), budget.wait_for_capacity());
        drop(permit);
        first.released().await;
        let permit = budget.acquire(1).expect("there is room");
        drop(first);
        second.released().await;
        assert!(budget.acquire(1).is_err());
        drop(permit);
        second.released().await;
    }
}
