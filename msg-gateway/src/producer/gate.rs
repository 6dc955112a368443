//! Stops records from being enqueued while the producer is emptied, and lets their callers wait for its replacement.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

/// A gate that is open or closed.
pub(super) struct Gate {
    /// For how long callers wait for it to open.
    max_wait: Duration,
    /// The number of passes that exist.
    passes: AtomicUsize,
    closed: AtomicBool,
    /// Notified by the last pass while the gate closes.
    unused: Notify,
    /// Until when callers wait; `None` while the gate is open.
    until: watch::Sender<Option<Instant>>,
}

/// While it exists, the gate does not finish closing.
pub(super) struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        // In this order, with `close` the other way round: either this pass sees that the gate is closed, or closing sees
        // that there is no pass.
        if self.0.passes.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.closed.load(Ordering::SeqCst) {
            self.0.unused.notify_one();
        }
    }
}

impl Gate {
    pub(super) fn new(max_wait: Duration) -> Self {
        Gate {
            max_wait,
            passes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            unused: Notify::new(),
            until: watch::Sender::new(None),
        }
    }

    /// Returns a pass if the gate is open.
    pub(super) fn try_pass(&self) -> Option<Pass<'_>> {
        // Count before the check. With the opposite order, a pass could be given after closing has finished.
        self.passes.fetch_add(1, Ordering::SeqCst);
        let pass = Pass(self);
        (!self.closed.load(Ordering::SeqCst)).then_some(pass)
    }

    /// Returns a pass when the gate is open, or `None` if it stays closed for too long.
    pub(super) async fn pass(&self) -> Option<Pass<'_>> {
        loop {
            if let Some(pass) = self.try_pass() {
                return Some(pass);
            }
            let mut changes = self.until.subscribe();
            let until = *changes.borrow_and_update();
            // Without a time it was opened in the meantime.
            if let Some(until) = until {
                timeout_at(until, changes.wait_for(Option::is_none)).await.ok()?.ok()?;
            }
        }
    }

    /// Closes the gate, and waits until no pass exists. Only one task may do so.
    pub(super) async fn close(&self) {
        self.until.send_replace(Some(Instant::now() + self.max_wait));
        self.closed.store(true, Ordering::SeqCst);
        // Enqueueing never blocks, so this ends soon. A notification may be older than this: check again after it.
        while self.passes.load(Ordering::SeqCst) > 0 {
            self.unused.notified().await;
        }
    }

    pub(super) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.until.send_replace(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn callers_wait_for_a_closed_gate_and_not_indefinitely() {
        let gate = Arc::new(Gate::new(Duration::from_secs(60)));
        let pass = gate.try_pass().expect("it is open");
        let closing = tokio::spawn({
            let gate = gate.clone();
            async move { gate.close().await }
        });
        while gate.try_pass().is_some() {
            tokio::task::yield_now().await;
        }
        assert!(!closing.is_finished(), "a pass exists");
        drop(pass);
        let closed = tokio::time::timeout(Duration::from_secs(30), closing).await;
        closed.expect("the last pass is dropped").expect("it does not panic");
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass().await.is_some() }
        });
        tokio::task::yield_now().await;
        gate.open();
        assert!(waiting.await.expect("it does not panic"), "it was opened in time");

        let other = Gate::new(Duration::from_millis(50));
        other.close().await;
        assert!(other.pass().await.is_none());
        let started = Instant::now();
        assert!(other.pass().await.is_none(), "all callers wait until the same time");
        assert!(started.elapsed() < Duration::from_millis(50));
        other.open();
        assert!(other.pass().await.is_some());
    }
}
