//! A model of librdkafka's consumer, after its source (2.12): the list of fetched partitions, the queue of each
//! partition and the queue it is forwarded to, the queue of records, the queue of events, and the member of the group.
//!
//! - When a partition is removed from the list, its records are discarded from every queue before the call returns. Its
//!   fetch stops later. Only then does the forwarding of its queue end; and no fetch starts before all fetches that
//!   must stop have stopped.
//! - A queue that the application has forwarded is not forwarded to the queue of events, unless librdkafka has
//!   recreated the partition since.
//! - While the group waits for a response, all partitions are paused: the fetched records are discarded, and fetched
//!   again from the position that the application consumed last. librdkafka accepts the next `incremental_assign`
//!   (`incremental_unassign`) as the response.

mod fetching;
mod membership;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::fmt::{self, Display};

use machine::driver::{FailedFetch, Fetched, Happened};
use machine::{LeaderEpoch, Partition, Progress, RecordOffset};

pub(crate) use self::membership::Membership;
use super::fetch_error;
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::log::Record;

/// A call that the client rejects.
#[derive(Debug)]
pub(crate) struct Rejected(pub(crate) &'static str);

impl Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Rejected {}

/// A partition on the list of fetched partitions.
#[derive(Debug)]
struct Fetch {
    /// The present topic when the fetch started.
    topic: u32,
    position: i64,
    /// The leader epoch of the record before `position`, if it is known: a leader uses it to check that the log is
    /// still the same.
    leader_epoch: LeaderEpoch,
    /// The offset after the last record that the application consumed, and that record's leader epoch.
    consumed: (i64, LeaderEpoch),
    /// Whether the position was out of range: no record arrives until the partition is fetched again.
    ended: bool,
    /// Whether the fetch has started; until then it waits for others to stop.
    started: bool,
    /// Whether the group waits for a response.
    paused: bool,
}

/// The queue that a partition's queue is forwarded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Forward {
    #[default]
    Nowhere,
    Records,
    Events,
}

#[derive(Debug, Default)]
struct PartitionQueue {
    forward: Forward,
    /// Whether the application has decided on the forwarding.
    by_application: bool,
    items: VecDeque<Item>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    Record(Record),
    Error(Partition),
    /// A batch that was damaged in transit. The records after the batch arrive all the same.
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

#[derive(Clone, Debug)]
enum QueuedEvent {
    Assigned(Vec<Partition>),
    Revoked(Vec<Partition>),
    Item(Item),
    /// An error that did not pass through its partition's queue, and whether a batch is damaged.
    Failed(Partition, bool),
}

#[derive(Debug, Default)]
pub(crate) struct Library {
    fetches: BTreeMap<Partition, Fetch>,
    /// The partitions whose fetch has yet to stop.
    stopping: BTreeSet<Partition>,
    queues: BTreeMap<Partition, PartitionQueue>,
    records: VecDeque<Item>,
    events: VecDeque<QueuedEvent>,
    pub(crate) membership: Membership,
    /// The coordinator's results of offset commits: the round, and whether the commit was accepted.
    pub(crate) commit_results: VecDeque<(usize, bool)>,
    pub(crate) late_commit_results: VecDeque<(usize, bool)>,
}

impl Library {
    /// Returns whether no rebalance is in progress, no fetch has to stop and no event is queued.
    pub(crate) fn is_idle(&self) -> bool {
        self.membership.is_stable_member() && self.stopping.is_empty() && self.events.is_empty()
    }

    pub(crate) fn is_fetched(&self, partition: Partition) -> bool {
        self.fetches.contains_key(&partition)
    }

    /// Removes the partition's records from all queues, so that the application never consumes them.
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

    /// Adds an error of a partition, in the order of its records or outside of it.
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
            QueuedEvent::Failed(partition, damaged) => {
                Happened::FetchFailed(partition, failed_fetch(damaged, false, env))
            }
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

    pub(super) fn stop_forwarding(&mut self, partition: Partition) {
        let queue = self.queues.entry(partition).or_default();
        (queue.forward, queue.by_application) = (Forward::Nowhere, true);
    }

    pub(super) fn incremental_assign(
        &mut self,
        starting: &BTreeMap<Partition, (u32, Progress)>,
        env: &mut Env,
    ) -> Result<(), Rejected> {
        if let Some(partition) = starting.keys().find(|partition| self.fetches.contains_key(partition)) {
            env.violate(format!("librdkafka: partition {partition} is assigned already"));
            return Err(Rejected("the partition is assigned already"));
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

    /// Returns the partitions of the revocation that this call responds to.
    pub(super) fn incremental_unassign(
        &mut self,
        partitions: &BTreeSet<Partition>,
        env: &mut Env,
    ) -> Result<Option<Vec<Partition>>, Rejected> {
        if let Some(partition) = partitions.iter().find(|partition| !self.fetches.contains_key(partition)) {
            env.violate(format!("librdkafka: partition {partition} is not assigned"));
            return Err(Rejected("the partition is not assigned"));
        }
        for partition in partitions {
            if self.fetches.remove(partition).is_some_and(|fetch| fetch.started) {
                self.stopping.insert(*partition);
            }
            self.discard(*partition);
        }
        let responded = self.membership.respond_by_unassign(env);
        if responded.is_some() {
            self.resume();
        }
        self.start_pending(env);
        Ok(responded.flatten())
    }
}

pub(super) fn fetched(item: Item, env: &mut Env) -> Fetched<Record> {
    match item {
        Item::Record(record) => Fetched::Record(record),
        Item::Error(partition) => Fetched::Failed(partition, failed_fetch(false, false, env)),
        Item::Damaged(partition) => Fetched::Failed(partition, failed_fetch(true, false, env)),
        Item::OutOfRange(partition) => {
            env.count(Fact::OutOfRange);
            Fetched::Failed(partition, failed_fetch(false, true, env))
        }
    }
}

fn failed_fetch(damaged: bool, out_of_range: bool, env: &mut Env) -> FailedFetch {
    FailedFetch { error: fetch_error(damaged, env), out_of_range }
}
