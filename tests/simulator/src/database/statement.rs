//! The statements, and the effect of each in one step.

use machine::consumer::start::Lost;
use machine::error::{ClassifiedError, ErrorClass};
use machine::lane::Response;
use machine::{Epoch, Partition, Progress};

use super::{Block, Client, Database, Dead, Row, SessionId, Transaction};
use crate::kafka::log::{Position, Record, RecordKind};

#[derive(Clone, Debug)]
pub(crate) enum Statement {
    /// Reads the last `seq` of these inboxes, for these entries of the batch.
    LastSeqs(Vec<(usize, u8)>),
    Begin,
    Guard(Vec<Row>),
    Insert(Vec<Row>),
    /// Inserts rows, and fails if the ID or the `seq` of one is in the table.
    InsertNew(Vec<Row>),
    FindStored(Vec<(usize, Record)>),
    InsertDead(Vec<(usize, Dead)>),
    Commit,
    Rollback,
    BeginBisection,
    /// Inserts the canary row into the inbox of this row, or into an inbox of its own.
    Canary(Option<Row>),
    MoveSavepoint,
    RollbackToSavepoint,
    /// Reads the progress rows of these partitions of a topic, and the dead letters that count.
    Load(u32, Vec<(Partition, Epoch)>),
    Save(Vec<(u32, Partition, Progress)>),
    /// Lowers the progress row of a partition of a topic, from which Kafka lost these records.
    Lower(u32, Partition, Lost),
    Ping,
}

#[derive(Clone, Debug)]
pub(crate) enum StatementResult {
    Lane(Response),
    Loaded(Vec<(Partition, Option<Progress>, Vec<i64>)>),
    /// Whether the row was unchanged since the start task had read the row.
    Lowered(bool),
    /// The incarnation of the database that has the rows.
    Saved(u32),
    Failed(ErrorClass),
}

/// What the server and the connection do with a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatementEffect {
    Fine,
    Fails(ErrorClass),
    BreaksBefore,
    /// The connection breaks after the statement was executed, before its result arrives.
    BreaksAfter,
    /// The COMMIT succeeds, and its rows become visible later.
    VisibleLater,
}

/// The part of a statement's effect that the oracle observes.
#[derive(Debug)]
pub(crate) enum Observation {
    None,
    Waits,
    Deadlock,
    Committed { rows: Vec<Row>, dead: Vec<Dead> },
    Saved(Vec<(u32, Partition, Progress)>),
    Lowered(u32, Partition, Lost),
    Loaded { client: Client, topic: u32, partitions: Vec<(Partition, Epoch)> },
}

enum Step {
    Done(StatementResult),
    Failed(ErrorClass),
    Waits(u32),
}

impl Database {
    /// Executes the statement that was sent over this session, until it ends or waits for a lock.
    pub(crate) fn execute(&mut self, id: SessionId, effect: StatementEffect) -> Observation {
        if effect == StatementEffect::BreaksBefore {
            self.end(id);
            return Observation::None;
        }
        let Some(index) = self.sessions.iter().position(|session| session.id == id && session.alive) else {
            return Observation::None;
        };
        let Some(statement) = self.sessions[index].request.take() else { return Observation::None };
        let mut observation = Observation::None;
        let step = match effect {
            StatementEffect::Fails(class) if !matches!(statement, Statement::Rollback) => {
                if matches!(statement, Statement::Commit) {
                    self.sessions[index].transaction = None;
                }
                Step::Failed(class)
            }
            _ => self.step(index, &statement, effect == StatementEffect::VisibleLater, &mut observation),
        };
        let session = &mut self.sessions[index];
        match step {
            Step::Done(result) => {
                session.waits_for = None;
                session.done = (0, 0);
                session.result = Some(result);
            }
            Step::Failed(class) => session.fail(class),
            Step::Waits(number) => {
                session.waits_for = Some(number);
                if self.is_deadlock(id, number) {
                    self.sessions[index].fail(ErrorClass::Transient);
                    return Observation::Deadlock;
                }
                self.sessions[index].request = Some(statement);
                return Observation::Waits;
            }
        }
        if effect == StatementEffect::BreaksAfter {
            self.sessions[index].result = None;
            self.end(id);
        }
        observation
    }

