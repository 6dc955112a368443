//! Drives the machine with Kafka on one side and the lanes on the other: turns what happens into events, and carries the
//! actions out. It lives on the consumer's thread and never waits for a lane.

mod committing;
mod failing;
mod fetching;
mod holding;
mod looking;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use machine::consumer::{Action, Event, Machine};
use machine::lane::lane_for;
use machine::{Assignment, Epoch, Millis, Partition, Progress};
use msg_common::admin::Readiness;
use msg_common::kafka::cause::Causes;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;

use self::failing::Failure;
use self::holding::Held;
use super::context::Context;
use super::lookup::Lookup;
use super::progress::ProgressKeeper;
use super::raw::{self, CommitQueue, Fetched, RawRecord, RecordsQueue};
use super::stalls::Silence;
use super::starts;
use crate::lag::states::States;
use crate::lane::Handle as Lane;
use crate::lane::item::Item;
use crate::metrics;

/// How long to wait for a record, or for a lane, before looking at everything else again. It delays commits and
/// rebalances, never a row.
const WAIT: Duration = Duration::from_millis(20);

/// Deadlines for giving partitions back.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For the lanes to store what they have. Well below the group's patience.
    pub drain: Duration,
    /// After that, for the commit.
    pub commit: Duration,
}

/// What the driver works with.
pub struct Parts {
    /// The topic.
    pub topic: String,
    /// Where records go, by lane.
    pub lanes: Vec<Lane>,
    /// What lanes and tasks report.
    pub events: Receiver<Event>,
    /// Where tasks report to.
    pub report: Sender<Event>,
    /// Asked where to start.
    pub lookup: Lookup,
    /// Told what is waited for.
    pub silence: Silence,
    /// Writes the progress rows.
    pub progress: ProgressKeeper,
    /// Where tasks run.
    pub runtime: Handle,
    /// Says what keeps the process from being ready.
    pub readiness: Readiness,
    /// Notified of what is being done with each partition.
    pub states: States,
    /// Deadlines for giving partitions back.
    pub deadlines: Deadlines,
    /// Begin with the oldest record where the wanted one is deleted.
    pub start_at_oldest: bool,
    /// How far back dead letters count for the limit, in offsets.
    pub dead_letter_window: i64,
}

/// The driver.
pub struct Driver {
    parts: Parts,
    machine: Machine,
    begun: Instant,
    queues: Option<(RecordsQueue, CommitQueue)>,
    /// The assignments that are not over, with what the lanes need to know of each.
    assignments: HashMap<Epoch, Arc<Assignment>>,
    /// The partitions that librdkafka fetches.
    fetching: BTreeSet<Partition>,
    /// Those that are to be fetched from the end of this turn on.
    starting: BTreeMap<Partition, (Epoch, Progress)>,
    /// Those of them that hand nothing over for now.
    paused: BTreeMap<Partition, Held>,
    halted: BTreeMap<Partition, String>,
    /// Partitions whose fetch fails, and why.
    failing: BTreeMap<Partition, Failure>,
    commit: Option<(usize, Instant)>,
    rounds: usize,
    /// Saves of progress that failed in a row.
    failed_saves: Arc<AtomicUsize>,
    released: bool,
    /// While the group waits for an answer to a revocation: partitions that are to be stopped then, and where to begin them
    /// again. Done at once, it would be taken for the answer.
    postponed: Option<BTreeMap<Partition, Option<(Epoch, Progress)>>>,
    causes: Causes,
}

impl Driver {
    /// Owns nothing yet.
    pub fn new(parts: Parts, machine: Machine) -> Self {
        Driver {
            parts,
            machine,
            begun: Instant::now(),
            queues: None,
            assignments: HashMap::new(),
            fetching: BTreeSet::new(),
            starting: BTreeMap::new(),
            paused: BTreeMap::new(),
            halted: BTreeMap::new(),
            failing: BTreeMap::new(),
            commit: None,
            rounds: 0,
            failed_saves: Arc::default(),
            released: false,
            postponed: None,
            causes: Causes::default(),
        }
    }

    /// Makes the queues. Once, before the first step.
    pub fn open(&mut self, consumer: &BaseConsumer<Context>) {
        self.queues = Some((RecordsQueue::new(consumer.client()), CommitQueue::new(consumer.client())));
    }

    /// Gives the queues back. Before the consumer is dropped.
    pub fn close(&mut self) {
        self.queues = None;
    }

    /// One turn: takes records in if there is room, and carries out what follows from all that happened.
    pub fn step(&mut self, consumer: &BaseConsumer<Context>) {
        // While a partition is given back nothing is taken in: what starts anew meanwhile is still fetched from where it was.
        if self.machine.wants_records() && !self.machine.is_leaving() {
            self.hand_over_held(consumer);
            self.consume(consumer, WAIT);
        } else if let Ok(event) = self.parts.events.recv_timeout(WAIT) {
            self.handle(consumer, event);
        }
        while let Ok(event) = self.parts.events.try_recv() {
            self.handle(consumer, event);
        }
        self.start_fetching(consumer);
        self.poll_commit(consumer);
        self.handle(consumer, Event::Tick);
        let (bytes, records) = self.machine.inflight();
        metrics::inflight(bytes, records);
        metrics::paused(self.paused.len());
    }

