//! Giving partitions back: asked for, lost, past a deadline, done.

use super::Machine;
use super::event::Action;
use super::owned::{Owned, Phase};
use crate::Partition;

impl Machine {
    pub(super) fn leave(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(owned) = self.owned.get_mut(partition) {
                owned.leaving = true;
            }
        }
        self.committer.hurry();
    }

    pub(super) fn lose(&mut self, partitions: &[Partition], actions: &mut Vec<Action>) {
        let mut lost = Vec::new();
        for partition in partitions {
            if let Some(owned) = self.owned.remove(partition) {
                actions.push(Action::Fence { epoch: owned.epoch });
                self.forget(*partition, &owned, actions);
            }
            lost.push(*partition);
        }
        actions.push(Action::Release(lost));
    }

    pub(super) fn abandon(&mut self, actions: &mut Vec<Action>) {
        for owned in self.owned.values_mut().filter(|owned| owned.leaving && !owned.drained()) {
            owned.abandoned = true;
            actions.push(Action::Fence { epoch: owned.epoch });
        }
        self.committer.hurry();
    }

    /// Lets go of every partition that is being given back.
    pub(super) fn release(&mut self, actions: &mut Vec<Action>) {
        let leaving: Vec<_> = self.owned.iter().filter(|(_, owned)| owned.leaving).map(|(p, _)| *p).collect();
        for partition in &leaving {
            if let Some(owned) = self.owned.remove(partition) {
                actions.push(Action::Fence { epoch: owned.epoch });
                self.forget(*partition, &owned, actions);
            }
        }
        if !leaving.is_empty() || self.stopping {
            actions.push(Action::Release(leaving));
        }
    }

    pub(super) fn forget(&self, partition: Partition, owned: &Owned, actions: &mut Vec<Action>) {
        if matches!(owned.phase, Phase::Halted { .. }) {
            actions.push(Action::Unhalted { partition });
        }
        if owned.failing.is_some() {
            actions.push(Action::FetchRecovered { partition });
        }
    }
}