    fn step(
        &mut self,
        index: usize,
        statement: &Statement,
        visible_later: bool,
        observation: &mut Observation,
    ) -> Step {
        let ok = Step::Done(StatementResult::Lane(Response::Ok));
        let failed = self.sessions[index].transaction.as_ref().is_some_and(|open| open.failed);
        let ends = matches!(statement, Statement::Rollback | Statement::RollbackToSavepoint | Statement::Commit);
        if failed && !ends {
            // SQLSTATE in_failed_sql_transaction.
            return Step::Failed(ErrorClass::Transient);
        }
        match statement {
            Statement::LastSeqs(lookups) => {
                let is_unreadable = |inbox: &u8| self.blocked.get(inbox) == Some(&Block::LastSeq);
                let failed = lookups.iter().filter(|(_, inbox)| is_unreadable(inbox));
                let failed = failed_for(failed.map(|(entry, _)| (*entry, ErrorClass::Fatal)));
                let seqs = || lookups.iter().map(|(_, inbox)| self.tables.last_seq(*inbox)).collect();
                Step::Done(StatementResult::Lane(failed.unwrap_or_else(|| Response::Seqs(seqs()))))
            }
            Statement::Begin | Statement::BeginBisection => {
                self.last_transaction += 1;
                let is_bisection = matches!(statement, Statement::BeginBisection);
                let transaction = Transaction {
                    number: self.last_transaction,
                    has_savepoint: is_bisection,
                    is_bisection,
                    ..Transaction::default()
                };
                self.sessions[index].transaction = Some(transaction);
                ok
            }
            Statement::Guard(first_rows) => {
                let has_predecessor = |row: &&Row| self.tables.by_seq(row.record.inbox, row.seq - 1).is_some();
                Step::Done(StatementResult::Lane(Response::Count(first_rows.iter().filter(has_predecessor).count())))
            }
            Statement::Insert(rows) => self.insert(index, rows, true),
            Statement::InsertNew(rows) => self.insert(index, rows, false),
            Statement::Canary(replaced) => self.canary(index, replaced.as_ref()),
            Statement::FindStored(lookups) => self.find(index, lookups),
            Statement::InsertDead(dead) => self.insert_dead(index, dead),
            Statement::Commit => self.commit(index, visible_later, observation),
            Statement::Rollback => {
                self.sessions[index].transaction = None;
                ok
            }
            Statement::MoveSavepoint => {
                let open = self.open(index);
                open.savepoint = (open.rows.len(), open.dead.len());
                ok
            }
            Statement::RollbackToSavepoint => {
                let open = self.open(index);
                if !open.has_savepoint {
                    return Step::Failed(ErrorClass::Fatal);
                }
                open.rows.truncate(open.savepoint.0);
                open.dead.truncate(open.savepoint.1);
                open.failed = false;
                ok
            }
            Statement::Load(topic, partitions) => {
                let load = |(partition, _): &(Partition, Epoch)| {
                    let progress = self.tables.progress.get(&(*topic, *partition)).copied();
                    (*partition, progress, self.tables.counted_dead_letters(*topic, *partition))
                };
                let loaded = partitions.iter().map(load).collect();
                let client = self.sessions[index].client;
                *observation = Observation::Loaded { client, topic: *topic, partitions: partitions.clone() };
                Step::Done(StatementResult::Loaded(loaded))
            }
            Statement::Save(_) if self.read_only => Step::Failed(ErrorClass::Fatal),
            Statement::Save(rows) => {
                self.tables.save_progress(rows);
                *observation = Observation::Saved(rows.clone());
                Step::Done(StatementResult::Saved(self.incarnation))
            }
            Statement::Lower(..) if self.read_only => Step::Failed(ErrorClass::Fatal),
            Statement::Lower(topic, partition, lost) => {
                let lowered = self.tables.lower(*topic, *partition, lost);
                if lowered {
                    *observation = Observation::Lowered(*topic, *partition, *lost);
                }
                Step::Done(StatementResult::Lowered(lowered))
            }
            Statement::Ping => ok,
        }
    }

