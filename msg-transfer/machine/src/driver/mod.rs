//! The driver of the consumer's machine: it turns the reports of Kafka and the lanes into events, and carries the
//! actions out. It does so through two traits ([`Kafka`], [`Surroundings`]), so the service and the simulator run the
//! same code. It runs on the consumer's thread and never waits for a lane.

mod committing;
mod fetching;
mod io;
mod releasing;
mod resume_poll;
#[cfg(test)]
mod tests;
mod throttling;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use self::io::{
    CommitTimedOut, FailedFetch, FetchStart, Fetched, Happened, Io, Kafka, ProgressRow, Record, Report, State,
    Surroundings, TopicIs,
};
use self::releasing::Releasing;
use self::throttling::ThrottledRecords;
use crate::consumer::{Action, Event, Machine};
use crate::lane::lane_for;
use crate::{Assignment, Epoch, Millis, Partition};

#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The maximum wait for a record, or for a lane, before everything else is polled again. It delays commits and
    /// rebalances, never a row.
    pub wait: Millis,
    /// The same while nothing is in flight. It delays rebalances, the stop, and the next step of a commit.
    pub idle_wait: Millis,
    /// The time in which the lanes have to store the records of revoked partitions. Well below the group's rebalance
    /// timeout.
    pub drain: Millis,
    pub last_commit: Millis,
    pub commit: Millis,
    /// The interval of the checks of everything that sends no event.
    pub check: Millis,
}

/// A call that is made after the response to a revocation.
#[derive(Debug)]
enum Postponed {
    StopFetching,
    /// Fetching stops, and starts again from here.
    Refetch(FetchStart),
}

/// An offset commit without a result.
#[derive(Debug)]
struct PendingCommit {
    round: usize,
    deadline: Millis,
}

#[derive(Debug)]
pub struct Driver<R> {
    times: Times,
    machine: Machine,
    /// The assignments that have not ended; the lanes share them.
    assignments: BTreeMap<Epoch, Arc<Assignment>>,
    /// The partitions that the client fetches.
    fetching: BTreeSet<Partition>,
    /// The partitions whose fetch starts at the end of this turn.
    starting: BTreeMap<Partition, FetchStart>,
    /// The fetched partitions whose records are not passed to the lanes for now.
    throttled: BTreeMap<Partition, ThrottledRecords<R>>,
    commit: Option<PendingCommit>,
    /// The number of offset commits so far.
    rounds: usize,
    releasing: Option<Releasing>,
    /// Set while the group waits for the response to a revocation. An earlier call would count as the response.
    postponed: Option<BTreeMap<Partition, Postponed>>,
    stopped: bool,
    checked: Millis,
    /// The records that were just consumed; empty between two turns.
    chunk: Vec<Fetched<R>>,
}

impl<R: Record> Driver<R> {
    /// Creates a driver of a machine without partitions.
    pub fn new(machine: Machine, times: Times) -> Self {
        Driver {
            times,
            machine,
            assignments: BTreeMap::new(),
            fetching: BTreeSet::new(),
            starting: BTreeMap::new(),
            throttled: BTreeMap::new(),
            commit: None,
            rounds: 0,
            releasing: None,
            postponed: None,
            stopped: false,
            checked: 0,
            chunk: Vec::new(),
        }
    }

    /// Returns the machine, for the simulator's checks.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Does the work that is due, or waits up to `Times::wait` for some. If `stop` is true, it drains the lanes,
    /// commits and releases all partitions. Returns false when that is done.
    pub fn turn(&mut self, io: &mut impl Io<Record = R>, stop: bool) -> bool {
        if !self.is_releasing() {
            if stop && !self.stopped {
                self.stop(io);
            } else {
                self.poll(io);
            }
        }
        if self.stopped && !self.is_releasing() {
            return false;
        }
        self.step(io);
        let now = io.now();
        if now >= self.checked + self.times.check && !self.is_releasing() {
            self.checked = now;
            self.check(io);
        }
        !self.stopped || self.is_releasing()
    }

