//! The end of a run: no more faults, every process runs, and every record must be stored and committed within a limit.
//! The processes run in a fixed order.

use machine::Progress;

use crate::config::BlockedEnd;
use crate::facts::Fact;
use crate::process::State;
use crate::world::World;

/// The number of rounds in which everything must be completed.
const MAX_ROUNDS: usize = 2000;

impl World {
    pub(crate) fn heal(&mut self) {
        if self.env.violation.is_some() {
            return;
        }
        self.env.trace_step(|| "everything heals".into());
        self.env.healing = true;
        self.env.upgraded = true;
        if self.env.database.rejects_all {
            // A change of the table queues for its lock and gets it after the transactions before it. The model has no
            // such queue: end those transactions.
            self.env.database.restart(false);
            self.env.database.rejects_all = false;
        }
        if let Some(others) = self.env.config.blocked_end {
            self.end_while_blocked(others);
        }
        self.env.database.blocked.clear();
        for round in 0..MAX_ROUNDS {
            self.env.count(Fact::HealingRounds);
            self.round(round);
            if self.env.violation.is_some() {
                return;
            }
            if self.is_done() {
                let checked = self.env.oracle.check_end(&self.env.kafka, &self.env.database);
                self.env.check(checked);
                return;
            }
        }
        let missing = self.missing();
        self.env.violate(format!("stuck: {missing}"));
    }

    /// Blocks some inboxes, and requires that the records of all others are completed.
    fn end_while_blocked(&mut self, others: BlockedEnd) {
        self.env.count(Fact::BlockedEnd);
        self.env.database.blocked.clear();
        for _ in 0..1 + self.env.choices.index(3) {
            self.block_inbox();
        }
        for round in 0..MAX_ROUNDS {
            self.round(round);
            if self.env.violation.is_some() || self.others_are_completed(others) {
                return;
            }
        }
        let missing = self.missing();
        self.env.violate(format!("P8: stuck behind a blocked inbox: {missing}"));
    }

    fn others_are_completed(&self, others: BlockedEnd) -> bool {
        let env = &self.env;
        let blocked = &env.database.blocked;
        let partitions = env.config.partitions;
        env.kafka.topic().partitions.iter().flat_map(|log| log.from(0)).all(|record| {
            let waits = match others {
                BlockedEnd::OtherInboxes => blocked.contains_key(&record.inbox),
                BlockedEnd::OtherPartitions => {
                    blocked.keys().any(|inbox| i32::from(*inbox) % partitions == record.partition)
                }
            };
            waits || crate::oracle::is_completed(&env.database, record)
        })
    }

    fn round(&mut self, round: usize) {
        self.env.now += 100;
        self.end_phases(1);
        while !self.env.database.invisible.is_empty() {
            self.make_visible(0);
        }
        let deleted = self.env.kafka.topic().partitions.iter().any(|log| log.low > 0);
        // The operator accepts the loss only after the rounds in which every readable record can be stored.
        if deleted && round > 20 {
            self.env.accept_loss = true;
            self.env.oracle.loss_accepted = true;
        }
        for number in 0..self.processes.len() {
            match self.processes[number].state {
                State::Down => self.start(number),
                State::Frozen => self.processes[number].state = State::Up,
                State::Up => {}
            }
        }
        if round % 4 == 3 {
            self.resume();
        }
        for number in 0..self.processes.len() {
            let (env, process) = (&mut self.env, &mut self.processes[number]);
            for _ in 0..4 {
                let mut worked = false;
                for turn in 0..process.turns() {
                    worked |= process.turn(turn, env);
                }
                if !worked {
                    break;
                }
            }
        }
        for _ in 0..2 + self.env.kafka.commits.len() {
            self.kafka_step();
        }
        let sessions: Vec<_> =
            self.env.database.sessions.iter().map(|session| (session.id, session.client_connected)).collect();
        for (id, client_connected) in sessions {
            if client_connected {
                self.execute(id);
            } else {
                self.env.database.end(id);
            }
        }
    }

    fn is_done(&self) -> bool {
        let env = &self.env;
        let topic = env.kafka.topic_number();
        let ends = env.kafka.topic().partitions.iter().zip(0..).all(|(log, partition)| {
            let committed = env.kafka.group.offsets.get(&partition).copied();
            let progress = env.database.tables.progress.get(&(topic, partition)).copied();
            // If a row is above the log's end, or has an earlier leader epoch than the last record, it refers to
            // records that are lost.
            let last = log.from(0).last().map_or(-1, |record| record.leader_epoch);
            let is_past = |row: Progress| {
                let all = row.next.0 >= log.end() && row.next.0 <= log.high;
                all && (row.leader_epoch.0 >= last || !log.has_lost())
            };
            let tables = &env.database.tables;
            let is_above = |row: Progress| row.next.0 > log.end() && log.has_lost();
            committed.is_some_and(|next| next >= log.end())
                && (progress.is_some_and(is_past)
                    || tables.is_raised_again(topic, partition)
                    || progress.is_some_and(is_above) && tables.is_started_below(topic, partition))
        });
        ends && !env.kafka.group.joining && self.processes.iter().all(|process| process.is_idle(env))
    }

    fn missing(&self) -> String {
        let env = &self.env;
        let mut missing = Vec::new();
        for (log, partition) in env.kafka.topic().partitions.iter().zip(0..) {
            let committed = env.kafka.group.offsets.get(&partition);
            let progress = env.database.tables.progress.get(&(env.kafka.topic_number(), partition));
            let completed =
                log.records.iter().filter(|record| crate::oracle::is_completed(&env.database, record)).count();
            let (all, end) = (log.records.len(), log.end());
            missing.push(format!(
                "partition {partition}: {completed} of {all} completed, end {end}, committed {committed:?}, progress {progress:?}"
            ));
        }
        for process in self.processes.iter().filter(|process| !process.is_idle(env)) {
            missing.push(format!("{} is not idle", process.parts.name()));
        }
        missing.join("; ")
    }
}
