//! The faults. Each one is injected in one step, and most of them are removed some steps later.

use machine::consumer::Event;

use crate::config::Fault;
use crate::database::Block;
use crate::facts::Fact;
use crate::kafka::log::{INBOXES, Topic};
use crate::oracle::is_completed;
use crate::process::State;
use crate::world::World;

impl World {
    pub(crate) fn fault_step(&mut self) {
        let faults = &self.env.config.faults;
        let fault = faults[self.env.choices.index(faults.len())];
        match fault {
            Fault::Kill | Fault::Freeze | Fault::Stop | Fault::Expel => self.break_process(fault),
            Fault::RestartServer | Fault::Restore | Fault::BreakConnection | Fault::LockTimeout => {
                self.break_database(fault);
            }
            Fault::RefuseConnections | Fault::RejectAll | Fault::ReadOnly | Fault::SlowServer => {
                self.begin_phase(fault)
            }
            Fault::BlockInbox => self.block_inbox(),
            Fault::LoseLeader
            | Fault::AddPartition
            | Fault::RecreateTopic
            | Fault::DeleteRecords
            | Fault::LoseTail
            | Fault::Rebalance => {
                self.break_kafka(fault);
            }
            Fault::Resume => self.resume(),
            // These are injected into statements, fetches and offset commits, where they happen.
            Fault::FailStatement
            | Fault::LoseResult
            | Fault::ClientTimeout
            | Fault::RewindFetch
            | Fault::DamageBatch
            | Fault::LoseCommit => {}
        }
    }

    fn break_process(&mut self, fault: Fault) {
        let number = self.env.choices.index(self.processes.len());
        let (env, process) = (&mut self.env, &mut self.processes[number]);
        match fault {
            Fault::Kill if process.state != State::Down => {
                env.count(Fact::Killed);
                env.trace_step(|| format!("P{number} is killed"));
                process.exit(env);
            }
            Fault::Freeze if process.state == State::Up => {
                env.count(Fact::Frozen);
                env.trace_step(|| format!("P{number} is frozen"));
                process.state = State::Frozen;
            }
            Fault::Stop if process.state == State::Up && process.stop() => env.count(Fact::Stopped),
            Fault::Expel => {
                if let Some(id) =
                    process.parts.library.membership.member.filter(|id| env.kafka.group.member(*id).is_some())
                {
                    self.expel(id);
                }
            }
            _ => {}
        }
    }

    fn break_database(&mut self, fault: Fault) {
        let env = &mut self.env;
        match fault {
            Fault::RestartServer => {
                let results_arrive = env.choices.one_in(2);
                env.count(Fact::ServerRestart);
                env.trace_step(|| "  db: the server restarts, every connection breaks".into());
                env.database.restart(results_arrive);
                let checked = crate::oracle::check_inboxes(&env.database.tables, INBOXES.len());
                env.check(checked);
            }
            Fault::Restore => {
                let known = env.database.tables.commits();
                if known == 0 || env.choices.one_in(2) {
                    return;
                }
                let max = if env.choices.one_in(4) { known } else { known.min(6) };
                let back = 1 + env.choices.index(max);
                let results_arrive = env.choices.one_in(2);
                let rows = |env: &crate::env::Env| env.database.tables.inboxes.iter().map(Vec::len).sum::<usize>();
                let before = rows(env);
                env.database.restore(back, results_arrive);
                env.count(Fact::Restore);
                env.facts.add(Fact::RestoredRows, before.saturating_sub(rows(env)));
                env.trace_step(|| {
                    format!("  db: the server is restored to {back} commits earlier, every connection breaks")
                });
                let checked = crate::oracle::check_inboxes(&env.database.tables, INBOXES.len());
                env.check(checked);
                // The cause of a failover rarely leaves the connection to Kafka intact.
                if env.choices.one_in(2) {
                    env.burst(6);
                    self.interrupt_fetch();
                }
            }
            Fault::BreakConnection => {
                let sessions = &env.database.sessions;
                if !sessions.is_empty() {
                    let session = &sessions[env.choices.index(sessions.len())];
                    let (id, client) = (session.id, session.client);
                    env.count(Fact::ConnectionBroken);
                    env.trace_step(|| format!("  db: the connection of {} breaks", client.show()));
                    env.database.end(id);
                }
            }
            _ => {
                let waiting = env.database.sessions.iter().find(|session| env.database.is_waiting(session));
                if let Some((id, client)) = waiting.map(|session| (session.id, session.client)) {
                    env.count(Fact::LockTimeout);
                    env.trace_step(|| format!("  db: {} has waited for a lock too long", client.show()));
                    env.database.lock_timeout(id);
                }
            }
        }
    }

    fn begin_phase(&mut self, fault: Fault) {
        let env = &mut self.env;
        let database = &mut env.database;
        match fault {
            Fault::RefuseConnections => database.refuses_connections = true,
            Fault::RejectAll if !database.rejects_all && !database.is_table_locked() => {
                database.rejects_all = true;
                env.count(Fact::RejectingAll);
            }
            Fault::RejectAll => return,
            Fault::ReadOnly => {
                database.read_only = true;
                env.count(Fact::ReadOnly);
            }
            _ => {
                database.slow = true;
                env.oracle.was_slow = true;
                env.count(Fact::Slow);
            }
        }
        self.env.trace_step(|| format!("  db: {fault:?} begins"));
    }

