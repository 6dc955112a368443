//! One process: the machines, and a thin driver that does what the service's does, with models in place of Kafka and the
//! database. Its thread, its lanes and its tasks take turns as the choices say.

mod committing;
mod fetching;
mod keeper;
mod lane;
mod membership;
mod starts;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use machine::consumer::{Action, Event, FetchFailure, Machine};
use machine::{Assignment, Epoch, Partition};

use self::committing::Commits;
use self::fetching::Fetching;
use self::keeper::KeeperTask;
use self::lane::Lane;
use self::membership::Membership;
use self::starts::Starts;
use crate::database::Client;
use crate::env::Env;
use crate::facts::Fact;

/// Why a partition is halted whose records cannot be read.
const DAMAGED: &str = "damaged";

/// Whether it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Down,
    Up,
    /// Stopped by a signal: it does nothing, and knows nothing of it when it wakes.
    Frozen,
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) number: usize,
    pub(crate) life: u32,
    pub(crate) state: State,
    pub(crate) machine: Machine,
    /// The assignments that are not over.
    assignments: BTreeMap<Epoch, Arc<Assignment>>,
    lanes: Vec<Lane>,
    keeper: KeeperTask,
    starts: Starts,
    fetching: Fetching,
    pub(crate) commits: Commits,
    pub(crate) membership: Membership,
    /// What lanes and tasks report to the thread.
    events: VecDeque<Event>,
    pub(crate) halted: BTreeSet<Partition>,
}

impl Process {
    pub(crate) fn new(number: usize, life: u32, env: &Env) -> Self {
        let config = &env.config;
        let client = |lane| Client { process: number, life, lane };
        Process {
            number,
            life,
            state: State::Up,
            machine: Machine::new(config.settings.clone()),
            assignments: BTreeMap::new(),
            lanes: (0..config.lanes).map(|lane| Lane::new(lane, client(Some(lane)), config)).collect(),
            keeper: KeeperTask::new(client(None)),
            starts: Starts::default(),
            fetching: Fetching::default(),
            commits: Commits::default(),
            membership: Membership::default(),
            events: VecDeque::new(),
            halted: BTreeSet::new(),
        }
    }

    pub(crate) fn name(&self) -> String {
        format!("P{}.{}", self.number, self.life)
    }

    /// How many things take turns in it.
    pub(crate) fn turns(&self) -> usize {
        6 + self.lanes.len()
    }

    /// One of them takes its turn. False: it had nothing to do.
    pub(crate) fn turn(&mut self, turn: usize, env: &mut Env) -> bool {
        match turn {
            // The thread: once all is let go it answers the group before anything else.
            0 | 1 if self.membership.is_released() => self.membership_turn(env),
            0 => self.next_event(env),
            1 => self.take_in(env),
            2 => self.fetch_some(env),
            3 => self.keeper_turn(env),
            4 => self.starts_turn(env),
            5 => self.membership_turn(env),
            lane => self.lane_turn(lane - 6, env),
        }
    }

    /// The thread hears of the next thing: a report, the answer to a commit, or that time has passed.
    fn next_event(&mut self, env: &mut Env) -> bool {
        if let Some(event) = self.events.pop_front() {
            self.handle(event, env);
            return true;
        }
        self.next_commit_answer(env)
    }

    pub(crate) fn tick(&mut self, env: &mut Env) {
        self.handle(Event::Tick, env);
    }

    /// Looks at the database's connection, as the service does from time to time.
    pub(crate) fn look_around(&mut self) {
        self.keeper.check();
    }

    /// The fetch of a partition ends in an error.
    pub(crate) fn fetch_failed(&mut self, partition: Partition, damaged: bool, env: &mut Env) {
        let failure = failure(damaged, env);
        self.handle(Event::FetchFailed { partition, failure }, env);
    }

    pub(crate) fn handle(&mut self, event: Event, env: &mut Env) {
        if env.trace.is_some() && !matches!(event, Event::Tick) {
            let name = self.name();
            env.say(|| format!("{name}: {}", show(&event)));
        }
        if let Event::Dropped(receipts) = &event {
            env.facts.add(Fact::Fenced, receipts.len());
        }
        if let Event::Blocked(receipts) = &event {
            env.facts.add(Fact::BlockedFound, receipts.len());
        }
        let mut actions = Vec::new();
        self.machine.handle(event, env.now, &mut actions);
        self.carry_out(actions, env);
    }

