//! One process: the service's driver and machines, with models instead of librdkafka and the database. Its thread, its
//! lanes, its tasks and librdkafka's threads take turns, as the choices say.

mod io;
mod lane;
pub(crate) mod library;
mod reference;
mod starts;

use std::collections::VecDeque;

use machine::Partition;
use machine::consumer::{Event, FetchError, Machine};
use machine::driver::{Driver, Kafka};

use self::io::{Commits, Io};
use self::lane::Lane;
use self::library::Library;
use self::reference::ReferenceTask;
use self::starts::Starts;
use crate::database::Client;
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::log::Record;

/// The reason for which a partition is halted if its records cannot be read.
const DAMAGED: &str = "damaged";

/// The number of turns that is always enough to finish the last callback after a stop.
const CLOSING_TURNS: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Down,
    Up,
    /// Stopped by SIGSTOP: the process does nothing, and does not know of the pause when it resumes.
    Frozen,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) state: State,
    pub(crate) driver: Driver<Record>,
    pub(crate) parts: Parts,
    /// Whether the process has received SIGTERM.
    is_stopping: bool,
}

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) number: usize,
    pub(crate) restarts: u32,
    lanes: Vec<Lane>,
    reference: ReferenceTask,
    starts: Starts,
    pub(crate) library: Library,
    commits: Commits,
    /// The events that lanes and tasks have reported to the thread.
    pub(crate) events: VecDeque<Event>,
    /// Whether the thread did something in this turn.
    busy: bool,
}

impl Process {
    pub(crate) fn new(number: usize, restarts: u32, env: &Env) -> Self {
        let config = &env.config;
        let client = |lane| Client { process: number, restarts, lane };
        let parts = Parts {
            number,
            restarts,
            lanes: (0..config.lanes).map(|lane| Lane::new(lane, client(Some(lane)), config)).collect(),
            reference: ReferenceTask::new(client(None)),
            starts: Starts::default(),
            library: Library::default(),
            commits: Commits::default(),
            events: VecDeque::new(),
            busy: false,
        };
        let driver = Driver::new(Machine::new(config.settings.clone()), config.times);
        Process { state: State::Up, driver, parts, is_stopping: false }
    }

    /// Returns the number of threads and tasks that take turns.
    pub(crate) fn turns(&self) -> usize {
        6 + self.parts.lanes.len()
    }

    /// Gives a turn to one of the threads and tasks. Returns false if that one had nothing to do.
    pub(crate) fn turn(&mut self, turn: usize, env: &mut Env) -> bool {
        let parts = &mut self.parts;
        match turn {
            0 | 1 => self.thread_turn(env),
            2 => parts.library.turn(env),
            3 => parts.reference_turn(env),
            4 => parts.starts_turn(env),
            5 => parts.library.membership_turn(parts.number, env),
            lane => parts.lane_turn(lane - 6, env),
        }
    }

    fn thread_turn(&mut self, env: &mut Env) -> bool {
        self.parts.busy = false;
        let mut io = Io { parts: &mut self.parts, env };
        if self.driver.turn(&mut io, self.is_stopping) {
            return self.parts.busy;
        }
        self.close(env);
        true
    }

    /// Closes the consumer after all partitions are released, and leaves the group.
    fn close(&mut self, env: &mut Env) {
        self.parts.library.close(env);
        let mut io = Io { parts: &mut self.parts, env };
        while let Some(happened) = io.poll() {
            self.driver.happened(&mut io, happened);
            for _ in 0..CLOSING_TURNS {
                if self.driver.is_releasing() {
                    self.driver.turn(&mut io, true);
                }
            }
            if self.driver.is_releasing() {
                return io.env.violate("the consumer does not close".into());
            }
        }
        if let Some(record) = self.parts.unfenced(|_| true) {
            env.violate(format!("{} leaves the group with {} in a lane", self.parts.name(), record.show()));
        }
        let id = self.parts.library.membership.member;
        if let Some(id) = id.filter(|id| !env.config.static_members && env.kafka.group.member(*id).is_some()) {
            env.kafka.group.remove(id);
        }
        self.exit(env);
    }

    /// Returns whether the process has yet to release partitions, or to respond to an assignment.
    pub(crate) fn is_rebalancing(&self) -> bool {
        self.driver.is_releasing() || self.parts.library.membership.is_rebalancing()
    }

    /// Stops the process, as SIGTERM does. Returns false if the process was stopping already.
    pub(crate) fn stop(&mut self) -> bool {
        !std::mem::replace(&mut self.is_stopping, true)
    }

    /// Ends the process and its memory. The server may still execute the statements that were sent before.
    pub(crate) fn exit(&mut self, env: &mut Env) {
        let parts = &self.parts;
        let lanes = parts.lanes.iter().filter_map(|lane| lane.session);
        for session in lanes.chain(parts.reference.session).collect::<Vec<_>>() {
            env.database.disconnect(session);
        }
        let (number, restarts) = (self.parts.number, self.parts.restarts);
        *self = Process { state: State::Down, ..Process::new(number, restarts, env) };
    }

    /// Returns whether the process has nothing to do, and all offsets of its partitions are committed.
    pub(crate) fn is_idle(&self, env: &Env) -> bool {
        let machine = self.driver.machine();
        let committed = |partition: Partition| {
            let end = env.kafka.topic().log(partition).end();
            machine.committed(partition).is_some_and(|next| next.0 >= end)
        };
        // A partition that is not fetched and not halted has yet to restart: there may be more records, or others.
        let reads = |partition| self.parts.library.is_fetched(partition) || machine.is_halted(partition);
        machine.inflight() == (0, 0)
            && self.parts.events.is_empty()
            && self.parts.library.is_idle()
            && !self.driver.is_releasing()
            && machine.partitions().all(|partition| committed(partition) && reads(partition))
    }
}

impl Parts {
    pub(crate) fn name(&self) -> String {
        format!("P{}.{}", self.number, self.restarts)
    }

    /// Returns a record of a wanted partition that a lane may still store.
    fn unfenced(&self, wanted: impl Fn(Partition) -> bool) -> Option<Record> {
        self.lanes.iter().find_map(|lane| lane.unfenced(&wanted))
    }

    /// Checks P7: the records and bytes in flight, and the number of sessions.
    fn check_bounds(&self, (bytes, records): (usize, usize), env: &mut Env) {
        let settings = &env.config.settings;
        let (more, huge) = (env.config.chunk, crate::kafka::log::RecordKind::HUGE);
        let too_many = records > settings.max_inflight_records + more;
        let too_much = bytes > settings.max_inflight_bytes + more * huge;
        if too_many || too_much {
            env.violate(format!("P7: {records} records and {bytes} bytes in flight in {}", self.name()));
        }
        let is_own = |client: &Client| client.process == self.number && client.restarts == self.restarts;
        let sessions =
            env.database.sessions.iter().filter(|session| session.client_connected && is_own(&session.client)).count();
        if sessions > self.lanes.len() + 1 {
            env.violate(format!("P7: {sessions} sessions of {}", self.name()));
        }
    }
}

fn fetch_error(damaged: bool, env: &mut Env) -> FetchError {
    env.count(Fact::FetchError);
    let jitter = if env.healing { 0.5 } else { f64::from(env.choices.choose(5)) / 4.0 };
    let text = if damaged { DAMAGED } else { "cannot be fetched" }.to_owned();
    FetchError { offset: None, damaged, text, jitter }
}
