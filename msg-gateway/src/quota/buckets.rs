//! A bounded table of token buckets, one for each sender or tenant. It has no clock.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use metrics::Counter;

use crate::budget::Holder;

/// The unit of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Msgs,
    Bytes,
}

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: f64,
    capacity: f64,
}

impl Rate {
    /// Returns the rate, or `None` if it is 0, which means no limit. A bucket holds what its rate gives in the time `burst`,
    /// and at least one message or byte.
    fn new(per_second: usize, burst: Duration) -> Option<Self> {
        let per_second = per_second as f64;
        (per_second > 0.0).then(|| Rate { per_second, capacity: (per_second * burst.as_secs_f64()).max(1.0) })
    }

    /// Returns how long to wait for `amount` if `used` of the bucket is used; `None` if there is enough. A full bucket is
    /// enough for any amount: a message above its capacity would otherwise be rejected on every retry.
    fn wait(&self, used: f64, amount: f64) -> Option<Duration> {
        // A caller that waits for the returned time must not be rejected because of a rounded number.
        const ROUNDING: f64 = 1e-6;
        let missing = used + amount.min(self.capacity) - self.capacity;
        (missing > ROUNDING).then(|| Duration::from_secs_f64(missing / self.per_second))
    }
}

/// What is used of a bucket, as of `at`. A new bucket is full.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    at: Instant,
    msgs: f64,
    bytes: f64,
}

/// How long to wait until a bucket has enough, and of what it has too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) unit: Unit,
    pub(super) wait: Duration,
}

/// The buckets of all senders, or of all tenants.
#[derive(Debug)]
pub(super) struct Buckets {
    msgs: Option<Rate>,
    bytes: Option<Rate>,
    /// Callers choose how many senders there are. When it is full, the bucket that was used least recently is removed,
    /// and its sender then has a full one. No sender is rejected because of it.
    used: LruCache<Holder, Bucket>,
    /// Counts buckets that were removed before they were full again.
    forgotten: Counter,
}

impl Buckets {
    /// Creates the table of at most `max` buckets. A rate of 0 is no limit.
    pub(super) fn new(msgs: usize, bytes: usize, burst: Duration, max: usize, forgotten: Counter) -> Self {
        let max = NonZeroUsize::new(max).unwrap_or(NonZeroUsize::MIN);
        let (msgs, bytes) = (Rate::new(msgs, burst), Rate::new(bytes, burst));
        // Without a rate, no bucket is ever added: do not allocate the table.
        let max = if msgs.is_some() || bytes.is_some() { max } else { NonZeroUsize::MIN };
        Buckets { msgs, bytes, used: LruCache::new(max), forgotten }
    }

    pub(super) fn limits_bytes(&self) -> bool {
        self.bytes.is_some()
    }

    pub(super) fn limits_anything(&self) -> bool {
        self.msgs.is_some() || self.bytes.is_some()
    }

    /// Checks whether the bucket of `holder` has enough for one message of so many bytes.
    pub(super) fn check(&mut self, holder: Holder, bytes: usize, now: Instant) -> Result<(), Shortage> {
        let bucket = self.bucket(holder, now);
        let short = |rate: Option<Rate>, used, amount, unit| Some(Shortage { unit, wait: rate?.wait(used, amount)? });
        let msgs = short(self.msgs, bucket.msgs, 1.0, Unit::Msgs);
        let bytes = short(self.bytes, bucket.bytes, bytes as f64, Unit::Bytes);
        msgs.into_iter().chain(bytes).max_by_key(|shortage| shortage.wait).map_or(Ok(()), Err)
    }

    /// Takes one message of so many bytes out of the bucket of `holder`.
    pub(super) fn take(&mut self, holder: Holder, bytes: usize, now: Instant) {
        if !self.limits_anything() {
            return;
        }
        let bucket = self.bucket(holder, now);
        let (msgs, bytes) = (bucket.msgs + 1.0, bucket.bytes + bytes as f64);
        let removed = self.used.push(holder, Bucket { msgs, bytes, ..bucket });
        if let Some((_, bucket)) = removed.filter(|(removed, _)| *removed != holder) {
            let bucket = self.refilled(bucket, now);
            if bucket.msgs > 0.0 || bucket.bytes > 0.0 {
                self.forgotten.increment(1);
            }
        }
    }

    /// Returns the bucket of `holder` as it is now.
    fn bucket(&mut self, holder: Holder, now: Instant) -> Bucket {
        match self.used.get(&holder).copied() {
            Some(bucket) => self.refilled(bucket, now),
            None => Bucket { at: now, msgs: 0.0, bytes: 0.0 },
        }
    }

    fn refilled(&self, bucket: Bucket, now: Instant) -> Bucket {
        // Threads may come in another order than their times.
        let seconds = now.saturating_duration_since(bucket.at).as_secs_f64();
        let refill =
            |rate: Option<Rate>, used: f64| rate.map_or(0.0, |rate| (used - seconds * rate.per_second).max(0.0));
        Bucket { at: bucket.at.max(now), msgs: refill(self.msgs, bucket.msgs), bytes: refill(self.bytes, bucket.bytes) }
    }
}

#[cfg(test)]
mod tests;
