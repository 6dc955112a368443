//! The group's coordinator: members, generations, who is given what, and the committed offsets.

use std::collections::BTreeMap;

use machine::Partition;

pub(crate) type MemberId = u32;

/// A member, as the coordinator sees it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) process: usize,
    /// It has joined the rebalance that is under way.
    pub(crate) joined: bool,
    /// What it said it had when it joined.
    owned: Vec<Partition>,
    pub(crate) assigned: Vec<Partition>,
    /// It has not been told what it is assigned.
    pub(crate) unnotified: bool,
}

/// The coordinator.
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

    /// A rebalance begins, unless one is under way.
    pub(crate) fn begin_rebalance(&mut self) {
        if !self.joining {
            self.joining = true;
            for member in &mut self.members {
                member.joined = false;
                // Who has not been told yet is told to join again instead.
                member.unnotified = false;
            }
        }
    }

    /// A new member; or, with an instance id, the one that was there, with what it had.
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

    /// It joins again, with what it has.
    pub(crate) fn rejoin(&mut self, id: MemberId, owned: Vec<Partition>) {
        if let Some(member) = self.member(id) {
            member.joined = true;
            member.owned = owned;
        }
    }

    /// It left, or was not heard of for too long.
    pub(crate) fn remove(&mut self, id: MemberId) {
        self.members.retain(|member| member.id != id);
        self.begin_rebalance();
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.joining && !self.members.is_empty() && self.members.iter().all(|member| member.joined)
    }

    /// A partition is nobody's, and nobody is about to give one back: its member came back under its instance id, and does
    /// not know that it was to give it.
    pub(crate) fn has_unassigned_partition(&self, partitions: Partition) -> bool {
        let is_stable =
            !self.joining && !self.members.is_empty() && self.members.iter().all(|member| !member.unnotified);
        is_stable && (0..partitions).any(|p| !self.members.iter().any(|member| member.assigned.contains(&p)))
    }

    /// The next generation. `first` is the member that is served first. What a member has and another is to get, the other
    /// gets in the rebalance that follows.
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

    /// Whether a member of this process is assigned the partition.
    pub(crate) fn is_assigned(&self, process: usize, partition: Partition) -> bool {
        self.members.iter().any(|member| member.process == process && member.assigned.contains(&partition))
    }

    /// Whether a commit of this member under this generation counts.
    pub(crate) fn accepts(&self, id: Option<MemberId>, generation: u32) -> bool {
        generation == self.generation && self.members.iter().any(|member| Some(member.id) == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everyone who is asked to joins again with what it has, as often as it takes; returns what each has.
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
                assert!(others.into_iter().all(|p| !member.assigned.contains(p)), "nobody gets what another still has");
            }
            if !revoked {
                return;
            }
            group.begin_rebalance();
        }
        panic!("the group never becomes idle");
    }

    #[test]
    fn a_second_member_gets_its_part_once_it_was_given_back() {
        let (mut group, mut has) = (Group::new(false), BTreeMap::new());
        let first = group.join(0, false);
        rebalance_until_idle(&mut group, 4, &mut has);
        assert_eq!(has[&first], [0, 1, 2, 3]);
        let second = group.join(1, false);
        rebalance_until_idle(&mut group, 4, &mut has);
        assert_eq!((has[&first].len(), has[&second].len()), (2, 2));
    }

    #[test]
    fn a_previous_generation_commits_nothing() {
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
    fn a_static_member_that_comes_back_has_what_it_had_and_nobody_notices() {
        let mut group = Group::new(false);
        let previous = group.join(0, true);
        group.complete(2, 0);
        let again = group.join(0, true);
        assert!(!group.joining && group.member(previous).is_none());
        assert!(group.member(again).is_some_and(|member| member.unnotified && member.assigned == [0, 1]));
    }
}
