//! How a partition is halted, by a record or by the dead-letter limit, and how an operator resumes it.

use std::collections::BTreeMap;

use super::Machine;
use super::event::{Action, LaneNumber, RecordRef};
use super::ledger::Ledger;
use super::owned::{Owned, Phase};
use crate::{Epoch, Partition, RecordOffset};

impl Machine {
    /// Halts each partition that would exceed the dead-letter limit, which fences its records, and approves the others.
    pub(super) fn approve_dead_letters(&mut self, lane: LaneNumber, dead: &[RecordRef], actions: &mut Vec<Action>) {
        let mut requested: BTreeMap<(Partition, Epoch), Vec<RecordOffset>> = BTreeMap::new();
        for record in dead {
            requested.entry((record.partition, record.epoch)).or_default().push(record.offset);
        }
        let limit = self.settings.dead_letters;
        for ((partition, epoch), offsets) in requested {
            let Some(owned) = self.current(partition, epoch) else { continue };
            let Some(highest) = owned.ledger().and_then(Ledger::highest) else { continue };
            if let Err(reason) = owned.breaker.admit(&offsets, highest, limit) {
                self.halt(partition, epoch, reason, actions);
            }
        }
        actions.push(Action::DeadLettersApproved { lane });
    }

    pub(super) fn halt(&mut self, partition: Partition, epoch: Epoch, reason: String, actions: &mut Vec<Action>) {
        let Some(owned) = self.current(partition, epoch) else { return };
        match std::mem::replace(&mut owned.phase, Phase::Resolving) {
            Phase::Running { ledger, committed } => {
                owned.phase = Phase::Halted { ledger: Some(ledger), committed, reason: reason.clone() };
                if !owned.revoking {
                    actions.push(Action::StopFetching { partition });
                }
                // In all lanes: a later record to the same inbox must not overtake the one that is halted.
                actions.push(Action::Fence { epoch });
                owned.fetch_recovered(partition, actions);
                actions.push(Action::Halted { partition, reason });
            }
            // Its lanes were still storing its records: now they must not.
            Phase::Halted { ledger, committed, .. } if owned.draining => {
                owned.phase = Phase::Halted { ledger, committed, reason: reason.clone() };
                owned.draining = false;
                actions.push(Action::Fence { epoch });
                actions.push(Action::Halted { partition, reason });
            }
            other => owned.phase = other,
        }
    }

    /// Restarts a halted partition from its progress row.
    pub(super) fn resume(&mut self, partition: Partition, actions: &mut Vec<Action>) {
        let epoch = self.last_epoch + 1;
        let Some(owned) = self.owned.get_mut(&partition).filter(|owned| !owned.revoking) else { return };
        if matches!(owned.phase, Phase::Halted { .. }) {
            self.last_epoch = epoch;
            actions.push(Action::Fence { epoch: owned.epoch });
            actions.push(Action::Unhalted { partition });
            let breaker = std::mem::take(&mut owned.breaker);
            // Dead letters that were approved may still be written.
            let breaker = if owned.draining { breaker } else { breaker.resumed() };
            *owned = Owned::new(epoch);
            owned.breaker = breaker;
            actions.push(Action::ResolveStart { partition, epoch });
        }
    }
}
