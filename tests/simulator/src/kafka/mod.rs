//! A model of Kafka: the topics and the group.

pub(crate) mod group;
pub(crate) mod log;

use std::collections::{BTreeMap, VecDeque};

use machine::Partition;
use machine::consumer::CommitPoint;

use self::group::{Group, MemberId};
use self::log::Topic;

/// An offset commit that is in flight to the coordinator.
#[derive(Clone, Debug)]
pub(crate) struct CommitRequest {
    pub(crate) process: usize,
    pub(crate) restarts: u32,
    pub(crate) round: usize,
    pub(crate) member: Option<MemberId>,
    pub(crate) generation: u32,
    pub(crate) points: Vec<CommitPoint>,
    /// The incarnation of the database in which the progress rows are, if they were written; and the topic at that
    /// time.
    pub(crate) incarnation: Option<u32>,
    pub(crate) topic: u32,
}

#[derive(Debug)]
pub(crate) struct Kafka {
    /// The last one is the present topic; the others are deleted.
    pub(crate) topics: Vec<Topic>,
    pub(crate) group: Group,
    pub(crate) commits: VecDeque<CommitRequest>,
    /// The last committed offset of each partition, and the process that committed it; by the topic's number and the
    /// database's incarnation.
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

    /// Stores the offset that a process commits. Returns the offset that another process had committed before, if that
    /// was higher and the group has not assigned the partition to this process: the owner would have started there. An
    /// owner may commit a lower offset, because it can read the committed offset before a commit that is in flight
    /// arrives.
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

    /// Returns the number of the present topic, which stands for its ID.
    pub(crate) fn topic_number(&self) -> u32 {
        u32::try_from(self.topics.len() - 1).expect("few")
    }

    pub(crate) fn topic(&self) -> &Topic {
        self.topics.last().expect("a topic is always present")
    }

    pub(crate) fn topic_mut(&mut self) -> &mut Topic {
        self.topics.last_mut().expect("a topic is always present")
    }
}
