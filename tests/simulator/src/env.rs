//! The state that all processes share: Kafka, the database, the clock, the choices, the oracle and the trace.

use machine::{Millis, Partition, Progress};

use crate::choices::Choices;
use crate::config::{Config, Fault};
use crate::database::{Database, Observation, SessionId, Statement, StatementEffect};
use crate::facts::{Fact, Facts};
use crate::kafka::Kafka;
use crate::kafka::log::{Record, RecordKind};
use crate::oracle::Oracle;

#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) config: Config,
    pub(crate) choices: Choices,
    pub(crate) kafka: Kafka,
    pub(crate) database: Database,
    pub(crate) oracle: Oracle,
    pub(crate) facts: Facts,
    pub(crate) now: Millis,
    /// Whether the run has come to its end: no fault occurs any more, and every record must be completed.
    pub(crate) healing: bool,
    /// Whether every process can read the records of a newer version.
    pub(crate) upgraded: bool,
    /// Whether the operator has confirmed that records which were deleted unread are lost.
    pub(crate) accept_loss: bool,
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) violation: Option<String>,
    produced: usize,
    next_id: u16,
    next_version: u8,
}

impl Env {
    pub(crate) fn new(mut choices: Choices, traced: bool) -> Self {
        let config = Config::choose(&mut choices);
        let mut env = Env {
            kafka: Kafka::new(config.partitions, config.eager),
            config,
            choices,
            database: Database::default(),
            oracle: Oracle::default(),
            facts: Facts::default(),
            now: 0,
            healing: false,
            upgraded: false,
            accept_loss: false,
            trace: traced.then(Vec::new),
            violation: None,
            produced: 0,
            next_id: 0,
            next_version: 0,
        };
        let config = env.config.clone();
        env.trace_step(|| format!("{config:?}"));
        env
    }

