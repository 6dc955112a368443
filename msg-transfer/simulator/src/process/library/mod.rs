//! A model of librdkafka's consumer, as its source has it (2.12): the list of what is fetched, each partition's own queue and where
//! that is forwarded to, the queue of records, the queue of events, and the member of the group.
//!
//! - A partition that is not fetched any more is discarded wherever it is queued, before the call returns. Its fetch stops later.
//!   Only then does the forwarding of its queue end; and no fetch starts before all that are to stop have stopped.
//! - A queue that the application has forwarded is not forwarded to the queue of events, unless librdkafka has made the partition
//!   again meanwhile.
//! - While the group waits for a response all partitions are paused: what was fetched is discarded, and fetched again from what the
//!   application consumed last. The next `incremental_assign` (`incremental_unassign`) is taken for the response.

mod fetching;
mod membership;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use machine::driver::{FetchError, Fetched, Happened};
use machine::{LeaderEpoch, Partition, Progress, RecordOffset};

pub(crate) use self::membership::Membership;
use super::failure;
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::log::Record;

/// One partition on the list of what is fetched.
#[derive(Debug)]
struct Fetch {
    /// The topic that it began with.
    topic: u32,
    position: i64,
    /// That of the record before it, if it is known: a leader is asked whether the log is still the same.
    leader_epoch: LeaderEpoch,
    /// Just past what the application has consumed.
    consumed: (i64, LeaderEpoch),
    /// It was out of range: nothing more comes before it is fetched again.
    ended: bool,
    /// It waits for others to stop until then.
    started: bool,
    /// The group waits for a response.
    paused: bool,
}

/// Where a partition's own queue is forwarded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Forward {
    #[default]
    Nowhere,
    Records,
    Events,
}

/// A partition's own queue.
#[derive(Debug, Default)]
struct PartitionQueue {
    forward: Forward,
    /// The application has had it forwarded, or not forwarded any more.
    by_application: bool,
    items: VecDeque<Item>,
}

/// What is fetched.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    Record(Record),
    Error(Partition),
    /// A batch that is damaged on its way: what follows it comes all the same.
    Damaged(Partition),
    OutOfRange(Partition),
}

impl Item {
    fn partition(self) -> Partition {
        match self {
            Item::Record(record) => record.partition,
            Item::Error(partition) | Item::Damaged(partition) | Item::OutOfRange(partition) => partition,
        }
    }
}

/// What is in the queue of events.
#[derive(Clone, Debug)]
enum QueuedEvent {
    Assigned(Vec<Partition>),
    Revoked(Vec<Partition>),
    Item(Item),
    /// An error that did not come through its partition's queue.
    Failed(Partition, bool),
}

/// The consumer.
#[derive(Debug, Default)]
pub(crate) struct Library {
    fetches: BTreeMap<Partition, Fetch>,
    /// Those whose fetch is yet to stop.
    stopping: BTreeSet<Partition>,
    queues: BTreeMap<Partition, PartitionQueue>,
    records: VecDeque<Item>,
    events: VecDeque<QueuedEvent>,
    pub(crate) membership: Membership,
    /// What the coordinator answered to which commit.
    pub(crate) commit_results: VecDeque<(usize, bool)>,
    /// The same, and the answer takes its time.
    pub(crate) late_commit_results: VecDeque<(usize, bool)>,
}

impl Library {
    /// Nothing is under way between it and the group.
    pub(crate) fn is_idle(&self) -> bool {
        self.membership.is_stable_member() && self.stopping.is_empty() && self.events.is_empty()
    }

    /// The partition is on the list of what is fetched.
    pub(crate) fn is_fetched(&self, partition: Partition) -> bool {
        self.fetches.contains_key(&partition)
    }

    /// Nothing more of what is queued of it is given to the application.
    fn discard(&mut self, partition: Partition) {
        if let Some(queue) = self.queues.get_mut(&partition) {
            queue.items.clear();
        }
        self.records.retain(|item| item.partition() != partition);
        self.events.retain(|queued| !matches!(queued, QueuedEvent::Item(item) if item.partition() == partition));
    }

    fn enqueue(&mut self, item: Item) {
        let queue = self.queues.entry(item.partition()).or_default();
        match queue.forward {
            Forward::Nowhere => queue.items.push_back(item),
            Forward::Records => self.records.push_back(item),
            Forward::Events => self.events.push_back(QueuedEvent::Item(item)),
        }
    }

