//! What librdkafka does: which partitions are fetched and from where, their own queues, and the one queue that the thread
//! takes records from. No record of an earlier fetch comes after a new one began.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use machine::consumer::start::Kept;
use machine::consumer::{Action, Event, Receipt};
use machine::lane::{Entry, Kind, Message, lane_for};
use machine::{Assignment, Epoch, LeaderEpoch, Partition, Progress, Reason, RecordOffset};

use super::{Process, failure};
use crate::config::Fault;
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::log::{Log, Nature, Record};

/// One partition that is fetched.
#[derive(Debug)]
struct Fetch {
    /// The topic that it began with.
    topic: u32,
    position: i64,
    /// That of the record before it, if it is known: a leader is asked whether the log is still the same.
    leader_epoch: LeaderEpoch,
    /// It was out of range: nothing more comes before it is fetched anew.
    ended: bool,
    /// What is fetched and not handed over, while paused.
    held: VecDeque<Fetched>,
}

#[derive(Clone, Copy, Debug)]
enum Fetched {
    Record(Record),
    Error(Partition),
    /// A batch that is damaged on its way: what follows it comes all the same.
    Damaged(Partition),
    OutOfRange(Partition),
}

impl Fetched {
    fn partition(self) -> Partition {
        match self {
            Fetched::Record(record) => record.partition,
            Fetched::Error(partition) | Fetched::Damaged(partition) | Fetched::OutOfRange(partition) => partition,
        }
    }
}

/// All that is fetched.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    fetches: BTreeMap<Partition, Fetch>,
    /// Outlives the fetch, as librdkafka's pause does.
    paused: BTreeSet<Partition>,
    queue: VecDeque<Fetched>,
}

impl Fetching {
    /// What is queued of it is thrown away.
    pub(super) fn stop(&mut self, partition: Partition) {
        self.fetches.remove(&partition);
        self.queue.retain(|fetched| fetched.partition() != partition);
    }

    /// What is queued of it waits before what comes later.
    pub(super) fn pause(&mut self, partition: Partition) {
        self.paused.insert(partition);
        let Some(fetch) = self.fetches.get_mut(&partition) else { return };
        let is_mine = |fetched: &Fetched| fetched.partition() == partition;
        let (mine, others): (VecDeque<Fetched>, VecDeque<Fetched>) = self.queue.drain(..).partition(is_mine);
        self.queue = others;
        for fetched in mine.into_iter().rev() {
            fetch.held.push_front(fetched);
        }
    }

    pub(super) fn unpause(&mut self, partition: Partition) {
        self.paused.remove(&partition);
        if let Some(fetch) = self.fetches.get_mut(&partition) {
            self.queue.extend(fetch.held.drain(..));
        }
    }
}

impl Process {
    pub(super) fn fetch(&mut self, partition: Partition, epoch: Epoch, from: Progress, env: &Env) {
        if self.fetching.fetches.contains_key(&partition) {
            self.fetching.stop(partition);
        }
        let topic = self.assignments.get(&epoch).and_then(|assignment| assignment.topic_id());
        let topic = topic.map_or(env.kafka.topic_number(), |id| u32::try_from(id.as_u128()).expect("a small number"));
        let (position, leader_epoch) = (from.next.0, from.leader_epoch);
        let fetch = Fetch { topic, position, leader_epoch, ended: false, held: VecDeque::new() };
        self.fetching.paused.remove(&partition);
        self.fetching.fetches.insert(partition, fetch);
    }

