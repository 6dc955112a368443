//! A model of PostgreSQL: sessions that interleave statement by statement at READ COMMITTED, locks on unique keys,
//! savepoints, and a server that breaks connections, rejects rows, or is restored to an earlier commit.

mod show;
pub(crate) mod statement;
pub(crate) mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use machine::error::ErrorClass;

pub(crate) use self::statement::{Observation, Statement, StatementEffect, StatementResult};
pub(crate) use self::tables::{Dead, Row, Tables};

pub(crate) type SessionId = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) process: usize,
    pub(crate) restarts: u32,
    /// The lane's number, or `None` for the reference connection.
    pub(crate) lane: Option<usize>,
}

impl Client {
    pub(crate) fn show(&self) -> String {
        match self.lane {
            Some(lane) => format!("P{}.{} lane {lane}", self.process, self.restarts),
            None => format!("P{}.{} reference connection", self.process, self.restarts),
        }
    }
}

/// A transaction that is open, or committed and not visible yet.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    number: u32,
    pub(crate) rows: Vec<Row>,
    pub(crate) dead: Vec<Dead>,
    savepoint: (usize, usize),
    has_savepoint: bool,
    failed: bool,
    /// Whether the transaction is a bisection, which checks deferred constraints immediately.
    is_bisection: bool,
}

/// Why an inbox cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// The INSERT of a row fails.
    Row(ErrorClass),
    /// The INSERT of a row succeeds without an effect, as with a trigger that discards it.
    Discarded,
    /// The COMMIT fails: a deferred constraint.
    Commit(ErrorClass),
    /// The last `seq` cannot be read: a damaged page of the index.
    LastSeq,
    /// Neither can a row be inserted, nor looked up by its ID: a damaged page of the other index.
    Lookup,
    /// The INSERT of a dead letter fails. Rows are accepted.
    DeadLetter(ErrorClass),
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) client: Client,
    pub(crate) client_connected: bool,
    /// Whether the server still serves the session.
    pub(crate) alive: bool,
    pub(crate) request: Option<Statement>,
    /// The number of the statement's rows that are processed, and how many of these were inserted.
    done: (usize, usize),
    waits_for: Option<u32>,
    result: Option<StatementResult>,
    pub(crate) transaction: Option<Transaction>,
}

#[derive(Debug, Default)]
pub(crate) struct Database {
    pub(crate) tables: Tables,
    /// Only the sessions that a client keeps open or that the server serves.
    pub(crate) sessions: Vec<Session>,
    /// The transactions that are committed and not visible yet.
    pub(crate) invisible: Vec<Transaction>,
    /// The number of times that the server was restored to an earlier commit.
    pub(crate) incarnation: u32,
    pub(crate) refuses_connections: bool,
    /// Whether the server rejects every message, as after a bad migration.
    pub(crate) rejects_all: bool,
    pub(crate) read_only: bool,
    /// Whether any statement may need too long.
    pub(crate) slow: bool,
    /// The inboxes that cannot be written.
    pub(crate) blocked: BTreeMap<u8, Block>,
    last_session: SessionId,
    last_transaction: u32,
}

/// The result of polling a session.
#[derive(Debug)]
pub(crate) enum Polled {
    Pending,
    Result(StatementResult),
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
            client_connected: true,
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

    /// Sends the client's statement, which is dropped if the connection is broken.
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

    /// Closes the client's end. The server notices later, and may execute the statement that was sent before.
    pub(crate) fn disconnect(&mut self, id: SessionId) {
        if let Some(session) = self.session(id) {
            session.client_connected = false;
        }
        self.remove_ended_sessions();
    }

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
        self.sessions.retain(|session| session.client_connected || session.alive);
    }

    /// Breaks every connection. Results that are in flight arrive only if `results_arrive`.
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

    /// Restarts the server without its last `commits` commits.
    pub(crate) fn restore(&mut self, commits: usize, results_arrive: bool) {
        self.restart(results_arrive);
        self.tables.restore(commits);
        self.incarnation += 1;
    }

    /// Returns whether a transaction holds a lock on the table that a change of the table must wait for. A bisection
    /// acquires that lock first.
    pub(crate) fn is_table_locked(&self) -> bool {
        let transactions = self.sessions.iter().filter_map(|session| session.transaction.as_ref());
        transactions.into_iter().any(|open| open.is_bisection || !open.rows.is_empty())
    }

    /// Returns whether the session's statement waits for a transaction that has not ended.
    pub(crate) fn is_waiting(&self, session: &Session) -> bool {
        session.waits_for.is_some_and(|number| {
            self.invisible.iter().any(|invisible| invisible.number == number) || self.holder(number).is_some()
        })
    }

    fn holder(&self, number: u32) -> Option<&Session> {
        let holds = |session: &&Session| session.transaction.as_ref().is_some_and(|open| open.number == number);
        self.sessions.iter().find(holds)
    }

    /// Returns whether there is a cycle of waits if `waiting` waits for the transaction `number`.
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

    /// Fails a statement that waits for a lock.
    pub(crate) fn lock_timeout(&mut self, id: SessionId) {
        let Some(session) = self.session(id) else { return };
        session.request = None;
        session.fail(ErrorClass::Locked);
    }

    /// Makes the rows of a committed transaction visible.
    pub(crate) fn make_visible(&mut self, index: usize) {
        let transaction = self.invisible.remove(index);
        self.tables.make_visible(transaction.number);
    }
}

impl Session {
    /// Returns whether the statement waited for a lock at its last step.
    pub(crate) fn has_waited(&self) -> bool {
        self.waits_for.is_some()
    }

    fn fail(&mut self, class: ErrorClass) {
        self.waits_for = None;
        self.done = (0, 0);
        if let Some(open) = &mut self.transaction {
            open.failed = true;
        }
        self.result = Some(StatementResult::Failed(class));
    }
}
