//! The budgets of the tests.

use std::cell::RefCell;
use std::sync::Arc;

use crate::budget::{Budget, Permit};

/// A maximum that all watchers share. Each has a budget of its own, which shows what the watcher holds.
pub(super) struct SharedBudget {
    max: usize,
    own: RefCell<Vec<Arc<Budget>>>,
}

impl SharedBudget {
    pub(super) fn new(max: usize) -> Self {
        SharedBudget { max, own: RefCell::default() }
    }

    pub(super) fn add_watcher(&self) -> Arc<Budget> {
        let own = Budget::of_items(usize::MAX);
        self.own.borrow_mut().push(own.clone());
        own
    }

    pub(super) fn used(&self) -> usize {
        self.own.borrow().iter().map(|own| used(own)).sum()
    }

    /// Returns a permit of a watcher. An amount above the maximum fits if no other permit is held.
    pub(super) fn try_acquire(&self, count: usize, own: &Arc<Budget>) -> Option<Permit> {
        let used = self.used();
        let fits = used == 0 || used + count <= self.max;
        fits.then(|| own.try_acquire(count).expect("the watcher's own budget has no limit"))
    }
}

pub(super) fn used(budget: &Budget) -> usize {
    budget.used().items
}