    /// Stops: drains the lanes, commits, and lets go of everything.
    pub fn stop(&mut self, consumer: &BaseConsumer<Context>) {
        self.give_back(consumer, Event::Stop);
    }

    /// The client has an error. While we are in no group, it may be why.
    pub fn explain(&self, error: &KafkaError, detail: &str) {
        self.causes.note(error, detail);
        if let Some(cause) = self.causes.recent() {
            self.parts.readiness.explain("group", format!("cannot join the group: {cause}"));
        }
    }

    /// The group gave us these. They are fetched once their starts are known.
    pub fn assigned(&mut self, consumer: &BaseConsumer<Context>, partitions: Vec<Partition>) {
        tracing::info!(?partitions, "assigned");
        metrics::rebalanced("assigned", partitions.len());
        self.parts.readiness.ready("group");
        if !partitions.is_empty() {
            self.parts.readiness.ready("topic");
        }
        // An answer to the group, with nothing to fetch yet.
        self.carried("assign", raw::incremental_assign(consumer.client(), &TopicPartitionList::new()));
        self.parts.states.assigned(&partitions);
        self.handle(consumer, Event::Assigned(partitions));
    }

    /// The group takes these back, and waits until this returns.
    pub fn revoked(&mut self, consumer: &BaseConsumer<Context>, partitions: &[Partition]) {
        tracing::info!(?partitions, "revoked, draining");
        metrics::rebalanced("revoked", partitions.len());
        self.postponed = Some(BTreeMap::new());
        self.give_back(consumer, Event::Revoked(partitions.to_vec()));
        self.answer_revocation(consumer, partitions);
    }

    /// These may already be another's.
    pub fn lost(&mut self, consumer: &BaseConsumer<Context>, partitions: &[Partition]) {
        tracing::warn!(?partitions, "lost");
        self.parts.readiness.not_ready("group", "the group went on without us, joining again");
        metrics::rebalanced("lost", partitions.len());
        self.postponed = Some(BTreeMap::new());
        self.handle(consumer, Event::Lost(partitions.to_vec()));
        self.answer_revocation(consumer, partitions);
    }

    fn answer_revocation(&mut self, consumer: &BaseConsumer<Context>, partitions: &[Partition]) {
        let list = self.fetched_among(partitions);
        self.unassign(consumer, &list);
        let postponed = self.postponed.take().unwrap_or_default();
        self.stop_fetching(consumer, &postponed.keys().copied().collect::<Vec<_>>());
        for (partition, again) in postponed {
            if let Some((epoch, from)) = again {
                self.fetch(partition, epoch, from);
            }
        }
        self.start_fetching(consumer);
    }

    /// What was fetched last of it may not follow what we have: its start is resolved again.
    pub fn restart(&mut self, consumer: &BaseConsumer<Context>, partition: Partition) {
        self.handle(consumer, Event::RestartPartition(partition));
    }

    fn give_back(&mut self, consumer: &BaseConsumer<Context>, event: Event) {
        // Nothing is taken in meanwhile.
        self.parts.silence.fetching(Instant::now(), []);
        self.released = false;
        self.handle(consumer, event);
        let drain = Instant::now() + self.parts.deadlines.drain;
        while !self.released && Instant::now() < drain {
            self.step(consumer);
        }
        if self.released {
            return;
        }
        tracing::warn!("not all was stored within the drain's deadline; the next owner will repeat the rest");
        self.handle(consumer, Event::DrainExpired);
        let commit = Instant::now() + self.parts.deadlines.commit;
        while !self.released && Instant::now() < commit {
            self.step(consumer);
        }
        if !self.released {
            tracing::warn!("the last commit was not answered; the next owner will repeat what it covered");
            self.handle(consumer, Event::ReleaseExpired);
        }
    }

    fn consume(&mut self, consumer: &BaseConsumer<Context>, wait: Duration) {
        let Some((mut records, commits)) = self.queues.take() else { return };
        let mut actions = Vec::new();
        let mut count = 0;
        records.consume(wait, |fetched| {
            count += usize::from(matches!(fetched, Fetched::Record(_)));
            // It was on its way when its partition was paused.
            match self.paused.get_mut(&fetched.partition()) {
                Some(held) => held.fetched.push_back(fetched),
                None => self.take(fetched, &mut actions),
            }
        });
        self.queues = Some((records, commits));
        metrics::consumed(count);
        self.carry_out(consumer, actions);
    }

    /// In order: behind an error nothing is received before the partition is fetched again.
    fn take(&mut self, fetched: Fetched, actions: &mut Vec<Action>) {
        match fetched {
            Fetched::Record(record) => self.receive(record, actions),
            Fetched::Failed(partition, error) => self.failed(partition, &error, actions),
        }
    }

