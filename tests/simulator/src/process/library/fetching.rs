//! The work of librdkafka's threads: fetches stop and start, and records arrive from the brokers.

use machine::consumer::start::Kept;
use machine::{LeaderEpoch, Partition};

use super::{Fetch, Forward, Item, Library, PartitionQueue};
use crate::config::Fault;
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::log::Log;

impl Library {
    /// Pauses all fetches and discards all records that were fetched and not consumed.
    pub(super) fn pause(&mut self) {
        let partitions: Vec<Partition> = self.fetches.keys().copied().collect();
        for partition in partitions {
            self.discard(partition);
        }
        for fetch in self.fetches.values_mut() {
            (fetch.position, fetch.leader_epoch) = fetch.consumed;
            (fetch.paused, fetch.ended) = (true, false);
        }
    }

    pub(super) fn resume(&mut self) {
        for fetch in self.fetches.values_mut() {
            fetch.paused = false;
        }
    }

    /// Starts the waiting fetches, once all others have stopped.
    pub(super) fn start_pending(&mut self, env: &mut Env) {
        if !self.stopping.is_empty() {
            return;
        }
        for (partition, fetch) in self.fetches.iter_mut().filter(|(_, fetch)| !fetch.started) {
            fetch.started = true;
            let queue = self.queues.entry(*partition).or_default();
            if !env.healing && env.choices.one_in(env.config.recreated_partitions) {
                *queue = PartitionQueue::default();
            }
            if !queue.by_application {
                queue.forward = Forward::Events;
            }
        }
    }

    /// Stops one fetch, or lets the next records of one partition arrive.
    pub(crate) fn turn(&mut self, env: &mut Env) -> bool {
        if !self.late_commit_results.is_empty() && (env.healing || env.choices.one_in(8)) {
            self.commit_results.extend(self.late_commit_results.pop_front());
            return true;
        }
        let stopping: Vec<Partition> = self.stopping.iter().copied().collect();
        if !stopping.is_empty() && (env.healing || env.choices.one_in(2)) {
            let partition = stopping[if env.healing { 0 } else { env.choices.index(stopping.len()) }];
            self.stopping.remove(&partition);
            self.queues.entry(partition).or_default().forward = Forward::Nowhere;
            self.start_pending(env);
            return true;
        }
        self.fetch_some(env)
    }

    fn fetch_some(&mut self, env: &mut Env) -> bool {
        let max = env.config.chunk * 2;
        let present = env.kafka.topic_number();
        let partitions: Vec<Partition> = self.fetches.keys().copied().collect();
        let count = partitions.len();
        if count == 0 {
            return false;
        }
        let first = if env.healing { 0 } else { env.choices.index(count) };
        let again = !env.healing && env.config.has(Fault::RewindFetch) && env.choices.one_in(40);
        let damages = !env.healing && env.config.has(Fault::DamageBatch) && env.choices.one_in(20);
        for index in 0..count {
            let partition = partitions[(first + index) % count];
            let has_error = self.has_error(partition);
            let waiting = self.queues.get(&partition).map_or(0, |queue| queue.items.len());
            let fetch = self.fetches.get_mut(&partition).expect("the partition is fetched");
            let log = env.kafka.topic().log(partition);
            let errors = fetch.topic != present || fetch.position < log.low;
            let mut items: Vec<Item> = Vec::new();
            if !fetch.started || fetch.paused || errors && has_error {
                continue;
            } else if errors {
                items.push(Item::Error(partition));
            } else if log.without_leader || fetch.ended {
                continue;
            } else if is_out_of_range(log, fetch) {
                fetch.ended = true;
                items.push(Item::OutOfRange(partition));
            } else if waiting < max {
                if again {
                    env.facts.add(Fact::FetchRewound, 1);
                    fetch.position = (fetch.position - 2).max(log.low);
                }
                items.extend(log.from(fetch.position).iter().take(max).map(|record| Item::Record(*record)));
                // The last record stays: the fetch continues after it.
                if damages && items.len() > 1 {
                    let at = env.choices.index(items.len() - 1);
                    items[at] = Item::Damaged(partition);
                }
            }
            if let Some(Item::Record(last)) = items.last() {
                fetch.position = last.offset + 1;
                fetch.leader_epoch = LeaderEpoch(last.leader_epoch);
            }
            if items.is_empty() {
                continue;
            }
            if self.queues.get(&partition).is_none_or(|queue| queue.forward == Forward::Nowhere) {
                env.count(Fact::NotForwarded);
            }
            items.into_iter().for_each(|item| self.enqueue(item));
            return true;
        }
        false
    }

    fn has_error(&self, partition: Partition) -> bool {
        let is_error = |item: &Item| matches!(item, Item::Error(p) if *p == partition);
        let in_events =
            |queued: &super::QueuedEvent| matches!(queued, super::QueuedEvent::Item(item) if is_error(item));
        let queue = self.queues.get(&partition);
        self.records.iter().any(is_error)
            || self.events.iter().any(in_events)
            || queue.is_some_and(|queue| queue.items.iter().any(is_error))
    }
}

/// Returns whether the position is above the log's end, or the log differs from the records that were read.
fn is_out_of_range(log: &Log, fetch: &Fetch) -> bool {
    let differs = |kept: Kept| matches!(kept, Kept::UpTo(kept) if kept.next.0 < fetch.position);
    fetch.position > log.high || differs(log.kept(fetch.leader_epoch))
}
