//! A model of Kafka: what lies in the topic, and the group.

pub(crate) mod group;
pub(crate) mod log;

use std::collections::{BTreeMap, VecDeque};

use machine::Partition;
use machine::consumer::CommitPoint;

use self::group::{Group, MemberId};
use self::log::Topic;

/// A commit of offsets on its way to the coordinator.
#[derive(Clone, Debug)]
pub(crate) struct CommitRequest {
    pub(crate) process: usize,
    pub(crate) life: u32,
    pub(crate) round: usize,
    pub(crate) member: Option<MemberId>,
    pub(crate) generation: u32,
    pub(crate) points: Vec<CommitPoint>,
    /// Which database the progress rows were written to, if they were, and which topic there was.
    pub(crate) incarnation: Option<u32>,
    pub(crate) topic: u32,
}

/// Kafka.
#[derive(Debug)]
pub(crate) struct Kafka {
    /// The last one is the present one.
    pub(crate) topics: Vec<Topic>,
    pub(crate) group: Group,
    pub(crate) commits: VecDeque<CommitRequest>,
    /// How far each partition was committed, and by which process; by the topic's number and the database's incarnation.
    committed: BTreeMap<(u32, u32, Partition), (i64, usize)>,
}

impl Kafka {
    pub(crate) fn new(partitions: Partition, eager: bool) -> Self {
        Kafka {
            topics: vec![Topic::new(partitions)],
            group: Group::new(eager),
            commits: VecDeque::new(),
            committed: BTreeMap::new(),
        }
    }

    /// Takes what a process commits. Returns how far another process had committed the partition, if that was further and the group
    /// has not assigned the partition to this process: the owner would have started there. An owner's commit may go back: it read the
    /// committed offset before a commit that was under way arrived.
    pub(crate) fn commit_offset(
        &mut self,
        process: usize,
        incarnation: u32,
        partition: Partition,
        next: i64,
    ) -> Option<i64> {
        self.group.offsets.insert(partition, next);
        let before = self.committed.insert((self.topic_number(), incarnation, partition), (next, process));
        let (before, other) = before?;
        let is_foreign = other != process && !self.group.is_assigned(process, partition);
        (before > next && is_foreign && !self.topic().log(partition).has_lost()).then_some(before)
    }

    /// The number of the present topic: what its id stands for.
    pub(crate) fn topic_number(&self) -> u32 {
        u32::try_from(self.topics.len() - 1).expect("few")
    }

    pub(crate) fn topic(&self) -> &Topic {
        self.topics.last().expect("there is always one")
    }

    pub(crate) fn topic_mut(&mut self) -> &mut Topic {
        self.topics.last_mut().expect("there is always one")
    }
}
