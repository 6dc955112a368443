//! librdkafka as a member of the group: it joins, lets the application assign and unassign, and detects that it was
//! expelled.

use std::collections::BTreeSet;

use machine::Partition;

use super::{Library, QueuedEvent};
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::group::MemberId;

/// The call that librdkafka accepts as the response to a rebalance event.
#[derive(Clone, Debug)]
enum AwaitedCall {
    Assign,
    /// The revoked partitions, and whether the application has polled the event.
    Unassign(Vec<Partition>, bool),
}

#[derive(Debug, Default)]
pub(crate) struct Membership {
    pub(crate) member: Option<MemberId>,
    pub(crate) generation: u32,
    /// The partitions that the group has assigned, which change before the application polls the event.
    owned: BTreeSet<Partition>,
    awaited: Option<AwaitedCall>,
    /// Whether the application has responded, and fetches have yet to stop.
    completing: bool,
    /// The partitions that are assigned after a revocation, if it is part of a rebalance.
    added: Option<Vec<Partition>>,
    /// Whether the member joins again after that.
    rejoins: bool,
    /// Whether another member may own the partitions of this revocation already.
    lost: bool,
}

impl Membership {
    pub(super) fn is_stable_member(&self) -> bool {
        self.member.is_some() && !self.is_rebalancing()
    }

    /// Returns whether a rebalance event waits for its response, or something follows from it.
    pub(crate) fn is_rebalancing(&self) -> bool {
        self.awaited.is_some() || self.completing || self.added.is_some() || self.rejoins
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    pub(super) fn delivered(&mut self) {
        if let Some(AwaitedCall::Unassign(_, delivered)) = &mut self.awaited {
            *delivered = true;
        }
    }

    /// Accepts an assign as the response to an assignment, and returns whether an assignment waited for it.
    pub(super) fn respond_by_assign(&mut self) -> bool {
        self.lost = false;
        self.awaited.take_if(|awaited| matches!(awaited, AwaitedCall::Assign)).is_some()
    }

    /// Accepts an unassign as the response to a revocation, if a revocation waits for it. Returns the revoked
    /// partitions if the application has polled the event and the partitions are not lost.
    pub(super) fn respond_by_unassign(&mut self, env: &mut Env) -> Option<Option<Vec<Partition>>> {
        let lost = std::mem::take(&mut self.lost);
        match self.awaited.take_if(|awaited| matches!(awaited, AwaitedCall::Unassign(..)))? {
            AwaitedCall::Unassign(partitions, delivered) => {
                self.completing = true;
                if !delivered {
                    env.count(Fact::RespondedBeforeEvent);
                }
                Some((delivered && !lost).then_some(partitions))
            }
            AwaitedCall::Assign => None,
        }
    }
}

impl Library {
    fn rebalance(&mut self, awaited: AwaitedCall) {
        self.pause();
        self.events.push_back(match &awaited {
            AwaitedCall::Assign => QueuedEvent::Assigned(self.membership.added.take().unwrap_or_default()),
            AwaitedCall::Unassign(partitions, _) => QueuedEvent::Revoked(partitions.clone()),
        });
        self.membership.awaited = Some(awaited);
    }

    fn revoke(&mut self, partitions: Vec<Partition>, env: &mut Env) {
        env.facts.add(Fact::Revoked, partitions.len());
        self.membership.owned.retain(|partition| !partitions.contains(partition));
        self.rebalance(AwaitedCall::Unassign(partitions, false));
    }

    fn assign(&mut self, partitions: Vec<Partition>) {
        self.membership.owned.extend(&partitions);
        self.membership.added = Some(partitions);
        self.rebalance(AwaitedCall::Assign);
    }

    pub(crate) fn membership_turn(&mut self, process: usize, env: &mut Env) -> bool {
        let is_stopped = self.stopping.is_empty() && self.fetches.values().all(|fetch| fetch.started);
        let membership = &mut self.membership;
        if membership.awaited.is_some() || (membership.completing || membership.rejoins) && !is_stopped {
            return false;
        }
        if std::mem::take(&mut membership.completing) {
            if let Some(added) = membership.added.take() {
                membership.rejoins = true;
                self.assign(added);
            }
            return true;
        }
        if std::mem::take(&mut membership.rejoins) {
            if membership.member.is_some_and(|id| env.kafka.group.member(id).is_some()) {
                // The released partitions can be assigned to others now.
                env.kafka.group.begin_rebalance();
            }
            return true;
        }
        let Some(id) = membership.member else {
            membership.member = Some(env.kafka.group.join(process, env.config.static_members));
            env.count(Fact::Join);
            return true;
        };
        let joining = env.kafka.group.joining;
        let (eager, generation) = (env.kafka.group.eager, env.kafka.group.generation);
        let Some(member) = env.kafka.group.member(id) else {
            membership.member = None;
            let lost: Vec<Partition> = membership.owned.iter().copied().collect();
            if !lost.is_empty() {
                env.facts.add(Fact::Lost, lost.len());
                membership.lost = true;
                self.revoke(lost, env);
            }
            return true;
        };
        if member.unnotified {
            member.unnotified = false;
            let assigned: BTreeSet<Partition> = member.assigned.iter().copied().collect();
            membership.generation = generation;
            let revoked: Vec<Partition> = membership.owned.difference(&assigned).copied().collect();
            let added: Vec<Partition> = assigned.difference(&membership.owned).copied().collect();
            if revoked.is_empty() {
                self.assign(added);
            } else {
                self.revoke(revoked, env);
                self.membership.added = Some(added);
            }
            return true;
        }
        if !joining || member.joined {
            return false;
        }
        if eager && !membership.owned.is_empty() {
            let all = membership.owned.iter().copied().collect();
            self.revoke(all, env);
        } else {
            env.kafka.group.rejoin(id, membership.owned.iter().copied().collect());
        }
        true
    }

    /// Closes the consumer: the owned partitions, if any, are revoked, after the rebalance events that are queued.
    pub(crate) fn close(&mut self, env: &mut Env) {
        self.events.retain(|queued| matches!(queued, QueuedEvent::Assigned(_) | QueuedEvent::Revoked(_)));
        let all: Vec<Partition> = self.membership.owned.iter().copied().collect();
        if !all.is_empty() {
            self.revoke(all, env);
        }
    }
}
