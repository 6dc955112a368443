use std::collections::BTreeMap;

use msg_common::proto::{HintedInbox, Msg};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

fn row(recv_id: &str, seq: i64) -> StoredMsg {
    StoredMsg { msg: Some(Msg { recv_id: recv_id.into(), ..Msg::default() }), seq, ..StoredMsg::default() }
}

fn hint(recv_id: &str, seq: i64) -> StoredHint {
    StoredHint { inboxes: vec![HintedInbox { recv_id: recv_id.into(), seq }] }
}

fn seqs(slice: &FeedSlice) -> Vec<i64> {
    slice.rows.iter().map(|row| row.seq).collect()
}

#[test]
fn hinted_rows_are_read_once_for_all_watchers() {
    let feed = Feed::new(1 << 20);
    let bob: Arc<str> = "bob".into();
    let (one, other) = (Arc::new(PendingInboxes::new(1, 1)), Arc::new(PendingInboxes::new(2, 1)));
    feed.subscribe(&one, std::slice::from_ref(&bob));
    feed.subscribe(&other, std::slice::from_ref(&bob));
    // The feed does not read before the tip is known: the read would return the whole inbox.
    feed.hinted(&hint("bob", 7));
    assert_eq!(feed.next_unread(9), []);
    assert_eq!(feed.resolve_tip(&bob, 5), 5);
    feed.hinted(&hint("bob", 7));
    feed.hinted(&hint("carol", 7));
    let read = feed.next_unread(9);
    assert_eq!(read, [(bob.clone(), 5)]);
    feed.publish(&read, vec![(0, row("bob", 6)), (0, row("bob", 7))], 32, false);
    assert_eq!((one.next(), other.next()), (Some(0), Some(0)));
    assert_eq!(feed.next_unread(9), []);
    assert_eq!(seqs(&feed.slice("bob", 5, 9, 9999)), [6, 7]);
    assert_eq!(seqs(&feed.slice("bob", 6, 9, 9999)), [7]);
    assert_eq!(feed.slice("bob", 7, 9, 9999), FeedSlice { rows: Vec::new(), tip: 7 });
    // Rows from before the first watcher have to be read from the table.
    assert_eq!(feed.slice("bob", 4, 9, 9999), FeedSlice { rows: Vec::new(), tip: 7 });
    feed.unsubscribe(&one, std::slice::from_ref(&bob));
    feed.unsubscribe(&other, &[bob]);
    assert_eq!(feed.len(), 0);
}

#[test]
fn failed_read_is_retried() {
    let feed = Feed::new(1 << 20);
    let bob: Arc<str> = "bob".into();
    feed.subscribe(&Arc::new(PendingInboxes::new(1, 1)), std::slice::from_ref(&bob));
    feed.resolve_tip(&bob, 0);
    feed.hinted(&hint("bob", 1));
    let read = feed.next_unread(9);
    feed.put_back(&read);
    assert_eq!(feed.next_unread(9), read);
}

/// Does what `watcher` does, without waiting: reads from the feed, or else a page of the table.
fn step(
    feed: &Feed,
    table: &BTreeMap<String, i64>,
    pending: &PendingInboxes,
    inboxes: &[Arc<str>],
    cursors: &mut [i64],
) {
    let Some(index) = pending.next() else { return };
    let recv_id = &inboxes[index];
    let slice = feed.slice(recv_id, cursors[index], 3, 1 << 20);
    let mut got = seqs(&slice);
    if got.is_empty() && slice.tip > cursors[index] {
        got = (cursors[index] + 1..=table[&**recv_id]).take(3).collect();
    }
    for seq in got {
        assert_eq!(seq, cursors[index] + 1, "{recv_id}: a gap or a duplicate");
        cursors[index] = seq;
    }
    if cursors[index] < slice.tip {
        pending.mark(index);
    }
}

/// A watcher that is subscribing: it is in the feed, and may have read the table.
struct Entering {
    pending: Arc<PendingInboxes>,
    found: Option<Vec<i64>>,
}

/// A statement of the feed reader that is in flight: its inboxes, and perhaps its result.
struct Reading {
    next: Vec<(Arc<str>, i64)>,
    found: Option<Vec<(usize, i64)>>,
}

