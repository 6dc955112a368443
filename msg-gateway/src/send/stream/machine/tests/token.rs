//! The permits of the tests: counters that show whether each one is released.

use std::cell::Cell;
use std::rc::Rc;

use crate::send::stream::machine::{Handles, Share};

/// A permit of a counter, which has the sum of all its permits.
pub(super) struct Token {
    held: Rc<Cell<usize>>,
    count: usize,
}

pub(super) fn token(held: &Rc<Cell<usize>>, count: usize) -> Token {
    held.set(held.get() + count);
    Token { held: held.clone(), count }
}

impl Token {
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

impl Share for Token {
    fn split(&mut self, count: usize) -> Self {
        self.count = self.count.checked_sub(count).expect("a reply has more results than permits");
        Token { held: self.held.clone(), count }
    }

    fn merge(&mut self, mut other: Self) {
        self.count += std::mem::take(&mut other.count);
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.held.set(self.held.get() - self.count);
    }
}

pub(super) struct Tokens;

impl Handles for Tokens {
    type Results = Token;
    type ResultsWait = Token;
    type CapacityWait = Token;
    type Memory = Token;
    type Row = Token;
}
