//! What the consumer's thread is doing with each partition that it owns, for those that report it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use machine::driver::State;
use msg_common::partition::Partition;

/// A partition of this process.
#[derive(Clone, Debug)]
pub struct Owned {
    /// When the group assigned it.
    pub assigned: Instant,
    /// What is being done with it.
    pub state: State,
}

/// Shared by the consumer's thread and those that report. Cheap to clone.
#[derive(Clone, Default)]
pub struct States(Arc<Mutex<HashMap<Partition, Owned>>>);

impl States {
    /// The group has assigned these, just now.
    pub fn assigned(&self, partitions: &[Partition]) {
        let assigned = Instant::now();
        let owned = |partition: &Partition| (*partition, Owned { assigned, state: State::Resolving });
        self.lock().extend(partitions.iter().map(owned));
    }

    /// These are all that are owned, and what is being done with each.
    pub fn are(&self, states: impl IntoIterator<Item = (Partition, State)>) {
        let mut owned = self.lock();
        let mut before = std::mem::take(&mut *owned);
        owned.extend(states.into_iter().map(|(partition, state)| {
            let assigned = before.remove(&partition).map_or_else(Instant::now, |before| before.assigned);
            (partition, Owned { assigned, state })
        }));
    }

    /// All of them.
    pub fn all(&self) -> HashMap<Partition, Owned> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Partition, Owned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
