//! The group's coordinator: its members, generations, assignments and committed offsets.

use std::collections::BTreeMap;

use machine::Partition;

pub(crate) type MemberId = u32;

/// A member, as the coordinator knows it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) process: usize,
    pub(crate) joined: bool,
    /// The partitions that the member reported when it joined.
    owned: Vec<Partition>,
    pub(crate) assigned: Vec<Partition>,
    /// Whether the member has yet to receive its assignment.
    pub(crate) unnotified: bool,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) eager: bool,
    pub(crate) generation: u32,
    pub(crate) members: Vec<Member>,
    pub(crate) joining: bool,
    pub(crate) offsets: BTreeMap<Partition, i64>,
    last_member: MemberId,
}

impl Group {
    pub(crate) fn new(eager: bool) -> Self {
        let (members, offsets) = (Vec::new(), BTreeMap::new());
        Group { eager, generation: 0, members, joining: false, offsets, last_member: 0 }
    }

    pub(crate) fn member(&mut self, id: MemberId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    /// Starts a rebalance, unless a rebalance is in progress.
    pub(crate) fn begin_rebalance(&mut self) {
        if !self.joining {
            self.joining = true;
            for member in &mut self.members {
                member.joined = false;
                // A member that has not received its assignment is notified of the new rebalance instead.
                member.unnotified = false;
            }
        }
    }

    /// Adds a member. If the process is a static member that the group still has, the new member gets the old one's
    /// assignment.
    pub(crate) fn join(&mut self, process: usize, is_static: bool) -> MemberId {
        self.last_member += 1;
        let id = self.last_member;
        let joining = self.joining;
        if let Some(previous) = self.members.iter_mut().find(|member| is_static && member.process == process) {
            previous.id = id;
            previous.owned.clear();
            previous.unnotified = !joining;
            previous.joined = joining;
            return id;
        }
        self.begin_rebalance();
        let (owned, assigned) = (Vec::new(), Vec::new());
        self.members.push(Member { id, process, joined: true, owned, assigned, unnotified: false });
        id
    }

    /// Lets a member join again with the partitions that it owns.
    pub(crate) fn rejoin(&mut self, id: MemberId, owned: Vec<Partition>) {
        if let Some(member) = self.member(id) {
            member.joined = true;
            member.owned = owned;
        }
    }

    /// Removes a member that left or whose session timed out.
    pub(crate) fn remove(&mut self, id: MemberId) {
        self.members.retain(|member| member.id != id);
        self.begin_rebalance();
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.joining && !self.members.is_empty() && self.members.iter().all(|member| member.joined)
    }

    /// Returns whether a partition has no owner and no member is about to release it. That happens when a static member
    /// that should have released the partition restarts: under its instance ID it does not know of the revocation.
    pub(crate) fn has_unassigned_partition(&self, partitions: Partition) -> bool {
        let is_stable =
            !self.joining && !self.members.is_empty() && self.members.iter().all(|member| !member.unnotified);
        is_stable && (0..partitions).any(|p| !self.members.iter().any(|member| member.assigned.contains(&p)))
    }

    /// Starts the next generation. If the partitions cannot be divided equally, the member with index `first` is the
    /// first to get one more. A partition that moves from one member to another is assigned in the rebalance that
    /// follows its release.
    pub(crate) fn complete(&mut self, partitions: Partition, first: usize) {
        self.generation += 1;
        self.joining = false;
        let count = self.members.len();
        let all = usize::try_from(partitions).expect("not negative");
        let (least, more) = (all / count, all % count);
        let quota = |index: usize| least + usize::from((index + count - first % count) % count < more);
        let mut free: Vec<Partition> = (0..partitions).collect();
        for (index, member) in self.members.iter_mut().enumerate() {
            free.retain(|partition| !member.owned.contains(partition));
            member.assigned = member.owned.iter().copied().take(quota(index)).collect();
            member.unnotified = true;
        }
        for (index, member) in self.members.iter_mut().enumerate() {
            let missing = quota(index).saturating_sub(member.assigned.len());
            member.assigned.extend(free.drain(..missing.min(free.len())));
        }
    }

    pub(crate) fn is_assigned(&self, process: usize, partition: Partition) -> bool {
        self.members.iter().any(|member| member.process == process && member.assigned.contains(&partition))
    }

    /// Returns whether the coordinator accepts an offset commit of this member under this generation.
    pub(crate) fn accepts(&self, id: Option<MemberId>, generation: u32) -> bool {
        generation == self.generation && self.members.iter().any(|member| Some(member.id) == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets all members join with the partitions that they own, until no partition is revoked any more. `has` holds
    /// the partitions of each member.
    fn rebalance_until_idle(group: &mut Group, partitions: Partition, has: &mut BTreeMap<MemberId, Vec<Partition>>) {
        for _ in 0..4 {
            for id in group.members.iter().map(|member| member.id).collect::<Vec<_>>() {
                group.rejoin(id, has.get(&id).cloned().unwrap_or_default());
            }
            group.complete(partitions, 0);
            let mut revoked = false;
            for member in &group.members {
                let had = has.insert(member.id, member.assigned.clone()).unwrap_or_default();
                revoked |= had.iter().any(|partition| !member.assigned.contains(partition));
                let others = has.iter().filter(|(id, _)| **id != member.id).flat_map(|(_, theirs)| theirs);
                assert!(
                    others.into_iter().all(|p| !member.assigned.contains(p)),
                    "no member is assigned what another still owns"
                );
            }
            if !revoked {
                return;
            }
            group.begin_rebalance();
        }
        panic!("the group never becomes idle");
    }

    #[test]
    fn second_member_gets_its_share_after_the_release() {
        let (mut group, mut has) = (Group::new(false), BTreeMap::new());
        let first = group.join(0, false);
        rebalance_until_idle(&mut group, 4, &mut has);
        assert_eq!(has[&first], [0, 1, 2, 3]);
        let second = group.join(1, false);
        rebalance_until_idle(&mut group, 4, &mut has);
        assert_eq!((has[&first].len(), has[&second].len()), (2, 2));
    }

    #[test]
    fn previous_generation_cannot_commit_offsets() {
        let mut group = Group::new(false);
        let (first, second) = (group.join(0, false), group.join(1, false));
        for id in [first, second] {
            group.rejoin(id, Vec::new());
        }
        group.complete(2, 0);
        assert!(group.accepts(Some(first), 1));
        group.remove(second);
        assert!(group.accepts(Some(first), 1) && !group.accepts(Some(second), 1));
        group.rejoin(first, vec![0]);
        group.complete(2, 0);
        assert!(!group.accepts(Some(first), 1) && group.accepts(Some(first), 2));
    }

    #[test]
    fn restarted_static_member_keeps_its_assignment() {
        let mut group = Group::new(false);
        let previous = group.join(0, true);
        group.complete(2, 0);
        let restarted = group.join(0, true);
        assert!(!group.joining && group.member(previous).is_none());
        assert!(group.member(restarted).is_some_and(|member| member.unnotified && member.assigned == [0, 1]));
    }
}
