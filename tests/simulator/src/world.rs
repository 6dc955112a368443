//! One run: processes, Kafka and the database take turns, one step at a time, as the choices say.

use machine::{Partition, Progress};

use crate::choices::Choices;
use crate::config::Fault;
use crate::database::{Client, Statement};
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::CommitRequest;
use crate::kafka::log::INBOXES;
use crate::process::{Process, State};

/// The weights of the ordinary steps. The weight of a fault is part of the configuration.
const PROCESS: u32 = 70;
const DATABASE: u32 = 45;
const KAFKA: u32 = 8;
const PRODUCER: u32 = 7;
const CLOCK: u32 = 6;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) env: Env,
    pub(crate) processes: Vec<Process>,
    pub(crate) steps: usize,
}

impl World {
    pub(crate) fn new(choices: Choices, traced: bool) -> Self {
        let env = Env::new(choices, traced);
        let processes = (0..env.config.processes).map(|number| Process::new(number, 0, &env)).collect();
        World { env, processes, steps: 0 }
    }

    /// Runs all steps, up to the first violation, and then the healing.
    pub(crate) fn run(&mut self) {
        while self.steps < self.env.config.steps && self.env.violation.is_none() {
            self.step();
        }
        self.heal();
    }

    fn step(&mut self) {
        self.steps += 1;
        let fault = self.env.config.fault_weight;
        match self.env.choices.weighted(&[PROCESS, DATABASE, KAFKA, PRODUCER, CLOCK, fault]) {
            0 => self.process_step(),
            1 => self.database_step(),
            2 => self.kafka_step(),
            3 => {
                self.env.produce();
            }
            4 => self.clock_step(),
            _ => self.fault_step(),
        }
    }

    fn process_step(&mut self) {
        let number = self.env.choices.index(self.processes.len());
        let process = &mut self.processes[number];
        if process.state != State::Up {
            return;
        }
        let turns = process.turns();
        let first = self.env.choices.index(turns);
        // A thread or task that has nothing to do leaves its turn to the next one.
        for index in 0..turns {
            if process.turn((first + index) % turns, &mut self.env) {
                break;
            }
        }
    }

    fn database_step(&mut self) {
        let env = &mut self.env;
        if !env.database.invisible.is_empty() && env.choices.one_in(8) {
            self.make_visible(0);
            return;
        }
        let ready = |session: &&crate::database::Session| {
            session.alive
                && (!session.client_connected || (session.request.is_some() && !env.database.is_waiting(session)))
        };
        let sessions: Vec<_> =
            env.database.sessions.iter().filter(ready).map(|session| (session.id, session.client_connected)).collect();
        if sessions.is_empty() {
            return;
        }
        let (id, client_connected) = sessions[env.choices.index(sessions.len())];
        let session = env.database.session(id).expect("the session was found above");
        if !client_connected && (session.request.is_none() || env.choices.one_in(3)) {
            let client = env.database.session(id).expect("the session was found above").client;
            env.trace_step(|| format!("  db: notices that {} has disconnected", client.show()));
            env.database.end(id);
            return;
        }
        self.execute(id);
    }

    pub(crate) fn execute(&mut self, id: u32) {
        let Some(session) = self.env.database.session(id) else { return };
        let commits = matches!(session.request, Some(Statement::Commit));
        let writes = session.transaction.as_ref().is_some_and(|open| !open.rows.is_empty());
        let client = session.client;
        let process = client.process;
        let saves = if let Some(Statement::Save(rows)) = &session.request { rows.clone() } else { Vec::new() };
        let before = self.env.database.tables.commits();
        let rows_before: Vec<_> = saves.iter().map(|row| self.env.database.tables.progress_of(row.0, row.1)).collect();
        self.env.execute(id);
        for ((topic, partition, row), row_before) in saves.into_iter().zip(rows_before) {
            let tables = &self.env.database.tables;
            let is_above = row_before.is_none_or(|before: Progress| row.next > before.next);
            if is_above && tables.progress_of(topic, partition) == Some(row) && !self.owns(client, partition) {
                self.env.database.tables.saved_by_previous_owner(topic, partition, row);
            }
        }
        if commits && writes && self.env.database.tables.commits() > before {
            let member = self.processes[process].parts.library.membership.member;
            if member.is_some_and(|id| self.env.kafka.group.member(id).is_none()) {
                self.env.count(Fact::ExpelledCommit);
            }
        }
    }

    /// Returns whether the group has assigned the partition to no other process, and this process has resolved its
    /// start.
    fn owns(&self, client: Client, partition: Partition) -> bool {
        let process = &self.processes[client.process];
        let member = process.parts.library.membership.member.filter(|_| process.parts.restarts == client.restarts);
        let mut members = self.env.kafka.group.members.iter();
        // A halted partition counts too: the progress of its completed records is still saved.
        let machine = process.driver.machine();
        (machine.is_halted(partition) || machine.expected(partition).is_some())
            && members.all(|other| !other.assigned.contains(&partition) || Some(other.id) == member)
    }

