//! Partitions whose fetch fails: which errors halt a partition, and when its fetch is retried.

use super::Machine;
use super::event::{Action, FetchError};
use super::failing_fetch::{Failing, Next};
use super::owned::{Owned, Phase};
use crate::{Millis, NextOffset, Partition};

/// The backoff between attempts to fetch a partition: exponential, with full jitter.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The maximum after the first failure.
    pub first: Millis,
    /// The maximum after many failures.
    pub longest: Millis,
    /// A fetch that returns neither a record nor an error for this long has recovered: the log may have no further
    /// record.
    pub recovered: Millis,
}

/// Records may have been damaged in transit, so they are fetched once more before the partition is halted.
const DAMAGED_ATTEMPTS: u32 = 2;

impl Backoff {
    fn ceiling(&self, attempts: u32) -> Millis {
        let doubled = 1_u64 << attempts.saturating_sub(1).min(20);
        self.first.saturating_mul(doubled).min(self.longest)
    }
}

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
        let before = owned.failing;
        if before.is_some_and(|failing| failing.is_waiting()) {
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
            owned.failing = None;
            owned.halt();
            let reason = format!("offset {at}: {}", error.text);
            actions.push(Action::Halted { partition, reason });
            actions.push(Action::FetchRecovered { partition });
            return;
        }
        let at = before.map_or(at, |before| before.at.max(at));
        let ceiling = self.settings.fetch_backoff.ceiling(attempts);
        let retry = now + (ceiling as f64 * error.jitter.clamp(0.0, 1.0)) as Millis;
        owned.failing = Some(Failing { attempts, at, next: Next::Retry(retry) });
        actions.push(Action::FetchFailing { partition, at, attempts, text: error.text });
    }

    /// Retries each fetch whose backoff is over, and reports those that recovered.
    pub(super) fn retry_fetches(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let recovered = self.settings.fetch_backoff.recovered;
        let failing = self.owned.iter().filter_map(|(partition, owned)| Some((*partition, owned.failing?)));
        let failing: Vec<_> = failing.collect();
        for (partition, failing) in failing {
            let Some(owned) = self.owned.get_mut(&partition).filter(|owned| !owned.revoking) else { continue };
            match failing.next {
                // Kafka may have lost the records in the lanes: they are stored first.
                Next::Retry(_) if owned.is_completing(partition) => {}
                Next::Retry(at) if now >= at => {
                    owned.failing = Some(Failing { next: Next::Resolving, ..failing });
                    if matches!(owned.phase, Phase::Waiting) {
                        owned.phase = Phase::Resolving;
                        actions.push(Action::ResolveStart { partition, epoch: owned.epoch });
                    } else {
                        self.restart(partition, actions);
                    }
                }
                Next::Fetching(since) if now >= since + recovered => {
                    owned.failing = None;
                    actions.push(Action::FetchRecovered { partition });
                }
                _ => {}
            }
        }
    }
}

impl Owned {
    /// Halts the partition. Records that it has received can still be stored and committed.
    fn halt(&mut self) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Resolving) {
            Phase::Running { ledger, committed } => Phase::Halted { ledger: Some(ledger), committed },
            other => other,
        };
        self.draining = true;
    }
}