struct World {
    random: StdRng,
    feed: Feed,
    inboxes: Vec<Arc<str>>,
    table: BTreeMap<String, i64>,
    entering: Option<Entering>,
    reading: Option<Reading>,
    watchers: Vec<(Arc<PendingInboxes>, Vec<i64>)>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = StdRng::seed_from_u64(seed);
        let feed = Feed::new(random.random_range(0..6) * ROW_OVERHEAD);
        let inboxes: Vec<Arc<str>> = ["a", "b", "c"].map(Arc::from).into();
        let table = inboxes.iter().map(|inbox| (inbox.to_string(), random.random_range(0..9))).collect();
        World { random, feed, inboxes, table, entering: None, reading: None, watchers: Vec::new() }
    }

    fn turn(&mut self, number: u64) {
        match self.random.random_range(0..9) {
            0 | 1 => self.enter(number),
            2 | 3 => {
                // A message is stored; its hint may be lost.
                let inbox = self.inboxes[self.random.random_range(0..3)].clone();
                let seq = self.table.get_mut(&*inbox).expect("it is one of them");
                *seq += self.random.random_range(1..4);
                if self.random.random_range(0..4) > 0 {
                    self.feed.hinted(&hint(&inbox, *seq));
                }
            }
            4 | 5 => self.read(),
            6 if !self.watchers.is_empty() => {
                let (pending, _) = self.watchers.remove(0);
                self.feed.unsubscribe(&pending, &self.inboxes);
            }
            _ => self.step_all(),
        }
    }

    /// Does the next step of subscribing a watcher.
    fn enter(&mut self, number: u64) {
        match self.entering.take() {
            None if self.watchers.len() < 3 => {
                let pending = Arc::new(PendingInboxes::new(number, self.inboxes.len()));
                self.feed.subscribe(&pending, &self.inboxes);
                self.entering = Some(Entering { pending, found: None });
            }
            None => {}
            Some(Entering { pending, found: None }) => {
                let found = Some(self.table.values().copied().collect());
                self.entering = Some(Entering { pending, found });
            }
            Some(Entering { pending, found: Some(found) }) => {
                let mut cursors = Vec::new();
                for (index, inbox) in self.inboxes.iter().enumerate() {
                    cursors.push(self.random.random_range(0..=found[index]));
                    if cursors[index] < self.feed.resolve_tip(inbox, found[index]) {
                        pending.mark(index);
                    }
                }
                self.watchers.push((pending, cursors));
            }
        }
    }

    /// Does the next step of the feed reader: it reads at most two rows of an inbox and three in all, or fails.
    fn read(&mut self) {
        match self.reading.take() {
            None => self.reading = Some(Reading { next: self.feed.next_unread(2), found: None }),
            Some(Reading { next, found: None }) if self.random.random_range(0..5) == 0 => self.feed.put_back(&next),
            Some(Reading { next, found: None }) => {
                let of = |(index, (recv_id, tip)): (usize, &(Arc<str>, i64))| {
                    let last = self.table[&**recv_id];
                    (tip + 1..=last).take(2).map(move |seq| (index, seq)).collect::<Vec<_>>()
                };
                let found = Some(next.iter().enumerate().flat_map(of).collect());
                self.reading = Some(Reading { next, found });
            }
            Some(Reading { next, found: Some(found) }) => {
                let rows = found.iter().take(3).map(|(index, seq)| (*index, row(&next[*index].0, *seq))).collect();
                self.feed.publish(&next, rows, 2, found.len() > 3);
            }
        }
    }

    fn step_all(&mut self) {
        for (pending, cursors) in &mut self.watchers {
            step(&self.feed, &self.table, pending, &self.inboxes, cursors);
        }
    }
}

#[test]
fn each_watcher_gets_each_message_once_and_in_order() {
    for seed in 0..5000 {
        let mut world = World::new(seed);
        for number in 0..300 {
            world.turn(number);
        }
        // At the end, checks find the rows that have no hint.
        for _ in 0..300 {
            for (recv_id, seq) in world.feed.next_checks(3) {
                if world.table[&*recv_id] >= seq {
                    world.feed.found_stored(&recv_id, seq);
                }
            }
            world.read();
            world.step_all();
        }
        for (_, cursors) in &world.watchers {
            assert_eq!(*cursors, world.table.values().copied().collect::<Vec<_>>(), "seed {seed}");
        }
    }
}