    /// Makes the rows of a committed transaction visible.
    pub(crate) fn make_visible(&mut self, index: usize) {
        self.env.trace_step(|| "  db: a committed transaction becomes visible".into());
        self.env.database.make_visible(index);
        let checked = crate::oracle::check_inboxes(&self.env.database.tables, INBOXES.len());
        self.env.check(checked);
    }

    pub(crate) fn kafka_step(&mut self) {
        let env = &mut self.env;
        let absent = env.kafka.group.members.iter().find(|member| {
            let process = &self.processes[member.process];
            process.state != State::Up || process.parts.library.membership.member != Some(member.id)
        });
        if let Some(absent) = absent.map(|member| member.id)
            && (env.healing || env.choices.one_in(6))
        {
            self.expel(absent);
        } else if env.kafka.group.is_complete() {
            let members = env.kafka.group.members.len();
            let first = if env.healing { 0 } else { env.choices.index(members) };
            let partitions = env.kafka.topic().count();
            env.kafka.group.complete(partitions, first);
            env.count(Fact::Rebalance);
            if env.trace.is_some() {
                let group = format!("{:?}", env.kafka.group);
                env.trace_step(|| format!("kafka: the group is complete: {group}"));
            }
        } else if let Some(request) = env.kafka.commits.pop_front() {
            self.commit_offsets(&request);
        } else if env.kafka.group.has_unassigned_partition(env.kafka.topic().count())
            && self.processes.iter().all(|process| !process.is_rebalancing())
        {
            env.kafka.group.begin_rebalance();
        }
    }

    pub(crate) fn expel(&mut self, id: u32) {
        self.env.count(Fact::Expelled);
        self.env.trace_step(|| format!("kafka: member {id} is expelled"));
        self.env.kafka.group.remove(id);
    }

    fn commit_offsets(&mut self, request: &CommitRequest) {
        let env = &mut self.env;
        let loses = !env.healing && env.config.has(Fault::LoseCommit) && env.choices.one_in(4);
        if loses && env.choices.one_in(2) {
            env.trace_step(|| format!("kafka: {request:?} is lost"));
            return;
        }
        let accepted = env.kafka.group.accepts(request.member, request.generation);
        env.count(if accepted { Fact::OffsetsCommitted } else { Fact::OffsetsRejected });
        env.trace_step(|| format!("kafka: {} {request:?}", if accepted { "accepts" } else { "rejects" }));
        if accepted {
            for point in &request.points {
                // If the database has lost the progress row since, or the topic was recreated, the next start corrects
                // the offset.
                let is_present = request.topic == env.kafka.topic_number();
                if is_present && request.incarnation.is_none_or(|saved_to| saved_to == env.database.incarnation) {
                    env.check_completed_below("committed offset", request.topic, point.partition, point.progress());
                    let (incarnation, partition) = (env.database.incarnation, point.partition);
                    if let Some(before) = env.kafka.commit_offset(request.process, incarnation, partition, point.next.0)
                    {
                        let next = point.next.0;
                        env.violate(format!(
                            "P5: partition {partition} was committed up to {before}, and now up to {next}"
                        ));
                    }
                } else {
                    env.kafka.group.offsets.insert(point.partition, point.next.0);
                }
            }
        }
        let process = &mut self.processes[request.process];
        if process.parts.restarts == request.restarts && process.state != State::Down {
            let library = &mut process.parts.library;
            let results = if loses { &mut library.late_commit_results } else { &mut library.commit_results };
            results.push_back((request.round, accepted));
        }
    }

    fn clock_step(&mut self) {
        self.env.now += 1 + u64::from(self.env.choices.choose(60));
        self.end_phases(6);
        for number in 0..self.processes.len() {
            let env = &mut self.env;
            match self.processes[number].state {
                State::Down if env.choices.one_in(6) => self.start(number),
                State::Frozen if env.choices.one_in(10) => {
                    env.trace_step(|| format!("P{number} resumes"));
                    self.processes[number].state = State::Up;
                }
                State::Up | State::Down | State::Frozen => {}
            }
        }
    }

    /// Restarts a process, with empty memory.
    pub(crate) fn start(&mut self, number: usize) {
        let restarts = self.processes[number].parts.restarts + 1;
        self.env.count(Fact::Started);
        self.env.trace_step(|| format!("P{number} restarts"));
        if self.env.config.static_members && self.env.kafka.group.members.iter().any(|m| m.process == number) {
            self.env.count(Fact::Takeover);
        }
        self.processes[number] = Process::new(number, restarts, &self.env);
    }
}
