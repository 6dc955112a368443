//! How the machine releases partitions: revoked ones after a drain, lost ones immediately, and all of them after a
//! deadline.

use super::Machine;
use super::event::Action;
use super::owned::{Owned, Phase};
use crate::Partition;

impl Machine {
    pub(super) fn revoke(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(owned) = self.owned.get_mut(partition) {
                owned.revoking = true;
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
        for owned in self.owned.values_mut().filter(|owned| owned.revoking && !owned.drained()) {
            owned.abandoned = true;
            actions.push(Action::Fence { epoch: owned.epoch });
        }
        self.committer.hurry();
    }

    pub(super) fn release(&mut self, actions: &mut Vec<Action>) {
        let revoking: Vec<_> = self.owned.iter().filter(|(_, owned)| owned.revoking).map(|(p, _)| *p).collect();
        for partition in &revoking {
            if let Some(owned) = self.owned.remove(partition) {
                actions.push(Action::Fence { epoch: owned.epoch });
                self.forget(*partition, &owned, actions);
            }
        }
        if !revoking.is_empty() || self.stopping {
            actions.push(Action::Release(revoking));
        }
    }

    pub(super) fn forget(&self, partition: Partition, owned: &Owned, actions: &mut Vec<Action>) {
        if matches!(owned.phase, Phase::Halted { .. }) {
            actions.push(Action::Unhalted { partition });
        }
        if let Some(failing) = &owned.failing {
            actions.push(Action::FetchRecovered { partition, attempts: failing.attempts });
        }
    }
}
