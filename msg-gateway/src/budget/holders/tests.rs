//! The limits of holders: fixed ones, and shares of callers that come and go.

use std::sync::Arc;

use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::budget::{Budgets, Permit};

const ALICE: Holder = Holder(1);
const BOB: Holder = Holder(2);

/// A budget of 100 messages of which a caller may have a tenth while others send.
fn shared() -> Arc<Budget> {
    Budgets::of(&["--max-inflight-msgs", "100", "--caller-share", "10"]).in_flight.clone()
}

/// Acquires one item after the other until the limit.
fn fill(budget: &Arc<Budget>, holder: Holder) -> Vec<Permit> {
    std::iter::from_fn(|| budget.try_acquire_for(holder, 1).ok()).collect()
}

#[test]
fn caller_alone_leaves_capacity_for_the_first_call_of_another() {
    let budget = shared();
    let mut alices = fill(&budget, ALICE);
    assert_eq!(alices.len(), 90);
    let bobs = fill(&budget, BOB);
    // Alice leaves 10, and a tenth of that is 1.
    assert_eq!(bobs.len(), 1);
    // Alice has more than her share, and gets no more until she has less.
    alices.truncate(10);
    assert_eq!(budget.try_acquire_for(ALICE, 1).expect_err("it is above the share").quota(), Some(Quota::CallerShare));
    alices.truncate(8);
    alices.push(budget.try_acquire_for(ALICE, 1).expect("it is below the share"));
    assert_eq!(fill(&budget, BOB).len(), 8);
}

#[test]
fn stream_at_its_share_is_woken_for_a_part_of_it() {
    let budget = Budgets::of(&["--max-inflight-msgs", "1000", "--caller-share", "10"]).in_flight.clone();
    let _bobs = budget.try_acquire_for(BOB, 10).expect("it fits");
    let mut alices = fill(&budget, ALICE);
    assert_eq!(alices.len(), 99);
    let capacity = budget.wait_for_capacity();
    // 74 of 99 are 75 %.
    alices.truncate(75);
    assert_eq!(capacity.released().now_or_never(), None, "for each record");
    alices.truncate(74);
    assert_eq!(capacity.released().now_or_never(), Some(()));
    // The last release wakes in any case.
    alices.clear();
    assert_eq!(capacity.released().now_or_never(), Some(()));
}

#[test]
fn other_caller_counts_for_a_while_after_its_last_call() {
    let start = Instant::now();
    let mut held = Held::default();
    held.note(ALICE, start);
    held.note(ALICE, start);
    assert!(!held.has_others(ALICE, start) && held.has_others(BOB, start));
    held.note(BOB, start);
    held.note(ALICE, start + RECENT / 2);
    assert!(held.has_others(ALICE, start + RECENT / 2));
    assert!(!held.has_others(ALICE, start + RECENT));
    held.note(BOB, start + RECENT);
    held.note(BOB, start + RECENT);
    assert!(held.has_others(ALICE, start + RECENT) && held.has_others(BOB, start + RECENT));
    // What a caller holds counts without a time.
    held.add(BOB, 1.into());
    assert!(held.has_others(ALICE, start + 10 * RECENT));
    held.remove(BOB, 1.into());
    assert!(!held.has_others(ALICE, start + 10 * RECENT));
}

#[test]
fn many_greedy_callers_leave_capacity() {
    let budget = Budgets::of(&["--max-inflight-msgs", "20000", "--caller-share", "5"]).in_flight.clone();
    let mut held: Vec<Vec<Permit>> = (0..100).map(|_| Vec::new()).collect();
    // All of them try again and again, for as long as any of them gets more.
    loop {
        let before = budget.used();
        for (number, one) in held.iter_mut().enumerate() {
            one.extend(budget.try_acquire_for(Holder(number as u64), 1).ok());
        }
        if budget.used() == before {
            break;
        }
    }
    let free = 20_000 - budget.used().items;
    assert!(free > 2500, "{free} are free");
    assert!(held.iter().all(|one| one.len() > 100), "a caller starves");
    assert!(budget.try_acquire_for(Holder(1000), 100).is_ok(), "a new caller is rejected");
}

