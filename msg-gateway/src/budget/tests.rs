//! A budget against a model of it: random steps, and threads that compete for it. Each test of the steps ends with
//! nothing in use.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// The maxima, small enough that most steps are near them.
const MAX: Amount = Amount { items: 6, size: 40 };

#[derive(Clone, Copy, Debug)]
enum Step {
    TryAcquire(Amount),
    Acquire(Amount),
    Poll(usize),
    /// Drops an acquire that waits, perhaps after its permit was granted.
    Cancel(usize),
    Release(usize),
    /// Splits a permit; the index, and the parts of each hundred that are split off.
    Split(usize, usize),
    Merge(usize, usize),
    Resize(usize, usize),
    Shrink(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let amount = (0..9_usize, 0..50_usize).prop_map(|(items, size)| Amount { items, size });
    let index = 0..8_usize;
    let step = prop_oneof![
        3 => amount.clone().prop_map(Step::TryAcquire),
        4 => amount.prop_map(Step::Acquire),
        3 => index.clone().prop_map(Step::Poll),
        2 => index.clone().prop_map(Step::Cancel),
        4 => index.clone().prop_map(Step::Release),
        1 => (index.clone(), 0..=100_usize).prop_map(|(index, part)| Step::Split(index, part)),
        1 => (index.clone(), index.clone()).prop_map(|(to, from)| Step::Merge(to, from)),
        1 => (index.clone(), 0..9_usize).prop_map(|(index, items)| Step::Resize(index, items)),
        1 => (index, 0..9_usize).prop_map(|(index, items)| Step::Shrink(index, items)),
    ];
    vec(step, 1..60)
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Waiting {
    future: Pin<Box<dyn Future<Output = Permit>>>,
    amount: Amount,
    woken: Arc<Woken>,
    /// Whether the model has granted the permit.
    granted: bool,
}

impl Waiting {
    fn poll(&mut self) -> Poll<Permit> {
        self.future.as_mut().poll(&mut Context::from_waker(&Waker::from(self.woken.clone())))
    }
}

/// The budget, its permits, and what the model says that they are.
struct World {
    budget: Arc<Budget>,
    admits_larger_alone: bool,
    used: Amount,
    held: Vec<(Permit, Amount)>,
    waiting: Vec<Waiting>,
    /// The amounts of the queue in order: of those in `waiting` that are not granted.
    queue: VecDeque<Amount>,
}

impl World {
    fn new(admits_larger_alone: bool) -> Self {
        let limit = |max, what| match admits_larger_alone {
            true => Limit::new(max, what).admitting_larger_alone(),
            false => Limit::new(max, what),
        };
        let budget = Budget::new(limit(MAX.items, "items")).with_size(limit(MAX.size, "bytes")).into();
        let used = Amount::default();
        World { budget, admits_larger_alone, used, held: vec![], waiting: vec![], queue: VecDeque::new() }
    }

    fn fits(&self, amount: Amount) -> bool {
        [(self.used.items, amount.items, MAX.items), (self.used.size, amount.size, MAX.size)]
            .into_iter()
            .all(|(used, more, max)| more == 0 || used + more <= max || (self.admits_larger_alone && used == 0))
    }

    fn fits_now(&self, amount: Amount) -> bool {
        self.fits(amount) && (self.queue.is_empty() || amount == Amount::default())
    }

    /// Records that this amount was released, and which waiting ones get it.
    fn released(&mut self, amount: Amount) {
        self.used -= amount;
        self.grant();
    }

    fn grant(&mut self) {
        while let Some(first) = self.queue.front().copied().filter(|first| self.fits(*first)) {
            self.queue.pop_front();
            self.used += first;
            let granted = self.waiting.iter_mut().find(|waiting| !waiting.granted).expect("the queue has it");
            assert_eq!(granted.amount, first);
            granted.granted = true;
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::TryAcquire(amount) => {
                let acquired = self.budget.try_acquire(amount);
                assert_eq!(acquired.is_ok(), self.fits_now(amount), "{amount:?} at {:?}", self.used);
                self.hold(acquired.ok(), amount);
            }
            Step::Acquire(amount) => {
                let (budget, woken) = (self.budget.clone(), Arc::default());
                let future = Box::pin(async move { budget.acquire(amount).await });
                let mut waiting = Waiting { future, amount, woken, granted: false };
                match waiting.poll() {
                    Poll::Ready(permit) => {
                        assert!(self.fits_now(amount), "{amount:?} overtook, or is above the maximum");
                        self.hold(Some(permit), amount);
                    }
                    Poll::Pending => {
                        assert!(!self.fits_now(amount), "{amount:?} waits without need");
                        self.queue.push_back(amount);
                        self.waiting.push(waiting);
                    }
                }
            }
            Step::Poll(index) if index < self.waiting.len() => {
                let mut waiting = self.waiting.remove(index);
                assert_eq!(waiting.woken.0.load(Ordering::Relaxed), waiting.granted);
                match waiting.poll() {
                    Poll::Ready(permit) => {
                        assert!(waiting.granted, "it was not its turn");
                        self.held.push((permit, waiting.amount));
                    }
                    Poll::Pending => {
                        assert!(!waiting.granted, "it is not granted");
                        self.waiting.insert(index, waiting);
                    }
                }
            }
            Step::Cancel(index) if index < self.waiting.len() => {
                let Waiting { amount, granted, .. } = self.waiting.remove(index);
                if granted {
                    self.released(amount);
                } else {
                    let ahead = self.waiting[..index].iter().filter(|waiting| !waiting.granted).count();
                    self.queue.remove(ahead);
                    self.grant();
                }
            }
            Step::Release(index) if index < self.held.len() => {
                let (permit, amount) = self.held.remove(index);
                drop(permit);
                self.released(amount);
            }
            Step::Split(index, part) if index < self.held.len() => {
                let (permit, amount) = &mut self.held[index];
                let off = Amount { items: amount.items * part / 100, size: amount.size * part / 100 };
                let split = permit.split(off);
                *amount -= off;
                self.held.push((split, off));
            }
            Step::Merge(to, from) if to != from && to.max(from) < self.held.len() => {
                let (permit, amount) = self.held.remove(from);
                let (into, sum) = &mut self.held[if from < to { to - 1 } else { to }];
                into.merge(permit);
                *sum += amount;
            }
            Step::Resize(index, items) if index < self.held.len() => {
                let amount = self.held[index].1;
                let (more, less) = (items.saturating_sub(amount.items), amount.items.saturating_sub(items));
                let fits = self.fits_now(more.into());
                assert_eq!(self.held[index].0.try_resize(items).is_ok(), fits);
                if fits {
                    self.used.items += more;
                    self.held[index].1.items = items;
                    self.released(less.into());
                }
            }
            Step::Shrink(index, items) if index < self.held.len() => {
                let less = self.held[index].1.items.saturating_sub(items);
                self.held[index].0.shrink(items);
                self.held[index].1.items -= less;
                self.released(less.into());
            }
            _ => {}
        }
        assert_eq!(self.budget.used(), self.used);
        assert!(self.admits_larger_alone || (self.used.items <= MAX.items && self.used.size <= MAX.size));
    }

    fn hold(&mut self, permit: Option<Permit>, amount: Amount) {
        if let Some(permit) = permit {
            self.used += amount;
            self.held.push((permit, amount));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn budget_does_what_its_model_does(steps in steps(), admits_larger_alone in any::<bool>()) {
        let mut world = World::new(admits_larger_alone);
        steps.into_iter().for_each(|step| world.step(step));
        let World { budget, held, waiting, .. } = world;
        drop((held, waiting));
        assert_eq!(budget.used(), Amount::default());
        assert!(budget.lock().queue.is_empty(), "a cancelled acquire stays in the queue");
    }
}

/// Lets two threads continue in the same moment. It spins, because a thread that must be woken is too late for a race.
#[derive(Default)]
struct SpinBarrier(AtomicUsize);

impl SpinBarrier {
    /// `number` counts the calls of each thread, from 1.
    fn wait(&self, number: usize) {
        self.0.fetch_add(1, Ordering::SeqCst);
        while self.0.load(Ordering::SeqCst) < 2 * number {
            std::hint::spin_loop();
        }
    }
}

/// Two threads acquire in the same moment, and then one cancels in the moment in which the other one releases.
#[test]
fn concurrent_operations_never_exceed_the_maximum() {
    const ROUNDS: usize = 20_000;
    let until = Instant::now() + Duration::from_secs(5);
    let budget = Arc::new(Budget::new(Limit::new(2, "items")).with_size(Limit::new(7, "bytes")));
    let (barrier, held, rounds) = (SpinBarrier::default(), AtomicUsize::new(0), AtomicUsize::new(ROUNDS));
    let compete = |thread: usize| {
        let mut number = 0;
        let mut wait = || {
            number += 1;
            barrier.wait(number);
        };
        let mut round = 0;
        let (mut most, mut left) = (0, Amount::default());
        while round < rounds.load(Ordering::SeqCst) {
            round += 1;
            let amount = Amount { items: 1, size: 4 + (round + thread) % 3 };
            wait();
            let permit = budget.try_acquire(amount).ok();
            held.fetch_add(permit.iter().count(), Ordering::SeqCst);
            wait();
            most = most.max(held.load(Ordering::SeqCst));
            wait();
            held.store(0, Ordering::SeqCst);
            match permit {
                Some(permit) => drop(permit),
                None => drop(budget.acquire(amount).now_or_never()),
            }
            if thread == 0 && Instant::now() > until {
                rounds.store(round, Ordering::SeqCst);
            }
            wait();
            left = if left == Amount::default() { budget.used() } else { left };
        }
        (most, left)
    };
    let results = std::thread::scope(|scope| {
        let threads = [0, 1].map(|thread| scope.spawn(move || compete(thread)));
        threads.map(|thread| thread.join().expect("it does not panic"))
    });
    for (most, left) in results {
        assert_eq!(most, 1, "only one permit fits at a time");
        assert_eq!(left, Amount::default(), "a permit is lost or released twice");
    }
}

#[test]
fn error_names_the_limit_that_is_reached() {
    let budget = Budgets::of(&["--max-inflight-msgs", "3", "--max-inflight-bytes", "4MiB"]).in_flight.clone();
    let _one = budget.try_acquire(Amount { items: 1, size: 3 << 20 }).expect("there is capacity");
    let msgs = budget.try_acquire(Amount { items: 3, size: 1 }).expect_err("it is full");
    let bytes = budget.try_acquire(Amount { items: 1, size: 2 << 20 }).expect_err("it is full");
    assert!(msgs.is_of("MAX_INFLIGHT_MSGS") && bytes.is_of("MAX_INFLIGHT_BYTES"), "{msgs:?}, {bytes:?}");
    assert_eq!(budget.used(), Amount { items: 1, size: 3 << 20 }, "a rejected call holds nothing");
}

#[tokio::test]
async fn acquire_by_fails_at_its_time_or_at_a_full_queue() {
    let budget = Arc::new(Budget::new(Limit::new(1, "items")).with_max_queued(1));
    let soon = || Instant::now() + Duration::from_millis(20);
    let permit = budget.acquire_by(1, Instant::now()).await.expect("there is capacity");
    let later = Instant::now() + Duration::from_secs(60);
    let mut queued = Box::pin(budget.acquire_by(1, later));
    assert!(queued.as_mut().now_or_never().is_none());
    let above = budget.acquire_by(1, later).now_or_never().expect("it does not wait");
    assert!(above.is_err(), "the queue has no limit");
    drop(queued);
    assert!(budget.acquire_by(1, soon()).await.is_err());
    drop(permit);
    assert!(budget.acquire_by(1, soon()).await.is_ok());
}

#[tokio::test]
async fn listener_is_notified_of_capacity_and_notifies_the_next() {
    let budget = Budget::of_items(1);
    let permit = budget.try_acquire(1).expect("there is capacity");
    let (first, second) = (budget.wait_for_capacity(), budget.wait_for_capacity());
    drop(permit);
    first.released().await;
    let permit = budget.try_acquire(1).expect("a listener is not in the queue");
    drop(first);
    second.released().await;
    assert!(budget.try_acquire(1).is_err());
    drop(permit);
    second.released().await;
}