    pub(crate) fn trace_step(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(text());
        }
    }

    pub(crate) fn count(&mut self, fact: Fact) {
        self.facts.add(fact, 1);
    }

    /// Ends the run with a violation. Only the first violation is reported.
    pub(crate) fn violate(&mut self, text: String) {
        if self.violation.is_none() {
            self.trace_step(|| format!("VIOLATION: {text}"));
            self.violation = Some(text);
        }
    }

    /// Ends the run if a check of the oracle failed.
    pub(crate) fn check(&mut self, checked: Result<(), String>) {
        if let Err(text) = checked {
            self.violate(text);
        }
    }

    fn has_statement_fault(&mut self, fault: Fault) -> bool {
        !self.healing && self.config.has(fault) && self.choices.one_in(self.config.statement_faults)
    }

    /// Lets the server execute the session's statement, unless a fault prevents that.
    pub(crate) fn execute(&mut self, id: SessionId) {
        use machine::error::ErrorClass;
        let Some(session) = self.database.session(id) else { return };
        let (client, client_connected) = (session.client, session.client_connected);
        let Some(statement) = session.request.clone() else { return };
        let is_commit = matches!(statement, Statement::Commit);
        let effect = if self.has_statement_fault(Fault::BreakConnection) {
            StatementEffect::BreaksBefore
        } else if self.has_statement_fault(Fault::LoseResult) {
            StatementEffect::BreaksAfter
        } else if self.has_statement_fault(Fault::FailStatement) {
            StatementEffect::Fails(ErrorClass::Transient)
        } else if self.database.slow
            && matches!(statement, Statement::Insert(_) | Statement::InsertNew(_))
            && self.choices.one_in(3)
        {
            StatementEffect::Fails(ErrorClass::Heavy)
        } else if self.config.visible_later && !self.healing && is_commit && self.choices.one_in(3) {
            StatementEffect::VisibleLater
        } else {
            StatementEffect::Fine
        };
        let waited = self.trace.is_some() && self.database.session(id).is_some_and(|session| session.has_waited());
        let observation = self.database.execute(id, effect);
        if !waited || !matches!(observation, Observation::Waits) {
            self.trace_step(|| format!("  db: {} {}{}", client.show(), statement.show(), effect.show()));
        }
        match effect {
            StatementEffect::BreaksBefore => self.count(Fact::ConnectionBroken),
            StatementEffect::BreaksAfter => {
                self.count(Fact::ResultLost);
                if is_commit {
                    self.count(Fact::CommitResultLost);
                }
            }
            StatementEffect::Fails(_) => self.count(Fact::StatementFailed),
            StatementEffect::VisibleLater => self.count(Fact::VisibleLater),
            StatementEffect::Fine => {}
        }
        if self.database.rejects_all && matches!(statement, Statement::Canary(_)) {
            self.count(Fact::CanaryRejected);
        }
        if effect != StatementEffect::BreaksBefore && !client_connected {
            self.count(Fact::ZombieStatement);
        }
        match observation {
            Observation::None => {}
            Observation::Waits => {
                if !waited {
                    self.count(Fact::LockWait);
                    self.trace_step(|| "  db: … waits for a lock".into());
                }
            }
            Observation::Deadlock => {
                self.count(Fact::Deadlock);
                self.trace_step(|| "  db: … deadlock".into());
            }
            Observation::Committed { rows, dead } => {
                self.count(Fact::Committed);
                self.facts.add(Fact::Row, rows.len());
                self.facts.add(Fact::DeadLetter, dead.len());
                self.facts.add(Fact::Conflict, dead.iter().filter(|dead| !dead.reason.counts()).count());
                if !client_connected && !rows.is_empty() {
                    self.count(Fact::ZombieCommit);
                }
                let strict = self.config.strict_breaker.then_some(self.config.settings.dead_letters.count);
                let checked = self.oracle.committed(&self.database, &rows, &dead, strict);
                self.check(checked);
            }
            Observation::Saved(rows) => {
                for (topic, partition, progress) in rows {
                    self.check_completed_below("progress row", topic, partition, progress);
                }
            }
            Observation::Lowered(topic, partition, lost) => {
                self.count(Fact::Lowered);
                self.facts.add(Fact::LostOffsets, usize::try_from(lost.count()).expect("few"));
                let checked = Oracle::check_lost(self.kafka.topics[topic as usize].log(partition), &lost);
                self.check(checked);
            }
            Observation::Loaded { client, topic, partitions } => {
                self.oracle.loaded(&self.database.tables, client, topic, &partitions);
            }
        }
    }

    /// Checks P5: every record below the offset is completed.
    pub(crate) fn check_completed_below(&mut self, name: &str, topic: u32, partition: Partition, progress: Progress) {
        let checked = self.oracle.completed_below(&self.kafka, &self.database, name, (topic, partition, progress));
        self.check(checked);
    }

    /// Produces the next record. Returns false if the producer has no more records to send.
    pub(crate) fn produce(&mut self) -> bool {
        if self.produced >= self.config.records {
            return false;
        }
        self.produced += 1;
        let topic = self.kafka.topic_number();
        let extra = usize::try_from(self.kafka.topic().count() - self.config.partitions)
            .expect("the number of partitions only grows");
        let inbox = self.choices.index(self.config.inboxes + extra);
        let partition = if inbox < self.config.inboxes {
            inbox % usize::try_from(self.config.partitions).expect("not negative")
        } else {
            inbox - self.config.inboxes + usize::try_from(self.config.partitions).expect("not negative")
        };
        let partition = Partition::try_from(partition).expect("few");
        let inbox = u8::try_from(inbox).expect("few");
        let (id, version, kind) = self.message(inbox);
        let hole = self.choices.one_in(self.config.holes);
        let log = self.kafka.topic_mut().log_mut(partition);
        let record =
            Record { topic, partition, offset: log.high, leader_epoch: log.leader_epoch(), inbox, id, version, kind };
        log.records.push(record);
        log.high += 1 + i64::from(hole);
        self.count(Fact::Record);
        self.trace_step(|| format!("kafka: {} is produced", record.show()));
        true
    }

    /// Produces up to `max` - 1 records, also above the configured number.
    pub(crate) fn burst(&mut self, max: u32) {
        for _ in 0..self.choices.choose(max) {
            self.config.records = self.config.records.max(self.produced + 1);
            self.produce();
        }
    }

    /// Removes the records of a partition from `cut` on, as Kafka does when a leader without them is elected.
    pub(crate) fn lose_tail(&mut self, partition: usize, cut: i64) {
        let lost = self.kafka.topic_mut().partitions[partition].lose_tail(cut);
        self.count(Fact::LostTail);
        self.trace_step(|| format!("kafka: partition {partition} loses all records from {cut} on"));
        self.database.tables.lost.extend(lost.iter().map(Record::position));
    }

    /// Returns ID, version and kind of a new message, of a repeat of an earlier one, or of different content under a
    /// known ID.
    fn message(&mut self, inbox: u8) -> (u16, u8, RecordKind) {
        let repeats = self.choices.one_in(self.config.repeats);
        let conflicts = !repeats && self.choices.one_in(self.config.conflicts);
        if repeats || conflicts {
            let known: Vec<&Record> =
                self.kafka.topics.iter().flat_map(|t| t.records()).filter(|record| record.inbox == inbox).collect();
            if !known.is_empty() {
                let known = *known[self.choices.index(known.len())];
                if repeats {
                    self.count(Fact::Repeat);
                    return (known.id, known.version, known.kind);
                }
                self.count(Fact::Conflicting);
                self.next_version += 1;
                return (known.id, self.next_version, RecordKind::Good);
            }
        }
        self.next_id += 1;
        let mut kind = RecordKind::Good;
        if self.choices.one_in(self.config.special_records) {
            kind = self.config.record_kinds[self.choices.index(self.config.record_kinds.len())];
        }
        (self.next_id - 1, 0, kind)
    }

    /// Resumes a halted partition, as an operator does after a check.
    pub(crate) fn resume(&mut self, partition: Partition) {
        let topic = self.kafka.topic_number();
        self.database.tables.resume(topic, partition);
        self.oracle.resumed(partition, self.kafka.topic().log(partition).high);
    }
}
