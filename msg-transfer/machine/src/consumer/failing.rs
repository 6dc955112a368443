//! Partitions whose fetch fails: which errors halt one, and when a fetch is tried again.

use super::Machine;
use super::event::{Action, FetchFailure};
use super::owned::{Owned, Phase};
use crate::{Millis, NextOffset, Partition, RecordOffset};

/// How long to wait between attempts to fetch a partition whose fetch fails: exponential, with full jitter.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure, at most this long.
    pub first: Millis,
    /// After many, at most this long.
    pub longest: Millis,
    /// A fetch that brings neither a record nor an error for this long has recovered: there may be nothing to fetch.
    pub recovered: Millis,
}

/// Damaged data may have been damaged on its way to us, so it is fetched once more before its partition is halted.
const DAMAGED_ATTEMPTS: u32 = 2;

/// Failures in a row at one offset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    attempts: u32,
    /// The offset that could not be fetched.
    at: NextOffset,
    next: Next,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    /// It is not fetched before this.
    Retry(Millis),
    /// Its start is being resolved again.
    Resolving,
    /// It is fetched, since then.
    Fetching(Millis),
}

impl Failing {
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.next, Next::Retry(_))
    }

    /// Its start is resolved again, unless it waits.
    pub(super) fn restarted(&mut self) {
        if !self.is_waiting() {
            self.next = Next::Resolving;
        }
    }

    pub(super) fn fetching(&mut self, now: Millis) {
        self.next = Next::Fetching(now);
    }

    /// A record at this offset shows that what failed was read.
    pub(super) fn is_over(&self, received: RecordOffset) -> bool {
        received.0 >= self.at.0
    }
}

impl Backoff {
    fn ceiling(&self, attempts: u32) -> Millis {
        let doubled = 1_u64 << attempts.saturating_sub(1).min(20);
        self.first.saturating_mul(doubled).min(self.longest)
    }
}

impl Machine {
    /// Fetches the partition no more for a while, or halts it. What was received of it before continues to be stored.
    pub(super) fn fetch_failed(
        &mut self,
        partition: Partition,
        failure: FetchFailure,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        let Some(owned) = self.owned.get_mut(&partition).filter(|owned| !owned.revoking) else { return };
        let Phase::Running { ledger, .. } = &owned.phase else { return };
        let before = owned.failing;
        if before.is_some_and(|failing| failing.is_waiting()) {
            return;
        }
        // What is below was received: a batch can start before the offset that is wanted of it.
        let expected = ledger.expected();
        let at = failure.offset.map_or(expected, |offset| expected.max(NextOffset(offset.0)));
        let attempts = match before {
            Some(before) if at <= before.at => before.attempts.saturating_add(1),
            _ => 1,
        };
        actions.push(Action::StopFetching { partition });
        if failure.damaged && attempts >= DAMAGED_ATTEMPTS {
            owned.failing = None;
            owned.stand_still();
            let reason = format!("offset {at}: {}", failure.text);
            actions.push(Action::Halted { partition, reason });
            actions.push(Action::FetchRecovered { partition });
            return;
        }
        let at = before.map_or(at, |before| before.at.max(at));
        let ceiling = self.settings.fetch_backoff.ceiling(attempts);
        let retry = now + (ceiling as f64 * failure.jitter.clamp(0.0, 1.0)) as Millis;
        owned.failing = Some(Failing { attempts, at, next: Next::Retry(retry) });
        actions.push(Action::FetchFailing { partition, at, attempts, text: failure.text });
    }

    /// Tries again what has waited long enough, and takes what fails no more for recovered.
    pub(super) fn retry_fetches(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let recovered = self.settings.fetch_backoff.recovered;
        let failing = self.owned.iter().filter_map(|(partition, owned)| Some((*partition, owned.failing?)));
        let failing: Vec<_> = failing.collect();
        for (partition, failing) in failing {
            let Some(owned) = self.owned.get_mut(&partition).filter(|owned| !owned.revoking) else { continue };
            match failing.next {
                // Kafka may have lost what is in the lanes: it is stored first.
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
    /// Receives nothing more; what it has received can still be stored and committed.
    fn stand_still(&mut self) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Resolving) {
            Phase::Running { ledger, committed } => Phase::Halted { ledger: Some(ledger), committed },
            other => other,
        };
        self.draining = true;
    }
}
