//! The state of a partition whose fetch fails.

use crate::{Millis, NextOffset, RecordOffset};

/// The failed fetch of a partition, which will be retried.
#[derive(Clone, Debug)]
pub struct Failing {
    /// The number of attempts that failed in a row at this offset.
    pub attempts: u32,
    pub at: NextOffset,
    /// The error and the advice, for operators.
    pub text: String,
    pub(super) next: Next,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// It is retried no earlier than this.
    Retry(Millis),
    /// Its start offset is being resolved again.
    Resolving,
    /// It has been fetched again since then.
    Fetching(Millis),
}

impl Failing {
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.next, Next::Retry(_))
    }

    /// Records that its start offset is resolved again, unless it waits for its next attempt.
    pub(super) fn restarted(&mut self) {
        if !self.is_waiting() {
            self.next = Next::Resolving;
        }
    }

    pub(super) fn fetching(&mut self, now: Millis) {
        self.next = Next::Fetching(now);
    }

    /// Returns whether a record at this offset shows that the fetch succeeded.
    pub(super) fn is_over(&self, received: RecordOffset) -> bool {
        received.0 >= self.at.0
    }
}