    fn carry_out(&mut self, actions: Vec<Action>, env: &mut Env) {
        let mut unresolved = Vec::new();
        for action in actions {
            if env.trace.is_some() {
                let name = self.name();
                env.say(|| format!("{name}:   -> {action:?}"));
            }
            match action {
                Action::ResolveStart { partition, epoch } => unresolved.push((partition, epoch)),
                // While the group waits for an answer to a revocation, both wait too, and the last word counts.
                Action::Fetch { partition, epoch, from } => match &mut self.membership.postponed {
                    Some(postponed) => {
                        postponed.insert(partition, Some((epoch, from)));
                    }
                    None => self.fetch(partition, epoch, from, env),
                },
                Action::StopFetching { partition } => match &mut self.membership.postponed {
                    Some(postponed) => {
                        postponed.insert(partition, None);
                    }
                    None => self.fetching.stop(partition),
                },
                Action::Pause { partition } => {
                    env.count(Fact::Paused);
                    self.fetching.pause(partition);
                }
                Action::Unpause { partition } => {
                    env.count(Fact::Unpaused);
                    self.fetching.unpause(partition);
                }
                Action::Fence { epoch } => {
                    if let Some(assignment) = self.assignments.get(&epoch) {
                        assignment.fence();
                    }
                }
                Action::Permitted { lane } => self.lanes[lane].permitted(),
                Action::Halted { partition, reason } => {
                    env.count(Fact::Halted);
                    let fact = [
                        ("would be dead letters", Fact::Breaker),
                        ("may have been deleted", Fact::DeletedUnread),
                        ("newer", Fact::NewerHalt),
                        (DAMAGED, Fact::DamageHalt),
                    ];
                    fact.into_iter().filter(|(part, _)| reason.contains(part)).for_each(|(_, fact)| env.count(fact));
                    self.halted.insert(partition);
                }
                Action::Unhalted { partition } => {
                    self.halted.remove(&partition);
                }
                Action::FetchFailing { .. } => env.count(Fact::FetchFailing),
                Action::FetchRecovered { .. } => env.count(Fact::FetchRecovered),
                Action::SaveProgress(marks) => self.save_progress(&marks),
                Action::Commit(marks) => self.start_commit(marks, env),
                Action::Release(_) => {
                    self.membership.released = true;
                    self.forget_assignments();
                }
            }
        }
        if !unresolved.is_empty() {
            env.facts.add(Fact::Restarted, unresolved.len());
            self.resolve(&unresolved);
        }
    }

    fn forget_assignments(&mut self) {
        let machine = &self.machine;
        self.assignments.retain(|epoch, _| machine.speaks_of(*epoch));
    }

    /// It is gone, with all that it knew. The server may still carry out what it had sent.
    pub(crate) fn die(&mut self, env: &mut Env) {
        let lanes = self.lanes.iter().filter_map(|lane| lane.session);
        for session in lanes.chain(self.keeper.session).collect::<Vec<_>>() {
            env.database.let_go(session);
        }
        let (number, life) = (self.number, self.life);
        *self = Process { state: State::Down, ..Process::new(number, life, env) };
    }

    /// It has nothing to do, and everything that it owns is committed.
    pub(crate) fn is_idle(&self, env: &Env) -> bool {
        let committed = |partition: Partition| {
            let end = env.kafka.topic().log(partition).end();
            self.machine.committed(partition).is_some_and(|next| next.0 >= end)
        };
        self.machine.inflight() == (0, 0)
            && self.events.is_empty()
            && self.membership.is_settled()
            && self.machine.partitions().all(committed)
    }

    /// P7: what is in flight, and how many sessions there are.
    pub(crate) fn check_bounds(&self, env: &mut Env) {
        let (bytes, records) = self.machine.inflight();
        let settings = &env.config.settings;
        let (more, huge) = (env.config.chunk, crate::kafka::log::Nature::HUGE);
        let too_many = records > settings.max_inflight_records + more;
        let too_much = bytes > settings.max_inflight_bytes + more * huge;
        if too_many || too_much {
            env.violate(format!("P7: {records} records and {bytes} bytes in flight in {}", self.name()));
        }
        let mine = |client: &Client| client.process == self.number && client.life == self.life;
        let sessions = env.database.sessions.iter().filter(|session| session.held && mine(&session.client)).count();
        if sessions > self.lanes.len() + 1 {
            env.violate(format!("P7: {sessions} sessions of {}", self.name()));
        }
    }
}

fn failure(damaged: bool, env: &mut Env) -> FetchFailure {
    env.count(Fact::FetchError);
    let jitter = if env.healing { 0.5 } else { f64::from(env.choices.choose(5)) / 4.0 };
    let text = if damaged { DAMAGED } else { "cannot be fetched" }.to_owned();
    FetchFailure { offset: None, damaged, text, jitter }
}

/// An event in few words.
fn show(event: &Event) -> String {
    let offsets = |receipts: &[machine::consumer::Receipt]| {
        let each = receipts.iter().map(|receipt| format!("{}@{}", receipt.partition, receipt.offset));
        each.collect::<Vec<_>>().join(", ")
    };
    match event {
        Event::Settled(receipts) => format!("settled {}", offsets(receipts)),
        Event::Blocked(receipts) => format!("blocked {}", offsets(receipts)),
        Event::Unblocked(receipts) => format!("unblocked {}", offsets(receipts)),
        Event::Dropped(receipts) => format!("dropped {}", offsets(receipts)),
        Event::Permit { lane, dead } => format!("lane {lane} asks to keep aside {}", offsets(dead)),
        other => format!("{other:?}"),
    }
}