    /// Hands a record to the machine, and to its lane if the machine takes it.
    fn receive(&mut self, record: RawRecord, actions: &mut Vec<Action>) {
        let epoch =
            self.machine.receive(record.partition, (record.offset, record.leader_epoch), record.cost(), actions);
        if let Some(Action::Pause { partition }) = actions.last() {
            // At once: the rest of what was taken from Kafka with it is held.
            self.paused.entry(*partition).or_default();
        }
        let Some(assignment) = epoch.and_then(|epoch| self.assignments.get(&epoch)) else { return };
        let lane = lane_for(record.key.as_deref(), self.parts.lanes.len());
        let item = Item {
            partition: record.partition,
            offset: record.offset,
            leader_epoch: record.leader_epoch,
            assignment: assignment.clone(),
            key: record.key,
            value: record.value,
            headers: record.headers,
        };
        // A lane ends only with the process; what it does not take is not settled.
        if let Err(error) = self.parts.lanes[lane].items.try_send(item) {
            tracing::error!(lane, %error, "a lane does not take records");
        }
    }

    fn handle(&mut self, consumer: &BaseConsumer<Context>, event: Event) {
        let mut actions = Vec::new();
        self.machine.handle(event, self.now(), &mut actions);
        self.carry_out(consumer, actions);
    }

    fn now(&self) -> Millis {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn carry_out(&mut self, consumer: &BaseConsumer<Context>, actions: Vec<Action>) {
        let (mut unresolved, mut stopped) = (Vec::new(), Vec::new());
        for action in actions {
            match action {
                Action::ResolveStart { partition, epoch } => unresolved.push((partition, epoch)),
                Action::Fetch { partition, epoch, from } => match &mut self.postponed {
                    Some(postponed) => {
                        postponed.insert(partition, Some((epoch, from)));
                    }
                    None => self.fetch(partition, epoch, from),
                },
                Action::Pause { partition } => self.pause(consumer, partition),
                Action::Unpause { partition } => self.unpause(partition),
                Action::Permitted { lane } => self.parts.lanes[lane].permitted.notify_one(),
                Action::StopFetching { partition } => match &mut self.postponed {
                    Some(postponed) => {
                        postponed.insert(partition, None);
                    }
                    None => stopped.push(partition),
                },
                Action::Fence { epoch } => {
                    // Kept until it is let go: what was stored under it can still be committed.
                    if let Some(assignment) = self.assignments.get(&epoch) {
                        assignment.fence();
                    }
                }
                Action::Halted { partition, reason } => {
                    tracing::error!(partition, reason, "the partition stands still");
                    self.halted.insert(partition, reason);
                    self.tell_halted();
                }
                Action::Unhalted { partition } => {
                    self.halted.remove(&partition);
                    self.tell_halted();
                }
                Action::FetchFailing { partition, at, attempts, text } => {
                    self.fetch_failing(partition, at, attempts, text);
                }
                Action::FetchRecovered { partition } => self.fetch_recovered(partition),
                Action::SaveProgress(marks) => self.save_progress(&marks),
                Action::Commit(marks) => self.start_commit(consumer, &marks),
                Action::Release(partitions) => {
                    tracing::info!(?partitions, "let go");
                    self.released = true;
                    self.forget_assignments();
                    self.tell_states();
                }
            }
        }
        self.stop_fetching(consumer, &stopped);
        if !unresolved.is_empty() {
            self.resolve(unresolved);
        }
    }

    /// Forgets those that the machine does not speak of any more. A fence is no sign of it: what was stored before it was
    /// raised can still be committed.
    fn forget_assignments(&mut self) {
        let machine = &self.machine;
        self.assignments.retain(|epoch, _| machine.speaks_of(*epoch));
    }

    fn resolve(&mut self, unresolved: Vec<(Partition, Epoch)>) {
        let task = starts::Resolve {
            lookup: self.parts.lookup.clone(),
            report: self.parts.report.clone(),
            readiness: self.parts.readiness.clone(),
            accept_loss: self.parts.start_at_oldest,
            dead_letter_window: self.parts.dead_letter_window,
            retried: self.failing.keys().copied().collect(),
        };
        self.forget_assignments();
        for (_, epoch) in &unresolved {
            self.assignments.insert(*epoch, Arc::new(Assignment::new(*epoch)));
        }
        let asked =
            unresolved.into_iter().map(|(partition, epoch)| (partition, self.assignments[&epoch].clone())).collect();
        self.parts.runtime.spawn(task.run(asked));
    }

    fn tell_halted(&self) {
        metrics::halted(self.halted.len());
        if self.halted.is_empty() {
            self.parts.readiness.ready("partitions");
        } else {
            let reasons: Vec<_> =
                self.halted.iter().map(|(p, reason)| format!("{} partition {p}: {reason}", self.parts.topic)).collect();
            self.parts.readiness.not_ready("partitions", reasons.join("; "));
        }
    }
}
