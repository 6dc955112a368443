//! The permits of the tests: each is known to the budget that it came from.

use std::cell::Cell;
use std::rc::Rc;

use crate::watch::watcher::machine::{Handles, Shrink};

/// A maximum, and the sum of all permits.
#[derive(Clone)]
pub(super) struct TestBudget {
    max: usize,
    used: Rc<Cell<usize>>,
}

impl TestBudget {
    pub(super) fn new(max: usize) -> Self {
        TestBudget { max, used: Rc::default() }
    }

    pub(super) fn used(&self) -> usize {
        self.used.get()
    }

    /// Returns a permit, which one watcher holds. An amount above the maximum fits if no other permit is held.
    pub(super) fn try_acquire(&self, count: usize, held: &Rc<Cell<usize>>) -> Option<Token> {
        if self.used.get() > 0 && self.used.get() + count > self.max {
            return None;
        }
        self.used.set(self.used.get() + count);
        held.set(held.get() + count);
        Some(Token { counters: [self.used.clone(), held.clone()], count })
    }
}

pub(super) struct Token {
    /// Of the budget, and of the watcher.
    counters: [Rc<Cell<usize>>; 2],
    count: usize,
}

impl Token {
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

impl Shrink for Token {
    fn shrink(&mut self, bytes: usize) {
        let released = self.count.saturating_sub(bytes);
        self.counters.iter().for_each(|counter| counter.set(counter.get() - released));
        self.count -= released;
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

pub(super) struct Tokens;

impl Handles for Tokens {
    type Slot = ();
    type Memory = Token;
    type CatchUp = Token;
}