#[test]
fn caller_of_nothing_may_send_a_large_batch() {
    let budget = shared();
    let _bobs = budget.try_acquire_for(BOB, 1).expect("there is capacity");
    let batch = budget.try_acquire_for(ALICE, 60).expect("she holds nothing");
    assert!(budget.try_acquire_for(ALICE, 1).is_err());
    drop(batch);
    assert!(budget.try_acquire_for(ALICE, 1).is_ok());
}

#[test]
fn share_also_limits_bytes() {
    let budget = Budgets::of(&["--max-inflight-bytes", "100MiB", "--caller-share", "10"]).in_flight.clone();
    let megabytes = |count: usize| Amount { items: 1, size: count << 20 };
    let _bobs = budget.try_acquire_for(BOB, megabytes(1)).expect("there is capacity");
    let _alices = budget.try_acquire_for(ALICE, megabytes(5)).expect("there is capacity");
    let reached = budget.try_acquire_for(ALICE, megabytes(5)).expect_err("a tenth of 99 is less than 10");
    assert!(reached.is_of("CALLER_SHARE") && reached.to_string().contains("bytes"), "{reached}");
    assert!(budget.try_acquire_for(ALICE, megabytes(4)).is_ok());
}

#[test]
fn without_a_share_one_caller_may_have_everything() {
    let budget = Budgets::of(&["--max-inflight-msgs", "100"]).in_flight.clone();
    let _bobs = budget.try_acquire_for(BOB, 1).expect("there is capacity");
    let alices = fill(&budget, ALICE);
    assert_eq!(alices.len(), 99);
    assert_eq!(budget.try_acquire_for(ALICE, 1).expect_err("it is full").quota(), None);
    assert!(budget.lock().held.is_empty());
}

#[test]
fn each_holder_has_its_own_maximum() {
    let budgets = Budgets::of(&["--quota-caller-streams", "2"]);
    let streams = &budgets.send_streams_by_caller;
    let (alices, bobs) = (fill(streams, ALICE), fill(streams, BOB));
    assert_eq!((alices.len(), bobs.len()), (2, 2));
    let reached = streams.try_acquire_for(ALICE, 1).expect_err("she has two");
    let text = "2 of 2 send streams of this caller are open; retry after the delay, or raise QUOTA_CALLER_STREAMS";
    assert_eq!((reached.to_string().as_str(), reached.quota()), (text, Some(Quota::CallerStreams)));
    drop(alices);
    assert_eq!(fill(streams, ALICE).len(), 2);
    drop(bobs);
    assert!(streams.lock().held.is_empty(), "a caller that holds nothing is remembered");
    let watches = (0..1000).map_while(|_| budgets.watches_by_caller.try_acquire_for(ALICE, 1).ok());
    assert_eq!(watches.collect::<Vec<_>>().len(), 1000, "0 is no limit");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever callers acquire, split, merge and release: what the budget counts for each is what its permits hold.
    #[test]
    fn holders_hold_what_their_permits_hold(steps in vec((0..4_u64, 0..6_usize, 0..5_u8), 1..80)) {
        let budget = shared();
        let mut permits: Vec<(Holder, Permit)> = Vec::new();
        for (holder, amount, step) in steps {
            let holder = Holder(holder);
            match (step, permits.iter().position(|(of, _)| *of == holder)) {
                (0 | 1, _) => permits.extend(budget.try_acquire_for(holder, amount).ok().map(|permit| (holder, permit))),
                (2, Some(at)) => drop(permits.remove(at)),
                (3, Some(at)) => {
                    let part = permits[at].1.amount.items.min(amount);
                    let part = permits[at].1.split(part);
                    permits.push((holder, part));
                }
                (4, Some(at)) => {
                    let (_, other) = permits.remove(at);
                    if let Some((_, permit)) = permits.iter_mut().find(|(of, _)| *of == holder) {
                        permit.merge(other);
                    }
                }
                _ => {}
            }
            for holder in (0..4).map(Holder) {
                let sum = permits.iter().filter(|(of, _)| *of == holder).map(|(_, permit)| permit.amount.items).sum();
                prop_assert_eq!(budget.lock().held.of(holder), Amount { items: sum, size: 0 });
            }
        }
        drop(permits);
        prop_assert!(budget.lock().held.is_empty());
        prop_assert_eq!(budget.used(), Amount::default());
    }
}
