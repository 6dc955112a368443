//! Partitions whose fetch fails: which errors halt a partition, and when its fetch is retried.

use super::Machine;
use super::event::{Action, FetchError};
use super::owned::{Owned, Phase};
use crate::{Millis, NextOffset, Partition, RecordOffset};

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

/// Records may have been damaged in transit, so they are fetched once more before the partition is halted.
const DAMAGED_ATTEMPTS: u32 = 2;

impl Machine {
    /// Stops fetching the partition until its next attempt, or halts it. Records received before are still stored.
    pub(super) fn fetch_failed(
        &mut self,
        partition: Partition,
        error: FetchError,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        let Some(owned) = self.owned.get_mut(&partition).filter(|owned| !owned.revoking) else { return };
        let Phase::Running { ledger, .. } = &owned.phase else { return };
        let before = owned.failing.as_ref();
        if before.is_some_and(Failing::is_waiting) {
            return;
        }
        // The records below were received: a batch can start before the next offset.
        let expected = ledger.expected();
        let at = error.offset.map_or(expected, |offset| expected.max(NextOffset(offset.0)));
        let attempts = match before {
            Some(before) if at <= before.at => before.attempts.saturating_add(1),
            _ => 1,
        };
        actions.push(Action::StopFetching { partition });
        if error.damaged && attempts >= DAMAGED_ATTEMPTS {
            let reason = format!("offset {at}: {}", error.text);
            owned.halt(reason.clone());
            actions.push(Action::Halted { partition, reason });
            owned.fetch_recovered(partition, actions);
            return;
        }
        let at = before.map_or(at, |before| before.at.max(at));
        let ceiling = (self.settings.fetch_backoff)(attempts);
        let retry = now + (ceiling as f64 * error.jitter.clamp(0.0, 1.0)) as Millis;
        owned.failing = Some(Failing { attempts, at, text: error.text.clone(), next: Next::Retry(retry) });
        actions.push(Action::FetchFailing { partition, at, attempts, text: error.text });
    }

    /// Retries each fetch whose backoff is over, and reports those that recovered.
    pub(super) fn retry_fetches(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let recovery = self.settings.fetch_recovery;
        let failing: Vec<Partition> = self.failing().map(|(partition, _)| partition).collect();
        for partition in failing {
            let Some(owned) = self.owned.get_mut(&partition).filter(|owned| !owned.revoking) else { continue };
            let is_completing = owned.is_completing(partition);
            let Some(failing) = &mut owned.failing else { continue };
            match failing.next {
                // Kafka may have lost the records in the lanes: they are stored first.
                Next::Retry(_) if is_completing => {}
                Next::Retry(at) if now >= at => {
                    failing.next = Next::Resolving;
                    if matches!(owned.phase, Phase::Waiting) {
                        owned.phase = Phase::Resolving;
                        actions.push(Action::ResolveStart { partition, epoch: owned.epoch });
                    } else {
                        self.restart(partition, actions);
                    }
                }
                Next::Fetching(since) if now >= since + recovery => owned.fetch_recovered(partition, actions),
                _ => {}
            }
        }
    }
}

impl Owned {
    /// Halts the partition. Records that it has received can still be stored and committed.
    fn halt(&mut self, reason: String) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Resolving) {
            Phase::Running { ledger, committed } => Phase::Halted { ledger: Some(ledger), committed, reason },
            other => other,
        };
        self.draining = true;
    }

    /// Records that the fetch does not fail any more: it has recovered, or the partition is halted.
    pub(super) fn fetch_recovered(&mut self, partition: Partition, actions: &mut Vec<Action>) {
        if let Some(Failing { attempts, .. }) = self.failing.take() {
            actions.push(Action::FetchRecovered { partition, attempts });
        }
    }
}