    /// Blocks one more inbox for a while, as a foreign unique index, a lock, a trigger, a policy or a damaged page does.
    pub(crate) fn block_inbox(&mut self) {
        use machine::error::ErrorClass::{Conflict, Fatal, Heavy, Locked, Permanent};
        const CAUSES: [Block; 12] = [
            Block::Row(Conflict),
            Block::Row(Locked),
            Block::Row(Heavy),
            Block::Row(Fatal),
            Block::Discarded,
            Block::Commit(Locked),
            Block::Commit(Fatal),
            Block::LastSeq,
            Block::Lookup,
            Block::DeadLetter(Fatal),
            Block::DeadLetter(Locked),
            Block::DeadLetter(Permanent),
        ];
        let env = &mut self.env;
        if env.database.blocked.len() >= 3 {
            return;
        }
        let inbox = u8::try_from(env.choices.index(env.config.inboxes)).expect("few");
        let cause = CAUSES[env.choices.index(CAUSES.len())];
        env.count(Fact::BlockedPhase);
        env.trace_step(|| format!("  db: inbox {} is blocked: {cause:?}", INBOXES[inbox as usize]));
        env.database.blocked.insert(inbox, cause);
    }

    pub(crate) fn end_phases(&mut self, chance: u32) {
        let env = &mut self.env;
        let database = &mut env.database;
        if database.refuses_connections && env.choices.one_in(chance) {
            database.refuses_connections = false;
        }
        if database.read_only && env.choices.one_in(chance) {
            database.read_only = false;
        }
        if !database.blocked.is_empty() && !env.healing && env.choices.one_in(chance) {
            database.blocked.clear();
        }
        if database.slow && env.choices.one_in(chance) {
            database.slow = false;
        }
        // A change of the table waits for the transactions that use the table.
        if database.rejects_all && !database.is_table_locked() && env.choices.one_in(chance) {
            database.rejects_all = false;
        }
        for log in &mut env.kafka.topic_mut().partitions {
            log.without_leader &= !env.choices.one_in(chance);
        }
    }

    fn break_kafka(&mut self, fault: Fault) {
        let env = &mut self.env;
        let partition = env.choices.index(env.kafka.topic().partitions.len());
        match fault {
            Fault::LoseLeader => {
                env.count(Fact::LeaderLost);
                env.kafka.topic_mut().partitions[partition].elect();
                env.kafka.topic_mut().partitions[partition].without_leader = true;
                if env.choices.one_in(2) {
                    self.interrupt_fetch();
                }
            }
            Fault::AddPartition => {
                let extra = env.kafka.topic().count() - env.config.partitions;
                let inboxes = env.config.inboxes + usize::try_from(extra).expect("the number of partitions only grows");
                if extra < 2 && inboxes < INBOXES.len() && env.choices.one_in(3) {
                    env.count(Fact::PartitionAdded);
                    env.trace_step(|| "kafka: a partition is added".into());
                    env.kafka.topic_mut().partitions.push(crate::kafka::log::Log::default());
                    env.kafka.group.begin_rebalance();
                }
            }
            Fault::RecreateTopic => {
                if env.kafka.topics.len() > 2 || !env.choices.one_in(2) {
                    return;
                }
                env.count(Fact::TopicRecreated);
                env.trace_step(|| "kafka: the topic is recreated".into());
                let count = env.kafka.topic().count();
                env.kafka.topics.push(Topic::new(count));
                if env.choices.one_in(2) {
                    env.kafka.group.offsets.clear();
                }
                env.burst(8);
            }
            Fault::Rebalance => env.kafka.group.begin_rebalance(),
            Fault::LoseTail => {
                let log = &env.kafka.topic().partitions[partition];
                let (high, length) = (log.high, log.high - log.low);
                if length == 0 || env.choices.one_in(2) {
                    return;
                }
                let lost = 1 + env.choices.choose(u32::try_from(length.min(12)).expect("few"));
                env.lose_tail(partition, high - i64::from(lost));
                // Before any process checks the log, its end may again be above the offsets that were read.
                if env.choices.one_in(2) {
                    env.burst(16);
                }
                if env.choices.one_in(3) {
                    self.interrupt_fetch();
                }
            }
            _ => {
                let log = &env.kafka.topic().partitions[partition];
                if env.choices.one_in(2) || log.high == log.low {
                    return;
                }
                let low = log.low + 1 + i64::from(env.choices.choose(u32::try_from(log.high - log.low).expect("few")));
                let unread = log.below(low).iter().filter(|record| !is_completed(&env.database, record)).count();
                env.facts.add(Fact::RecordsDeletedUnread, unread);
                env.trace_step(|| format!("kafka: partition {partition} is deleted below {low}"));
                env.kafka.topic_mut().partitions[partition].low = low;
            }
        }
    }

    /// Makes a partition's fetch fail in one process.
    fn interrupt_fetch(&mut self) {
        let env = &mut self.env;
        let process = &mut self.processes[env.choices.index(env.config.processes)];
        let partition = env.choices.index(env.kafka.topic().partitions.len());
        if process.state == State::Up {
            let (damaged, in_order) = (env.choices.one_in(3), env.choices.one_in(2));
            process.parts.library.fetch_failed(i32::try_from(partition).expect("few"), damaged, in_order);
        }
    }

    /// Resumes all halted partitions, as an operator does.
    pub(crate) fn resume(&mut self) {
        for process in &mut self.processes {
            let partitions: Vec<_> = process.driver.machine().halted().map(|(partition, _)| partition).collect();
            if process.state != State::Up || partitions.is_empty() {
                continue;
            }
            for partition in &partitions {
                self.env.count(Fact::Resumed);
                self.env.resume(*partition);
            }
            process.parts.events.push_back(Event::Resumed(partitions));
        }
    }
}
