use std::time::{Duration, SystemTime};

use msg_common::proto::{Msg, Placement};
use msg_common::table::Digest;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::*;
use crate::watch::message_key::MessageKey;

const LATER: Duration = Duration::from_secs(1);

struct World {
    queue: WaiterQueue,
    now: Instant,
    /// The number of waiters in all lookups.
    looked_up: usize,
}

impl World {
    fn new() -> World {
        World { queue: WaiterQueue::default(), now: Instant::now(), looked_up: 0 }
    }

    fn add(&mut self, recv_id: &str, offset: i64) -> u64 {
        let key = MessageKey {
            recv_id: recv_id.into(),
            msg_id: Uuid::nil(),
            send_time: SystemTime::UNIX_EPOCH,
            partition: 0,
            offset: Some(offset),
        };
        let placement = Placement { offset: Some(offset), ..Placement::default() };
        let awaited = Awaited { id: 0, key, placement, digest: Digest::of(&Msg::default()), may_be_dead: false };
        let waiter = Waiter { awaited, since: self.now, result: oneshot::channel().0 };
        self.queue.add(waiter, self.now + LATER).0
    }

    /// Looks up the waiters that are due now. Returns the offsets that were found.
    fn look_up(&mut self, is_stored: impl Fn(i64) -> bool) -> Vec<i64> {
        let due = self.queue.due(self.now, self.now + LATER);
        self.looked_up += due.len();
        let mut found = Vec::new();
        for awaited in due {
            let offset = awaited.key.offset.expect("it has one");
            if is_stored(offset) {
                self.queue.complete(awaited.id, self.now).expect("it waited");
                found.push(offset);
            }
        }
        found
    }

    /// Looks up until nothing is due now. Returns how many were found.
    fn look_up_until_idle(&mut self, is_stored: impl Fn(i64) -> bool) -> usize {
        let mut found = 0;
        while self.queue.next_lookup().is_some_and(|when| when <= self.now) {
            found += self.look_up(&is_stored).len();
        }
        found
    }
}

#[test]
fn hint_makes_its_inbox_due_and_no_other() {
    let mut world = World::new();
    world.add("bob", 1);
    world.add("carol", 2);
    assert!(world.look_up(|_| true).is_empty(), "no waiter is due yet");
    assert!(!world.queue.hinted("bob", Hinted::AllDescribed, world.now));
    assert!(world.look_up(|_| true).is_empty(), "the hint has described all");
    assert!(world.queue.hinted("bob", Hinted::Rows, world.now));
    assert!(!world.queue.hinted("dave", Hinted::Rows, world.now));
    assert_eq!(world.look_up(|_| true), [1]);
    world.now += LATER;
    assert_eq!(world.look_up(|_| true), [2], "it becomes due without a hint");
    assert_eq!(world.queue.next_lookup(), None);
}

#[test]
fn result_says_whether_a_hint_came_while_the_waiter_waited() {
    let mut world = World::new();
    let before = world.add("bob", 1);
    world.queue.hinted("bob", Hinted::Rows, world.now);
    world.now += LATER;
    let after = world.add("bob", 2);
    let hinted = |world: &mut World, id| world.queue.complete(id, world.now).expect("it waits").1;
    assert_eq!((hinted(&mut world, before), hinted(&mut world, after)), (true, false));
    assert!(world.queue.complete(before, world.now).is_none(), "it has its result");
}

#[test]
fn removed_waiter_is_not_looked_up() {
    let mut world = World::new();
    let (first, second) = (world.add("bob", 1), world.add("bob", 2));
    world.queue.remove(first);
    world.now += LATER;
    assert_eq!(world.look_up(|_| true), [2]);
    world.queue.remove(second);
    assert_eq!(world.queue.next_lookup(), None);
}

/// A hint for each batch, and many waiters: the number of lookups follows from the stored messages.
#[test]
fn lookups_of_a_hot_inbox_grow_with_the_stored_messages() {
    const WAITERS: i64 = 20_000;
    let mut world = World::new();
    (0..WAITERS).for_each(|offset| {
        world.add("hot", offset);
    });
    let mut found = 0;
    for stored in (0..=WAITERS).step_by(100) {
        world.now += LATER / 100;
        world.queue.hinted("hot", Hinted::Rows, world.now);
        found += world.look_up_until_idle(|offset| offset < stored);
    }
    assert_eq!(found, usize::try_from(WAITERS).expect("it is small"));
    assert!(world.looked_up < 10 * found, "{} were looked up to find {found}", world.looked_up);
}

/// The oldest waiters wait for records that Kafka lost; the waiters behind them get their results.
#[test]
fn waiters_behind_those_without_a_result_are_found() {
    let mut world = World::new();
    (0..2000).for_each(|offset| {
        world.add("bob", offset);
    });
    let mut found = 0;
    for _ in 0..20 {
        world.now += LATER;
        found += world.look_up_until_idle(|offset| offset >= 500);
    }
    assert_eq!(found, 1500);
}

/// Dead letters are queried if a hint may be about one, or if the waiter has waited for longer than a hint needs.
#[test]
fn dead_letters_are_queried_when_hinted_or_late() {
    let mut world = World::new();
    let queried = |world: &mut World| -> Vec<bool> {
        world.queue.due(world.now, world.now + LATER).iter().map(|awaited| awaited.may_be_dead).collect()
    };
    world.add("bob", 1);
    world.queue.hinted("bob", Hinted::Rows, world.now);
    assert_eq!(queried(&mut world), [false]);
    world.queue.hinted("bob", Hinted::WithoutRow, world.now);
    assert_eq!(queried(&mut world), [true]);
    // A waiter that came after that hint.
    world.now += Duration::from_millis(1);
    world.add("bob", 2);
    world.queue.hinted("bob", Hinted::Rows, world.now);
    assert_eq!(queried(&mut world), [true, false]);
    world.now += FIRST_LOOKUP_DELAY;
    world.queue.hinted("bob", Hinted::Rows, world.now);
    assert_eq!(queried(&mut world), [true, true]);
}
