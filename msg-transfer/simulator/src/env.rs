//! What all processes share: Kafka, the database, the clock, the choices, the oracle, and the trace.

use machine::{Millis, Partition, Progress};

use crate::choices::Choices;
use crate::config::{Config, Fault};
use crate::database::{Database, Observation, SessionId, Statement, StatementEffect};
use crate::facts::{Fact, Facts};
use crate::kafka::Kafka;
use crate::kafka::log::{Record, RecordKind};
use crate::oracle::Oracle;

/// The world around the processes.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) config: Config,
    pub(crate) choices: Choices,
    pub(crate) kafka: Kafka,
    pub(crate) database: Database,
    pub(crate) oracle: Oracle,
    pub(crate) facts: Facts,
    pub(crate) now: Millis,
    /// No more faults: everything has to come to its end.
    pub(crate) healing: bool,
    /// Every process knows what a newer version writes.
    pub(crate) upgraded: bool,
    /// The operator's word that what was deleted unread is lost.
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
        env.say(|| format!("{config:?}"));
        env
    }

    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(text());
        }
    }

    pub(crate) fn count(&mut self, fact: Fact) {
        self.facts.add(fact, 1);
    }

    /// The first one counts.
    pub(crate) fn violate(&mut self, text: String) {
        if self.violation.is_none() {
            self.say(|| format!("VIOLATION: {text}"));
            self.violation = Some(text);
        }
    }

    /// Checks what the oracle says.
    pub(crate) fn check(&mut self, checked: Result<(), String>) {
        if let Err(text) = checked {
            self.violate(text);
        }
    }

    /// Whether a statement meets this fault now.
    fn has_statement_fault(&mut self, fault: Fault) -> bool {
        !self.healing && self.config.has(fault) && self.choices.one_in(self.config.statement_faults)
    }

    /// The server carries a statement out, or what comes between.
    pub(crate) fn execute(&mut self, id: SessionId) {
        use machine::failure::Class;
        let Some(session) = self.database.session(id) else { return };
        let (client, held) = (session.client, session.held);
        let Some(statement) = session.request.clone() else { return };
        let is_commit = matches!(statement, Statement::Commit);
        let effect = if self.has_statement_fault(Fault::BreakConnection) {
            StatementEffect::BreaksBefore
        } else if self.has_statement_fault(Fault::LoseResult) {
            StatementEffect::BreaksAfter
        } else if self.has_statement_fault(Fault::FailStatement) {
            StatementEffect::Fails(Class::Transient)
        } else if self.database.slow && matches!(statement, Statement::Insert(_)) && self.choices.one_in(3) {
            StatementEffect::Fails(Class::Heavy)
        } else if self.config.visible_later && !self.healing && is_commit && self.choices.one_in(3) {
            StatementEffect::VisibleLater
        } else {
            StatementEffect::Fine
        };
        let waited = self.trace.is_some() && self.database.session(id).is_some_and(|session| session.has_waited());
        let observation = self.database.execute(id, effect);
        if !waited || !matches!(observation, Observation::Waits) {
            self.say(|| format!("  db: {} {}{}", client.show(), statement.show(), effect.show()));
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
        if effect != StatementEffect::BreaksBefore && !held {
            self.count(Fact::ZombieStatement);
        }
        match observation {
            Observation::None => {}
            Observation::Waits => {
                if !waited {
                    self.count(Fact::LockWait);
                    self.say(|| "  db: … waits for a lock".into());
                }
            }
            Observation::Deadlock => {
                self.count(Fact::Deadlock);
                self.say(|| "  db: … deadlock".into());
            }
            Observation::Committed { rows, dead } => {
                self.count(Fact::Committed);
                self.facts.add(Fact::Row, rows.len());
                self.facts.add(Fact::DeadLetter, dead.len());
                self.facts.add(Fact::Conflict, dead.iter().filter(|dead| !dead.reason.counts()).count());
                if !held && !rows.is_empty() {
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

    /// P5: everything below is kept.
    pub(crate) fn check_completed_below(&mut self, what: &str, topic: u32, partition: Partition, progress: Progress) {
        let checked = self.oracle.completed_below(&self.kafka, &self.database, what, (topic, partition, progress));
        self.check(checked);
    }

    /// The producer's next record, if it has more to send.
    pub(crate) fn produce(&mut self) -> bool {
        if self.produced >= self.config.records {
            return false;
        }
        self.produced += 1;
        let topic = self.kafka.topic_number();
        let extra = usize::try_from(self.kafka.topic().count() - self.config.partitions).expect("it only grows");
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
        self.say(|| format!("kafka: {} is produced", record.show()));
        true
    }

    /// Up to so many more records, also where all was quiet.
    pub(crate) fn burst(&mut self, max: u32) {
        for _ in 0..self.choices.choose(max) {
            self.config.records = self.config.records.max(self.produced + 1);
            self.produce();
        }
    }

    /// Kafka loses the tail of a partition's log.
    pub(crate) fn lose_tail(&mut self, partition: usize, cut: i64) {
        let lost = self.kafka.topic_mut().partitions[partition].lose_tail(cut);
        self.count(Fact::LostTail);
        self.say(|| format!("kafka: partition {partition} loses all from {cut} on"));
        self.database.tables.lost.extend(lost.iter().map(Record::position));
    }

    /// A new one, one that was sent before, or another one under a known id.
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

    /// Somebody looks at a partition that stands still, and says that it may go on.
    pub(crate) fn resume(&mut self, partition: Partition) {
        let topic = self.kafka.topic_number();
        self.database.tables.resume(topic, partition);
        self.oracle.resumed(partition, self.kafka.topic().log(partition).high);
    }
}
