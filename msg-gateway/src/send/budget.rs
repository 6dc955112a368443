//! The budget of messages in flight, by count and bytes: accepted by the gateway, no delivery report yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Bytes that a record needs in addition to its key and value: librdkafka's structures, headers and queue entries.
pub(crate) const RECORD_OVERHEAD: usize = 512;

/// The maximum and the current number of messages and bytes in flight.
#[derive(Debug)]
pub(crate) struct SendBudget {
    max_msgs: usize,
    max_bytes: usize,
    msgs: AtomicUsize,
    bytes: AtomicUsize,
    waiters: AtomicUsize,
    released: Notify,
}

/// A permit for one or more messages. The record owns it, not the call: a caller that sends and cancels must not
/// exceed the limit.
#[derive(Debug)]
pub(crate) struct SendPermit {
    budget: Arc<SendBudget>,
    msgs: usize,
    bytes: usize,
}

/// Waits for capacity. Only streams wait.
#[derive(Debug)]
pub(crate) struct CapacityWait {
    budget: Arc<SendBudget>,
}

/// The limit that rejected a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitReached {
    Msgs,
    Bytes,
}

impl SendBudget {
    pub(crate) fn new(max_msgs: usize, max_bytes: usize) -> Arc<Self> {
        let (msgs, bytes, waiters) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(SendBudget { max_msgs, max_bytes, msgs, bytes, waiters, released: Notify::new() })
    }

    /// Acquires a permit for a record of `bytes`.
    pub(crate) fn acquire(self: &Arc<Self>, bytes: usize) -> Result<SendPermit, LimitReached> {
        self.acquire_all(1, bytes)
    }

    /// Acquires a permit for all of these records and bytes, or for none. A record or batch that is larger than a
    /// limit gets its permit when nothing else is in flight: otherwise it would be rejected on every retry.
    pub(crate) fn acquire_all(self: &Arc<Self>, msgs: usize, bytes: usize) -> Result<SendPermit, LimitReached> {
        // Increment before the check. With check-then-increment, two concurrent calls could both get the last permit.
        // The order matters to waiting streams: see `wait_for_capacity`.
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

    /// Registers a waiter, which is notified of permits that are released from now on. Try to acquire between this and
    /// [`CapacityWait::released`]: permits that were released before this call notify no waiter.
    pub(crate) fn wait_for_capacity(self: &Arc<Self>) -> CapacityWait {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        CapacityWait { budget: self.clone() }
    }

    /// Returns the messages in flight and their bytes.
    pub(crate) fn used(&self) -> (usize, usize) {
        (self.msgs.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl SendPermit {
    /// Splits off the permit of one record, which is released with that record.
    pub(crate) fn split(&mut self, bytes: usize) -> SendPermit {
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
    /// Waits until a permit is released. Each release wakes one waiter, in order.
    pub(crate) async fn released(&self) {
        self.budget.released.notified().await;
    }
}

impl Drop for CapacityWait {
    fn drop(&mut self) {
        // The waiter that was woken may leave capacity for the next one.
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
        let first = budget.acquire(1).expect("there is capacity");
        let _second = budget.acquire(1).expect("there is capacity");
        assert_eq!(budget.acquire(1).expect_err("it is full"), LimitReached::Msgs);
        drop(first);
        assert!(budget.acquire(1).is_ok());
    }

    #[test]
    fn the_bytes_are_a_limit() {
        let budget = SendBudget::new(10, 1000);
        let _first = budget.acquire(600).expect("there is capacity");
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
        let _one = budget.acquire(1).expect("there is capacity");
        assert_eq!(budget.acquire_all(11, 500).expect_err("they are not alone"), LimitReached::Msgs);
    }

    #[test]
    fn many_are_let_in_together_or_not_at_all_and_each_gives_back_its_own() {
        let budget = SendBudget::new(3, 1000);
        let one = budget.acquire(100).expect("there is capacity");
        assert_eq!(budget.acquire_all(3, 10).expect_err("it is full"), LimitReached::Msgs);
        assert_eq!(budget.acquire_all(2, 901).expect_err("it is full"), LimitReached::Bytes);
        assert_eq!(budget.used(), (1, 100));
        let mut both = budget.acquire_all(2, 900).expect("there is capacity");
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
        let permit = budget.acquire(1).expect("there is capacity");
        let (first, second) = (budget.wait_for_capacity(), budget.wait_for_capacity());
        drop(permit);
        first.released().await;
        let permit = budget.acquire(1).expect("there is capacity");
        drop(first);
        second.released().await;
        assert!(budget.acquire(1).is_err());
        drop(permit);
        second.released().await;
    }
}
