//! The buckets against plain arithmetic, with a clock of the tests.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn buckets(msgs: usize, bytes: usize, max: usize) -> Buckets {
    Buckets::new(msgs, bytes, SECOND, max, Counter::noop())
}

fn try_take(buckets: &mut Buckets, holder: u64, bytes: usize, now: Instant) -> Result<(), Shortage> {
    let holder = Holder::numbered(holder);
    buckets.check(holder, bytes, now)?;
    buckets.take(holder, bytes, now);
    Ok(())
}

#[test]
fn bucket_holds_its_burst_and_refills_at_its_rate() {
    let mut buckets = buckets(10, 0, 100);
    let start = Instant::now();
    for number in 0..10 {
        assert_eq!(try_take(&mut buckets, 1, 5, start), Ok(()), "{number}");
    }
    let wait = Duration::from_millis(100);
    assert_eq!(try_take(&mut buckets, 1, 5, start), Err(Shortage { unit: Unit::Msgs, wait }));
    // Another sender has a bucket of its own.
    assert_eq!(try_take(&mut buckets, 2, 5, start), Ok(()));
    // A rejected message takes nothing: the wait stays the same, and then there is enough for one.
    assert_eq!(try_take(&mut buckets, 1, 5, start), Err(Shortage { unit: Unit::Msgs, wait }));
    assert_eq!(try_take(&mut buckets, 1, 5, start + wait), Ok(()));
    assert!(try_take(&mut buckets, 1, 5, start + wait).is_err());
    // It never holds more than its burst.
    let later = start + 100 * SECOND;
    assert_eq!((0..100).filter(|_| try_take(&mut buckets, 1, 5, later).is_ok()).count(), 10);
}

#[test]
fn longest_shortage_is_reported() {
    let mut buckets = buckets(1, 1000, 100);
    let start = Instant::now();
    assert_eq!(try_take(&mut buckets, 1, 600, start), Ok(()));
    assert_eq!(try_take(&mut buckets, 1, 500, start), Err(Shortage { unit: Unit::Msgs, wait: SECOND }));
    assert_eq!(try_take(&mut buckets, 1, 600, start + SECOND), Ok(()));
    let mut bytes_only = self::buckets(0, 1000, 100);
    assert_eq!(try_take(&mut bytes_only, 1, 600, start), Ok(()));
    let wait = Duration::from_millis(100);
    assert_eq!(try_take(&mut bytes_only, 1, 500, start), Err(Shortage { unit: Unit::Bytes, wait }));
    assert_eq!(try_take(&mut bytes_only, 1, 400, start), Ok(()));
}

#[test]
fn message_above_the_capacity_is_sent_and_paid_for() {
    let mut buckets = buckets(0, 1000, 100);
    let start = Instant::now();
    assert_eq!(try_take(&mut buckets, 1, 5000, start), Ok(()));
    assert_eq!(try_take(&mut buckets, 1, 1, start).map_err(|shortage| shortage.wait.as_secs()), Err(4));
    assert_eq!(try_take(&mut buckets, 1, 5000, start + 5 * SECOND), Ok(()));
}

#[test]
fn full_table_removes_the_bucket_that_was_idle_longest() {
    let mut buckets = buckets(1, 0, 1000);
    let start = Instant::now();
    // An attacker sends under a new name each time, and one sender keeps its bucket in use.
    assert_eq!(try_take(&mut buckets, 0, 1, start), Ok(()));
    for name in 1..100_000 {
        assert_eq!(try_take(&mut buckets, name, 1, start), Ok(()), "a new sender is rejected");
        assert!(try_take(&mut buckets, 0, 1, start).is_err(), "removed after {name}");
        assert!(buckets.used.len() <= 1000);
    }
    assert_eq!(buckets.used.len(), 1000);
    // The oldest one was removed, and has a full bucket again.
    assert_eq!(try_take(&mut buckets, 1, 1, start), Ok(()));
    assert!(try_take(&mut buckets, 99_999, 1, start).is_err());
}

#[test]
fn bucket_that_is_removed_in_use_is_counted() {
    use metrics::CounterFn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Default)]
    struct Forgotten(AtomicU64);

    impl CounterFn for Forgotten {
        fn increment(&self, value: u64) {
            self.0.fetch_add(value, Ordering::Relaxed);
        }

        fn absolute(&self, _: u64) {}
    }

    let forgotten = Arc::new(Forgotten::default());
    let mut buckets = Buckets::new(1, 0, SECOND, 2, Counter::from_arc(forgotten.clone()));
    let start = Instant::now();
    for name in 0..5 {
        assert_eq!(try_take(&mut buckets, name, 1, start), Ok(()));
    }
    assert_eq!(forgotten.0.load(Ordering::Relaxed), 3);
    // A bucket that is full again is no loss.
    for name in 5..7 {
        assert_eq!(try_take(&mut buckets, name, 1, start + 2 * SECOND), Ok(()));
    }
    assert_eq!(forgotten.0.load(Ordering::Relaxed), 3);
}

#[test]
fn table_without_rates_keeps_nothing() {
    let mut buckets = buckets(0, 0, 100);
    for name in 0..1000 {
        assert_eq!(try_take(&mut buckets, name, 1 << 30, Instant::now()), Ok(()));
    }
    assert!(buckets.used.is_empty() && !buckets.limits_anything());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a sender does, it gets no more than its burst and its rate, and the returned wait is enough.
    #[test]
    fn no_window_has_more_than_burst_and_rate(
        steps in vec((0..300_u64, 0..700_usize), 1..200),
        rate in 1..50_usize,
    ) {
        let mut buckets = buckets(rate, 1000, 10);
        let start = Instant::now();
        let (mut now, mut msgs, mut bytes) = (start, 0.0, 0.0);
        for (millis, size) in steps {
            now += Duration::from_millis(millis);
            match try_take(&mut buckets, 1, size, now) {
                Ok(()) => {
                    msgs += 1.0;
                    bytes += size as f64;
                }
                Err(shortage) => {
                    let later = now + shortage.wait + Duration::from_nanos(1);
                    prop_assert_eq!(buckets.check(Holder::numbered(1), size, later), Ok(()));
                }
            }
            let seconds = (now - start).as_secs_f64();
            prop_assert!(msgs <= rate as f64 * (1.0 + seconds) + 0.001, "{} messages in {} s", msgs, seconds);
            prop_assert!(bytes <= 1000.0 * (1.0 + seconds) + 0.001, "{} bytes in {} s", bytes, seconds);
        }
    }
}