    /// Handles all events of Kafka's queue: a record among them must be handled before the records after it are
    /// consumed. While partitions are released no event is handled: the next rebalance waits.
    fn poll(&mut self, io: &mut impl Io<Record = R>) {
        while !self.is_releasing()
            && let Some(happened) = io.poll()
        {
            self.happened(io, happened);
        }
    }

    /// Handles an event from the queue of events, or from a callback while the consumer is closed.
    pub fn happened(&mut self, io: &mut impl Io<Record = R>, happened: Happened) {
        match happened {
            Happened::Assigned(partitions) => self.assigned(io, partitions),
            Happened::Revoked(partitions) => self.revoked(io, partitions),
            Happened::FetchFailed(partition, error) => {
                let mut actions = Vec::new();
                self.fetch_failed(io, partition, error, &mut actions);
                self.carry_out(io, actions);
            }
            Happened::Record(partition, offset) => {
                // The record is not in the ledger: it is fetched again.
                io.report(Report::Strayed(partition, offset));
                self.handle(io, Event::RestartPartition(partition));
            }
        }
    }

    /// Consumes records if there is capacity, and handles the events of lanes and tasks.
    fn step(&mut self, io: &mut impl Io<Record = R>) {
        if self.consumes() {
            self.pass_throttled(io);
        }
        let wait = if self.is_idle() { self.times.idle_wait } else { self.times.wait };
        // Throttled records count too: together with a chunk they could exceed the limits by more than a chunk.
        if self.consumes() {
            self.consume(io, wait);
        } else if let Some(event) = io.next_event(wait) {
            self.handle(io, event);
        }
        while let Some(event) = io.next_event(0) {
            self.handle(io, event);
        }
        self.start_fetching(io);
        self.poll_commit(io);
        self.handle(io, Event::Tick);
        self.continue_release(io);
        io.report(Report::Turn { inflight: self.machine.inflight(), throttled: self.throttled.len() });
    }

    /// While partitions are released nothing is consumed: a partition that restarts meanwhile is still fetched from its
    /// old position.
    fn consumes(&mut self) -> bool {
        self.machine.wants_records() && !self.is_releasing()
    }

    /// Returns whether nothing but a record or a rebalance is expected: no report of a lane, no response to a commit,
    /// and no start offset of a first assignment.
    fn is_idle(&self) -> bool {
        let idle = self.machine.inflight() == (0, 0) && self.commit.is_none() && !self.is_releasing();
        idle && !self.fetching.is_empty()
    }

    fn consume(&mut self, io: &mut impl Io<Record = R>, wait: Millis) {
        let mut chunk = std::mem::take(&mut self.chunk);
        io.consume(wait, &mut chunk);
        let count = chunk.iter().filter(|fetched| matches!(fetched, Fetched::Record(_))).count();
        let mut actions = Vec::new();
        for fetched in chunk.drain(..) {
            // It was consumed together with the record that throttled its partition, or was forwarded before.
            if let Some(throttled) = self.throttled.get_mut(&fetched.partition()) {
                throttled.push(fetched);
            } else {
                self.dispatch(io, fetched, &mut actions);
            }
        }
        self.chunk = chunk;
        io.report(Report::Consumed(count));
        self.carry_out(io, actions);
    }

    /// Keeps the order: after an error nothing is received until the partition is fetched again.
    fn dispatch(&mut self, io: &mut impl Io<Record = R>, fetched: Fetched<R>, actions: &mut Vec<Action>) {
        match fetched {
            Fetched::Record(record) => self.receive(io, record, actions),
            Fetched::Failed(partition, error) => self.fetch_failed(io, partition, error, actions),
        }
    }