    fn open(&mut self, index: usize) -> &mut Transaction {
        self.sessions[index].transaction.as_mut().expect("the statement is sent within a transaction")
    }

    /// Inserts row by row. `skips` stands for `ON CONFLICT (recv_id, msg_id) DO NOTHING`.
    fn insert(&mut self, index: usize, rows: &[Row], skips: bool) -> Step {
        let (mut done, mut inserted) = self.sessions[index].done;
        while let Some(row) = rows.get(done) {
            let is_bisection = self.open(index).is_bisection;
            match self.blocked.get(&row.record.inbox) {
                _ if self.read_only || self.rejects_all => {}
                Some(Block::Row(class)) => return Step::Failed(*class),
                Some(Block::Lookup) => return Step::Failed(ErrorClass::Fatal),
                Some(Block::Commit(class)) if is_bisection => return Step::Failed(*class),
                Some(Block::Discarded) => {
                    done += 1;
                    continue;
                }
                _ => {}
            }
            match row.record.kind {
                _ if self.read_only => return Step::Failed(ErrorClass::Fatal),
                _ if self.rejects_all => return Step::Failed(ErrorClass::Permanent),
                RecordKind::Rejected => return Step::Failed(ErrorClass::Permanent),
                RecordKind::RejectedAtCommit if is_bisection => return Step::Failed(ErrorClass::Permanent),
                RecordKind::TooLarge => return Step::Failed(ErrorClass::TooLarge),
                RecordKind::Slow => return Step::Failed(ErrorClass::Heavy),
                _ => {}
            }
            let same_id = |other: &Row| other.record.id == row.record.id && other.record.inbox == row.record.inbox;
            let same_seq = |other: &Row| other.seq == row.seq && other.record.inbox == row.record.inbox;
            let exists = self.tables.by_id(row.record.id).is_some() || self.open(index).rows.iter().any(same_id);
            if !exists || !skips {
                if let Some(other) = self.other(index, |open| open.rows.iter().any(same_id)) {
                    self.sessions[index].done = (done, inserted);
                    return Step::Waits(other);
                }
                let is_used = self.tables.by_seq(row.record.inbox, row.seq).is_some();
                if exists || is_used || self.open(index).rows.iter().any(same_seq) {
                    return Step::Failed(ErrorClass::Conflict);
                }
                if let Some(other) = self.other(index, |open| open.rows.iter().any(same_seq)) {
                    self.sessions[index].done = (done, inserted);
                    return Step::Waits(other);
                }
                self.open(index).rows.push(*row);
                inserted += 1;
            }
            done += 1;
        }
        Step::Done(StatementResult::Lane(Response::Count(inserted)))
    }

    fn canary(&mut self, index: usize, replaced: Option<&Row>) -> Step {
        match replaced.and_then(|row| self.blocked.get(&row.record.inbox)) {
            Some(Block::Row(class) | Block::Commit(class)) => return Step::Failed(*class),
            Some(Block::Lookup) => return Step::Failed(ErrorClass::Fatal),
            Some(Block::Discarded) => return Step::Done(StatementResult::Lane(Response::Count(0))),
            _ => {}
        }
        if self.read_only || self.rejects_all {
            return Step::Failed(if self.read_only { ErrorClass::Fatal } else { ErrorClass::Permanent });
        }
        let record = Record {
            topic: 0,
            partition: 0,
            leader_epoch: 0,
            offset: 0,
            inbox: Row::CANARY,
            id: u16::MAX,
            version: 0,
            kind: RecordKind::Good,
        };
        self.open(index).rows.push(Row { seq: 0, record });
        Step::Done(StatementResult::Lane(Response::Count(1)))
    }

