//! A model of PostgreSQL: sessions that interleave statement by statement at READ COMMITTED, locks on unique keys,
//! savepoints, and a server that breaks connections, refuses, or is put back to an earlier point.

pub(crate) mod statement;
pub(crate) mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use machine::failure::Class;

pub(crate) use self::statement::{Observation, Statement, StatementEffect, StatementResult};
pub(crate) use self::tables::{Dead, Row, Tables};

pub(crate) type SessionId = u32;

/// Who made a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) process: usize,
    pub(crate) life: u32,
    /// The lane's number; `None` for the reference connection.
    pub(crate) lane: Option<usize>,
}

impl Client {
    pub(crate) fn show(&self) -> String {
        match self.lane {
            Some(lane) => format!("P{}.{} lane {lane}", self.process, self.life),
            None => format!("P{}.{} reference connection", self.process, self.life),
        }
    }
}

/// An open transaction, or one that is committed and cannot be seen yet.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    number: u32,
    pub(crate) rows: Vec<Row>,
    pub(crate) dead: Vec<Dead>,
    savepoint: (usize, usize),
    has_savepoint: bool,
    failed: bool,
    /// It is a bisection: deferred constraints are checked immediately.
    is_bisection: bool,
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) client: Client,
    /// The client still holds it.
    pub(crate) held: bool,
    /// The server still serves it.
    pub(crate) alive: bool,
    pub(crate) request: Option<Statement>,
    /// Rows of the statement that are done, and effect many of them were inserted.
    done: (usize, usize),
    /// The transaction that the statement waits for.
    waits_for: Option<u32>,
    result: Option<StatementResult>,
    pub(crate) transaction: Option<Transaction>,
}

/// The server.
#[derive(Debug, Default)]
pub(crate) struct Database {
    pub(crate) tables: Tables,
    /// Only sessions that a client holds or that the server serves.
    pub(crate) sessions: Vec<Session>,
    /// Committed, and not to be seen yet.
    pub(crate) invisible: Vec<Transaction>,
    /// How many times it went back.
    pub(crate) incarnation: u32,
    /// It takes no connections.
    pub(crate) refuses_connections: bool,
    /// It refuses every message: a bad migration.
    pub(crate) rejects_all: bool,
    /// It takes no writes.
    pub(crate) read_only: bool,
    /// Any statement may take too long.
    pub(crate) slow: bool,
    /// These inboxes take no row, and what it says of one.
    pub(crate) blocked: BTreeMap<u8, Class>,
    last_session: SessionId,
    last_transaction: u32,
}

/// What a client finds when it looks for an answer.
#[derive(Debug)]
pub(crate) enum Polled {
    Pending,
    Result(StatementResult),
    /// The connection is gone.
    Broken,
}

impl Database {
    pub(crate) fn connect(&mut self, client: Client) -> Option<SessionId> {
        if self.refuses_connections {
            return None;
        }
        self.last_session += 1;
        let id = self.last_session;
        self.sessions.push(Session {
            id,
            client,
            held: true,
            alive: true,
            request: None,
            done: (0, 0),
            waits_for: None,
            result: None,
            transaction: None,
        });
        Some(id)
    }

    pub(crate) fn session(&mut self, id: SessionId) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.id == id)
    }

    /// The client sends a statement. On a broken connection it goes nowhere.
    pub(crate) fn send(&mut self, id: SessionId, statement: Statement) {
        let Some(session) = self.session(id) else { return };
        if session.alive {
            session.request = Some(statement);
        }
    }

    pub(crate) fn poll(&mut self, id: SessionId) -> Polled {
        let Some(session) = self.session(id) else { return Polled::Broken };
        match session.result.take() {
            Some(result) => Polled::Result(result),
            None if session.alive => Polled::Pending,
            None => Polled::Broken,
        }
    }

    pub(crate) fn has_result(&self, id: SessionId) -> bool {
        let session = self.sessions.iter().find(|session| session.id == id);
        session.is_none_or(|session| session.result.is_some() || !session.alive)
    }

    /// The client lets go. The server notices later, and may carry out what was sent before.
    pub(crate) fn disconnect(&mut self, id: SessionId) {
        if let Some(session) = self.session(id) {
            session.held = false;
        }
        self.remove_ended_sessions();
    }

    /// The server ends the session.
    pub(crate) fn end(&mut self, id: SessionId) {
        if let Some(session) = self.session(id) {
            session.alive = false;
            session.request = None;
            session.transaction = None;
            session.waits_for = None;
        }
        self.remove_ended_sessions();
    }

    fn remove_ended_sessions(&mut self) {
        self.sessions.retain(|session| session.held || session.alive);
    }

    /// Every connection breaks. Answers that are on their way may still arrive.
    pub(crate) fn restart(&mut self, results_arrive: bool) {
        for session in &mut self.sessions {
            session.alive = false;
            session.request = None;
            session.transaction = None;
            session.waits_for = None;
            if !results_arrive {
                session.result = None;
            }
        }
        self.remove_ended_sessions();
        for transaction in std::mem::take(&mut self.invisible) {
            self.tables.make_visible(transaction.number);
        }
    }

    /// The last so many commits are gone, and every connection.
    pub(crate) fn restore(&mut self, commits: usize, results_arrive: bool) {
        self.restart(results_arrive);
        self.tables.restore(commits);
        self.incarnation += 1;
    }

    /// Whether a transaction holds a lock on the table that a change of it would have to wait for. A bisection takes it first.
    pub(crate) fn is_table_locked(&self) -> bool {
        let transactions = self.sessions.iter().filter_map(|session| session.transaction.as_ref());
        transactions.into_iter().any(|open| open.is_bisection || !open.rows.is_empty())
    }

    /// The statement waits for another transaction that is not over.
    pub(crate) fn is_waiting(&self, session: &Session) -> bool {
        session.waits_for.is_some_and(|number| {
            self.invisible.iter().any(|invisible| invisible.number == number) || self.holder(number).is_some()
        })
    }

    fn holder(&self, number: u32) -> Option<&Session> {
        let holds = |session: &&Session| session.transaction.as_ref().is_some_and(|open| open.number == number);
        self.sessions.iter().find(holds)
    }

    /// Whether waiting for this transaction would close a circle.
    fn is_deadlock(&self, waiting: SessionId, mut number: u32) -> bool {
        for _ in 0..self.sessions.len() {
            let Some(holder) = self.holder(number) else { return false };
            if holder.id == waiting {
                return true;
            }
            let Some(next) = holder.waits_for else { return false };
            number = next;
        }
        false
    }

    /// A statement that waits for a lock is given up.
    pub(crate) fn lock_timeout(&mut self, id: SessionId) {
        let Some(session) = self.session(id) else { return };
        session.request = None;
        session.fail(Class::Locked);
    }

    /// What was committed and could not be seen can be.
    pub(crate) fn make_visible(&mut self, index: usize) {
        let transaction = self.invisible.remove(index);
        self.tables.make_visible(transaction.number);
    }
}

impl Session {
    /// The statement has waited for a lock, and may still.
    pub(crate) fn has_waited(&self) -> bool {
        self.waits_for.is_some()
    }

    fn fail(&mut self, class: Class) {
        self.waits_for = None;
        self.done = (0, 0);
        if let Some(open) = &mut self.transaction {
            open.failed = true;
        }
        self.result = Some(StatementResult::Failed(class));
    }
}