    /// Some partition's next records come from the broker.
    pub(super) fn fetch_some(&mut self, env: &mut Env) -> bool {
        let most = env.config.chunk * 2;
        let present = env.kafka.topic_number();
        let count = self.fetching.fetches.len();
        if count == 0 {
            return false;
        }
        let first = if env.healing { 0 } else { env.choices.index(count) };
        let again = !env.healing && env.config.has(Fault::FetchAgain) && env.choices.one_in(40);
        let damages = !env.healing && env.config.has(Fault::Damage) && env.choices.one_in(20);
        let Fetching { fetches, paused, queue } = &mut self.fetching;
        let partitions: Vec<Partition> = fetches.keys().copied().collect();
        for place in 0..count {
            let partition = partitions[(first + place) % count];
            let fetch = fetches.get_mut(&partition).expect("it is one of them");
            let log = env.kafka.topic().log(partition);
            let errors = fetch.topic != present || fetch.position < log.low;
            let mut got: Vec<Fetched> = Vec::new();
            if errors {
                if queue
                    .iter()
                    .chain(&fetch.held)
                    .any(|fetched| matches!(fetched, Fetched::Error(p) if *p == partition))
                {
                    continue;
                }
                got.push(Fetched::Error(partition));
            } else if !log.without_leader && !fetch.ended && is_out_of_range(log, fetch) {
                fetch.ended = true;
                got.push(Fetched::OutOfRange(partition));
            } else if !log.without_leader && !fetch.ended && fetch.held.len() < most {
                if again {
                    fetch.position = (fetch.position - 2).max(log.low);
                }
                got.extend(log.from(fetch.position).iter().take(most).map(|record| Fetched::Record(*record)));
                // The last one stays: the fetch goes on behind it.
                if damages && got.len() > 1 {
                    let at = env.choices.index(got.len() - 1);
                    got[at] = Fetched::Damaged(partition);
                }
            }
            if let Some(Fetched::Record(last)) = got.last() {
                fetch.position = last.offset + 1;
                fetch.leader_epoch = LeaderEpoch(last.leader_epoch);
            }
            if !got.is_empty() {
                if paused.contains(&partition) {
                    fetch.held.extend(got)
                } else {
                    queue.extend(got)
                }
                return true;
            }
        }
        false
    }

    /// The thread takes a few records in, if it wants any.
    pub(super) fn take_in(&mut self, env: &mut Env) -> bool {
        if self.fetching.queue.is_empty() || self.machine.is_leaving() {
            return false;
        }
        if !self.machine.wants_records() {
            env.count(Fact::Full);
            return false;
        }
        let count = if env.healing { env.config.chunk } else { 1 + env.choices.index(env.config.chunk) };
        let chunk: Vec<Fetched> = self.fetching.queue.drain(..count.min(self.fetching.queue.len())).collect();
        let mut actions = Vec::new();
        for fetched in chunk {
            match fetched {
                Fetched::Record(record) => self.receive(record, &mut actions, env),
                // In order, but what is to be done comes after the chunk, as in the service.
                Fetched::Error(partition) | Fetched::Damaged(partition) | Fetched::OutOfRange(partition) => {
                    let failure = failure(matches!(fetched, Fetched::Damaged(_)), env);
                    self.machine.handle(Event::FetchFailed { partition, failure }, env.now, &mut actions);
                    if matches!(fetched, Fetched::OutOfRange(_)) {
                        env.count(Fact::OutOfRange);
                        self.machine.handle(Event::OutOfRange(partition), env.now, &mut actions);
                    }
                }
            }
        }
        self.carry_out(actions, env);
        self.check_bounds(env);
        true
    }

    fn receive(&mut self, record: Record, actions: &mut Vec<Action>, env: &mut Env) {
        let (bytes, offset) = (record.nature.bytes(), RecordOffset(record.offset));
        let before = actions.len();
        let epoch = self.machine.receive(record.partition, (offset, LeaderEpoch(record.leader_epoch)), bytes, actions);
        if epoch.is_none() && actions.len() > before {
            env.count(Fact::OutOfOrder);
        }
        if env.trace.is_some() {
            let name = self.name();
            env.say(|| format!("{name}: receives {} under {epoch:?}", record.show()));
        }
        let Some(assignment) = epoch.and_then(|epoch| self.assignments.get(&epoch)) else { return };
        let receipt = Receipt { partition: record.partition, epoch: assignment.epoch, offset, bytes };
        let entry = entry(record, receipt, assignment.clone(), env.upgraded);
        let lane = lane_for(Some(record.recv_id().as_bytes()), self.lanes.len());
        self.lanes[lane].waiting.push_back(entry);
    }
}

/// The position is above the log's end, or the log differs from what was read of it.
fn is_out_of_range(log: &Log, fetch: &Fetch) -> bool {
    let differs = |kept: Kept| matches!(kept, Kept::UpTo(kept) if kept.next.0 < fetch.position);
    fetch.position > log.high || differs(log.kept(fetch.leader_epoch))
}

fn entry(record: Record, receipt: Receipt, assignment: Arc<Assignment>, upgraded: bool) -> Entry<Record> {
    let kind = match record.nature {
        Nature::Undecodable => Kind::Broken(Reason::Undecodable, "no record".into()),
        Nature::Invalid => Kind::Broken(Reason::Invalid, "breaks a rule".into()),
        Nature::Newer if !upgraded => Kind::Newer("of a newer version".into()),
        _ => Kind::Message,
    };
    Entry::new(assignment, receipt, kind, record)
}
