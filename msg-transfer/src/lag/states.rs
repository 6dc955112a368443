//! The state of each owned partition. The consumer's thread writes it, and the watchdog reports it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(crate) use machine::driver::State;
use msg_common::partition::Partition;

#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub assigned: Instant,
    pub state: State,
}

/// The states, shared by the consumer's thread and the watchdog. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct States(Arc<Mutex<HashMap<Partition, Owned>>>);

impl States {
    /// Adds partitions that the group has just assigned.
    pub(crate) fn assigned(&self, partitions: &[Partition]) {
        let assigned = Instant::now();
        let owned = |partition: &Partition| (*partition, Owned { assigned, state: State::Resolving });
        self.lock().extend(partitions.iter().map(owned));
    }

    /// Replaces the states. A partition that is left out is no longer owned.
    pub(crate) fn replace(&self, states: impl IntoIterator<Item = (Partition, State)>) {
        let mut owned = self.lock();
        let mut before = std::mem::take(&mut *owned);
        owned.extend(states.into_iter().map(|(partition, state)| {
            let assigned = before.remove(&partition).map_or_else(Instant::now, |before| before.assigned);
            (partition, Owned { assigned, state })
        }));
    }

    pub(crate) fn all(&self) -> HashMap<Partition, Owned> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Partition, Owned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