    /// An error of a partition, in the order of its records or outside of it.
    pub(crate) fn fetch_failed(&mut self, partition: Partition, damaged: bool, in_order: bool) {
        if !in_order {
            self.events.push_back(QueuedEvent::Failed(partition, damaged));
        } else if self.fetches.get(&partition).is_some_and(|fetch| fetch.started && !fetch.paused) {
            self.enqueue(if damaged { Item::Damaged(partition) } else { Item::Error(partition) });
        }
    }

    fn mark_consumed(&mut self, item: Item) {
        if let Item::Record(record) = item
            && let Some(fetch) = self.fetches.get_mut(&record.partition)
        {
            fetch.consumed = (record.offset + 1, LeaderEpoch(record.leader_epoch));
        }
    }

    pub(super) fn poll(&mut self, env: &mut Env) -> Option<Happened> {
        Some(match self.events.pop_front()? {
            QueuedEvent::Assigned(partitions) => {
                env.facts.add(Fact::Assigned, partitions.len());
                Happened::Assigned(partitions)
            }
            QueuedEvent::Revoked(partitions) => {
                self.membership.delivered();
                Happened::Revoked(partitions)
            }
            QueuedEvent::Failed(partition, damaged) => Happened::FetchFailed(partition, error(damaged, false, env)),
            QueuedEvent::Item(item) => {
                self.mark_consumed(item);
                match fetched(item, env) {
                    Fetched::Record(record) => {
                        env.count(Fact::RecordAsEvent);
                        Happened::Record(record.partition, RecordOffset(record.offset))
                    }
                    Fetched::Failed(partition, error) => Happened::FetchFailed(partition, error),
                }
            }
        })
    }

    pub(super) fn consume(&mut self, count: usize, into: &mut Vec<Fetched<Record>>, env: &mut Env) {
        for _ in 0..count {
            let Some(item) = self.records.pop_front() else { return };
            self.mark_consumed(item);
            into.push(fetched(item, env));
        }
    }

    pub(super) fn take_over(&mut self, partition: Partition) {
        let queue = self.queues.entry(partition).or_default();
        (queue.forward, queue.by_application) = (Forward::Records, true);
        self.records.extend(queue.items.drain(..));
    }

    pub(super) fn hold_back(&mut self, partition: Partition) {
        let queue = self.queues.entry(partition).or_default();
        (queue.forward, queue.by_application) = (Forward::Nowhere, true);
    }

    pub(super) fn incremental_assign(
        &mut self,
        starting: &BTreeMap<Partition, (u32, Progress)>,
        env: &mut Env,
    ) -> Result<(), String> {
        if let Some(partition) = starting.keys().find(|partition| self.fetches.contains_key(partition)) {
            env.violate(format!("librdkafka: partition {partition} is assigned already"));
            return Err("it is assigned already".into());
        }
        for (partition, (topic, from)) in starting {
            let (position, leader_epoch) = (from.next.0, from.leader_epoch);
            let fetch = Fetch {
                topic: *topic,
                position,
                leader_epoch,
                consumed: (position, leader_epoch),
                ended: false,
                started: false,
                paused: false,
            };
            self.fetches.insert(*partition, fetch);
        }
        if self.membership.respond_by_assign() {
            self.resume();
        }
        self.start_pending(env);
        Ok(())
    }

    /// Returns the partitions whose revocation that was taken to respond to.
    pub(super) fn incremental_unassign(
        &mut self,
        partitions: &BTreeSet<Partition>,
        env: &mut Env,
    ) -> Result<Option<Vec<Partition>>, String> {
        if let Some(partition) = partitions.iter().find(|partition| !self.fetches.contains_key(partition)) {
            env.violate(format!("librdkafka: partition {partition} is not assigned"));
            return Err("it is not assigned".into());
        }
        for partition in partitions {
            if self.fetches.remove(partition).is_some_and(|fetch| fetch.started) {
                self.stopping.insert(*partition);
            }
            self.discard(*partition);
        }
        let answered = self.membership.respond_by_unassign(env);
        if answered.is_some() {
            self.resume();
        }
        self.start_pending(env);
        Ok(answered.flatten())
    }
}

pub(super) fn fetched(item: Item, env: &mut Env) -> Fetched<Record> {
    match item {
        Item::Record(record) => Fetched::Record(record),
        Item::Error(partition) => Fetched::Failed(partition, error(false, false, env)),
        Item::Damaged(partition) => Fetched::Failed(partition, error(true, false, env)),
        Item::OutOfRange(partition) => {
            env.count(Fact::OutOfRange);
            Fetched::Failed(partition, error(false, true, env))
        }
    }
}

fn error(damaged: bool, out_of_range: bool, env: &mut Env) -> FetchError {
    FetchError { failure: failure(damaged, env), out_of_range }
}
