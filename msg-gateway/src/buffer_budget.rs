//! A budget of bytes over all connections, with permits that grow and shrink.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A maximum of bytes, shared by all connections.
#[derive(Debug)]
pub struct BufferBudget {
    max: usize,
    used: AtomicUsize,
}

/// A permit for a number of bytes, released when it is dropped.
#[derive(Debug)]
pub struct BufferPermit {
    budget: Arc<BufferBudget>,
    bytes: usize,
}

impl BufferBudget {
    /// Creates a budget of `max` bytes.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(BufferBudget { max, used: AtomicUsize::new(0) })
    }

    /// Returns the bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Acquires a permit for `bytes`, or returns `None` if the budget is exhausted.
    pub fn acquire(self: &Arc<Self>, bytes: usize) -> Option<BufferPermit> {
        let mut permit = self.empty_permit();
        permit.try_resize(bytes).then_some(permit)
    }

    /// Returns a permit for no bytes, which can grow.
    pub(crate) fn empty_permit(self: &Arc<Self>) -> BufferPermit {
        BufferPermit { budget: self.clone(), bytes: 0 }
    }
}

impl BufferPermit {
    /// Changes the permit to `bytes`. Returns `false`, and leaves it as it is, if the budget is exhausted.
    pub fn try_resize(&mut self, bytes: usize) -> bool {
        let all = &self.budget.used;
        if bytes == self.bytes {
            // Most requests arrive in one chunk, and need no permit at all.
            return true;
        }
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            if all.fetch_add(more, Ordering::Relaxed) + more > self.budget.max {
                all.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
        } else {
            all.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for BufferPermit {
    fn drop(&mut self) {
        self.try_resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_requests_have_a_limit() {
        let budget = BufferBudget::new(10);
        let first = budget.acquire(6).expect("there is capacity");
        assert!(budget.acquire(5).is_none());
        let second = budget.acquire(4).expect("there is capacity");
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }
}