    fn find(&mut self, index: usize, lookups: &[(usize, Record)]) -> Step {
        if lookups.iter().any(|(_, record)| self.blocked.get(&record.inbox) == Some(&Block::Lookup)) {
            return Step::Failed(ErrorClass::Fatal);
        }
        let inserted: &[Row] = self.sessions[index].transaction.as_ref().map_or(&[], |open| &open.rows);
        let row = |record: &Record| {
            let same_id = |row: &&Row| row.record.id == record.id && row.record.inbox == record.inbox;
            inserted.iter().find(same_id).or_else(|| self.tables.by_id(record.id))
        };
        let found = lookups
            .iter()
            .filter_map(|(entry, record)| row(record).map(|row| (*entry, row.record.version == record.version)));
        Step::Done(StatementResult::Lane(Response::Found(found.collect())))
    }

    fn insert_dead(&mut self, index: usize, dead: &[(usize, Dead)]) -> Step {
        if self.read_only {
            return Step::Failed(ErrorClass::Fatal);
        }
        let rejected = |dead: &Dead| match self.blocked.get(&dead.record.inbox) {
            Some(Block::DeadLetter(class)) => Some(*class),
            _ => None,
        };
        let failed = failed_for(dead.iter().filter_map(|(entry, dead)| Some((*entry, rejected(dead)?))));
        if let Some(failed) = failed {
            // The others are inserted, and rolled back by the lane.
            return Step::Done(StatementResult::Lane(failed));
        }
        let (mut done, _) = self.sessions[index].done;
        while let Some((_, letter)) = dead.get(done) {
            let position: Position = letter.position();
            let same = |other: &Dead| other.position() == position;
            if !self.tables.dead.contains_key(&position) && !self.open(index).dead.iter().any(same) {
                if let Some(other) = self.other(index, |open| open.dead.iter().any(same)) {
                    self.sessions[index].done = (done, 0);
                    return Step::Waits(other);
                }
                self.open(index).dead.push(*letter);
            }
            done += 1;
        }
        Step::Done(StatementResult::Lane(Response::Ok))
    }

    fn commit(&mut self, index: usize, visible_later: bool, observation: &mut Observation) -> Step {
        let Some(open) = self.sessions[index].transaction.take() else { return Step::Failed(ErrorClass::Fatal) };
        if open.failed {
            // The server's result is ROLLBACK, which is no error.
            return Step::Done(StatementResult::Lane(Response::Ok));
        }
        if open.rows.iter().any(|row| row.record.kind == RecordKind::RejectedAtCommit) {
            return Step::Failed(ErrorClass::Permanent);
        }
        let deferred = |row: &Row| match self.blocked.get(&row.record.inbox) {
            Some(Block::Commit(class)) => Some(*class),
            _ => None,
        };
        if let Some(class) = open.rows.iter().find_map(deferred) {
            return Step::Failed(class);
        }
        self.tables.commit(open.number, &open.rows, &open.dead, !visible_later);
        *observation = Observation::Committed { rows: open.rows.clone(), dead: open.dead.clone() };
        if visible_later {
            self.invisible.push(open);
        }
        Step::Done(StatementResult::Lane(Response::Ok))
    }

    /// Returns the other transaction that has a matching row and has not ended.
    fn other(&self, index: usize, has: impl Fn(&Transaction) -> bool) -> Option<u32> {
        let open = self.sessions.iter().enumerate().filter(|(other, _)| *other != index);
        let open = open.filter_map(|(_, session)| session.transaction.as_ref());
        open.chain(&self.invisible).find(|open| has(open)).map(|open| open.number)
    }
}

/// Returns the response that a statement fails for these entries, if there are any.
fn failed_for(entries: impl Iterator<Item = (usize, ErrorClass)>) -> Option<Response> {
    let error = |class: ErrorClass| ClassifiedError { class, text: class.name().to_owned() };
    let failed: Vec<_> = entries.map(|(entry, class)| (entry, error(class))).collect();
    (!failed.is_empty()).then_some(Response::FailedFor(failed))
}
