//! The budgets of the tests.

use std::sync::Arc;

use crate::budget::Budget;
pub(super) use crate::budget::Permit;

/// A budget for the permits of each kind, which shows whether each one is released.
pub(super) struct Budgets {
    pub(super) results: Arc<Budget>,
    pub(super) results_waits: Arc<Budget>,
    pub(super) capacity: Arc<Budget>,
    pub(super) memory: Arc<Budget>,
    pub(super) rows: Arc<Budget>,
}

impl Budgets {
    pub(super) fn new(max_results: usize) -> Self {
        let [results_waits, capacity, memory, rows] = [(); 4].map(|()| Budget::of_items(usize::MAX));
        Budgets { results: Budget::of_items(max_results), results_waits, capacity, memory, rows }
    }

    /// Returns the number of listeners for capacity: each holds the budget.
    pub(super) fn capacity_waits(&self) -> usize {
        Arc::strong_count(&self.capacity) - 1
    }
}

pub(super) fn permit(budget: &Arc<Budget>, count: usize) -> Permit {
    budget.try_acquire(count).expect("the budget has no limit")
}

pub(super) fn used(budget: &Budget) -> usize {
    budget.used().items
}
