//! A model of Kafka: what lies in the topic, and the group.

pub(crate) mod group;
pub(crate) mod log;

use std::collections::VecDeque;

use machine::Partition;
use machine::consumer::Mark;

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
    pub(crate) marks: Vec<Mark>,
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
}

impl Kafka {
    pub(crate) fn new(partitions: Partition, eager: bool) -> Self {
        Kafka { topics: vec![Topic::new(partitions)], group: Group::new(eager), commits: VecDeque::new() }
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