    /// Passes a record to the machine, and to its lane unless the machine drops it.
    fn receive(&mut self, io: &mut impl Io<Record = R>, record: R, actions: &mut Vec<Action>) {
        let (partition, offset) = (record.partition(), record.offset());
        let epoch = self.machine.receive(partition, (offset, record.leader_epoch()), record.cost(), actions);
        io.report(Report::Received(offset, partition, epoch));
        if let Some(Action::Throttle { partition }) = actions.last() {
            // Before the action is carried out, because the rest of the chunk must wait too.
            self.throttled.entry(*partition).or_default();
        }
        let Some(assignment) = epoch.and_then(|epoch| self.assignments.get(&epoch)) else { return };
        let lane = lane_for(record.key(), io.lanes());
        io.pass(lane, record, assignment);
    }

    fn handle(&mut self, io: &mut impl Io<Record = R>, event: Event) {
        io.report(Report::Event(&event));
        let mut actions = Vec::new();
        self.machine.handle(event, io.now(), &mut actions);
        self.carry_out(io, actions);
    }

    fn carry_out(&mut self, io: &mut impl Io<Record = R>, actions: Vec<Action>) {
        let (mut unresolved, mut stopped) = (Vec::new(), BTreeSet::new());
        for action in actions {
            io.report(Report::Action(&action));
            match action {
                Action::ResolveStart { partition, epoch } => unresolved.push((partition, epoch)),
                Action::Fetch { partition, epoch, from } => match &mut self.postponed {
                    Some(postponed) => {
                        postponed.insert(partition, Postponed::Refetch(FetchStart { epoch, from }));
                    }
                    None => self.fetch(partition, FetchStart { epoch, from }),
                },
                Action::Throttle { partition } => self.throttle(io, partition),
                Action::Unthrottle { partition } => self.unthrottle(partition),
                Action::DeadLettersApproved { lane } => io.approve_dead_letters(lane),
                Action::StopFetching { partition } => match &mut self.postponed {
                    Some(postponed) => {
                        postponed.insert(partition, Postponed::StopFetching);
                    }
                    None => {
                        stopped.insert(partition);
                    }
                },
                Action::Fence { epoch } => {
                    // It stays until the release: records that were stored under it can still be committed.
                    if let Some(assignment) = self.assignments.get(&epoch) {
                        assignment.fence();
                    }
                }
                Action::Halted { .. } | Action::Unhalted { .. } => {
                    io.report(Report::Halted(&self.machine.halted().collect::<Vec<_>>()));
                }
                Action::FetchFailing { .. } => self.report_failing(io),
                Action::FetchRecovered { partition, attempts } => {
                    if !self.machine.is_halted(partition) {
                        io.report(Report::Recovered(partition, attempts));
                    }
                    self.report_failing(io);
                }
                Action::SaveProgress(points) => self.save_progress(io, &points),
                Action::Commit(points) => self.start_commit(io, &points),
                Action::Release(_) => {
                    self.released();
                    self.forget_assignments();
                    self.report_states(io);
                }
            }
        }
        self.stop_fetching(io, &stopped);
        if !unresolved.is_empty() {
            self.resolve(io, unresolved);
        }
    }

    /// Forgets the assignments that have ended. A fenced one may not have ended: records that were stored before the
    /// fence can still be committed.
    fn forget_assignments(&mut self) {
        let machine = &self.machine;
        self.assignments.retain(|epoch, _| machine.has_assignment(*epoch));
    }

    fn resolve(&mut self, io: &mut impl Io<Record = R>, unresolved: Vec<(Partition, Epoch)>) {
        self.forget_assignments();
        for (_, epoch) in &unresolved {
            self.assignments.insert(*epoch, Arc::new(Assignment::new(*epoch)));
        }
        let assignments =
            unresolved.into_iter().map(|(partition, epoch)| (partition, self.assignments[&epoch].clone()));
        let retried = self.machine.failing().map(|(partition, _)| partition).collect();
        io.resolve(assignments.collect(), retried);
    }
}
