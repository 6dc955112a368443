//! The process as a member of the group: joining, being given partitions, giving them back, and being expelled.

use std::collections::{BTreeMap, BTreeSet};

use machine::consumer::Event;
use machine::{Epoch, Partition, Progress};

use super::{Process, State};
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::group::MemberId;

/// Why partitions are given back.
#[derive(Debug)]
enum Giving {
    /// The group takes these, and gives those once they are let go.
    Revoked(Vec<Partition>, Vec<Partition>),
    /// The process stops.
    Stop,
}

/// Its membership.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    pub(crate) member: Option<MemberId>,
    pub(crate) generation: u32,
    /// What the group has given, as the client library knows it.
    owned: BTreeSet<Partition>,
    giving: Option<Giving>,
    drain_expired: bool,
    pub(super) released: bool,
    /// While the group waits for an answer to a revocation: what is to be fetched, or no more, once it is given.
    pub(super) postponed: Option<BTreeMap<Partition, Option<(Epoch, Progress)>>>,
}

impl Membership {
    pub(crate) fn is_settled(&self) -> bool {
        self.member.is_some() && self.giving.is_none()
    }

    pub(super) fn is_released(&self) -> bool {
        self.giving.is_some() && self.released
    }

    pub(crate) fn is_giving(&self) -> bool {
        self.giving.is_some()
    }
}

impl Process {
    pub(super) fn membership_turn(&mut self, env: &mut Env) -> bool {
        if self.membership.giving.is_some() {
            return self.membership.released && self.given(env);
        }
        let Some(id) = self.membership.member else {
            let id = env.kafka.group.join(self.number, env.config.static_members);
            env.count(Fact::Join);
            self.membership.member = Some(id);
            return true;
        };
        let joining = env.kafka.group.joining;
        let (eager, generation) = (env.kafka.group.eager, env.kafka.group.generation);
        let Some(member) = env.kafka.group.member(id) else {
            self.lost(env);
            return true;
        };
        if member.untold {
            member.untold = false;
            let assigned: BTreeSet<Partition> = member.assigned.iter().copied().collect();
            self.membership.generation = generation;
            let revoked: Vec<Partition> = self.membership.owned.difference(&assigned).copied().collect();
            let added: Vec<Partition> = assigned.difference(&self.membership.owned).copied().collect();
            if revoked.is_empty() {
                self.assigned(added, env);
            } else {
                self.give_back(Giving::Revoked(revoked, added), env);
            }
            return true;
        }
        if !joining || member.joined {
            return false;
        }
        if eager && !self.membership.owned.is_empty() {
            let all = self.membership.owned.iter().copied().collect();
            self.give_back(Giving::Revoked(all, Vec::new()), env);
        } else {
            env.kafka.group.rejoin(id, self.membership.owned.iter().copied().collect());
        }
        true
    }

    fn assigned(&mut self, partitions: Vec<Partition>, env: &mut Env) {
        env.facts.add(Fact::Assigned, partitions.len());
        self.membership.owned.extend(&partitions);
        self.handle(Event::Assigned(partitions), env);
    }

    fn lost(&mut self, env: &mut Env) {
        self.membership.member = None;
        let partitions: Vec<Partition> = std::mem::take(&mut self.membership.owned).into_iter().collect();
        if partitions.is_empty() {
            return;
        }
        env.facts.add(Fact::Lost, partitions.len());
        self.membership.postponed = Some(BTreeMap::new());
        self.handle(Event::Lost(partitions.clone()), env);
        self.answer_revocation(&partitions, env);
    }

    fn give_back(&mut self, giving: Giving, env: &mut Env) {
        self.membership.released = false;
        self.membership.drain_expired = false;
        let event = match &giving {
            Giving::Revoked(partitions, _) => {
                env.facts.add(Fact::Revoked, partitions.len());
                self.membership.postponed = Some(BTreeMap::new());
                Event::Revoked(partitions.clone())
            }
            Giving::Stop => Event::Stop,
        };
        self.membership.giving = Some(giving);
        self.handle(event, env);
    }

    /// The process is told to stop.
    pub(crate) fn stop(&mut self, env: &mut Env) -> bool {
        if self.membership.giving.is_some() {
            return false;
        }
        self.give_back(Giving::Stop, env);
        true
    }

    /// One of the deadlines for giving back has passed.
    pub(crate) fn deadline(&mut self, env: &mut Env) -> bool {
        if self.membership.giving.is_none() || self.membership.released {
            return false;
        }
        if self.membership.drain_expired {
            env.count(Fact::ReleaseExpired);
            self.handle(Event::ReleaseExpired, env);
            self.membership.released = true;
        } else {
            env.count(Fact::DrainExpired);
            self.membership.drain_expired = true;
            self.handle(Event::DrainExpired, env);
        }
        true
    }

    /// All is let go: the group is answered.
    fn given(&mut self, env: &mut Env) -> bool {
        match self.membership.giving.take() {
            Some(Giving::Revoked(partitions, added)) => {
                self.answer_revocation(&partitions, env);
                self.membership.owned.retain(|partition| !partitions.contains(partition));
                let Some(id) = self.membership.member else { return true };
                if env.kafka.group.member(id).is_some() && !env.kafka.group.eager {
                    if !added.is_empty() {
                        self.assigned(added, env);
                    }
                    // What was let go is for others now.
                    env.kafka.group.begin();
                }
            }
            Some(Giving::Stop) => {
                let id = self.membership.member;
                if let Some(id) = id.filter(|id| !env.config.static_members && env.kafka.group.member(*id).is_some()) {
                    env.kafka.group.remove(id);
                }
                self.die(env);
                debug_assert_eq!(self.state, State::Down);
            }
            None => return false,
        }
        true
    }

    fn answer_revocation(&mut self, partitions: &[Partition], env: &Env) {
        for partition in partitions {
            self.fetching.stop(*partition);
        }
        for (partition, fetch) in self.membership.postponed.take().unwrap_or_default() {
            match fetch.filter(|_| !partitions.contains(&partition)) {
                Some((epoch, from)) => self.fetch(partition, epoch, from, env),
                None => self.fetching.stop(partition),
            }
        }
    }
}
