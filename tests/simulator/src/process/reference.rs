//! The task that owns the reference connection and sends queries one after the other, as the machine decides.

use std::collections::VecDeque;

use machine::Partition;
use machine::consumer::Event;
use machine::reference_connection::{Next, Query, ReferenceConnection};

use super::Parts;
use crate::config::Fault;
use crate::database::{Client, Polled, SessionId, Statement, StatementResult};
use crate::env::Env;
use crate::facts::Fact;

/// The lane or task that waits for the result of a query.
#[derive(Clone, Debug)]
pub(super) enum Requester {
    Lane(usize),
    Check,
    /// The task that writes these progress rows.
    Save(Statement),
    /// The start task with this number, and the statement that reads its rows.
    Start(u32, Statement),
    /// The start task with this number, and the statement that lowers a progress row.
    Lower(u32, Partition, Statement),
}

/// The reference connection and the queries that wait for it.
#[derive(Debug)]
pub(super) struct ReferenceTask {
    client: Client,
    machine: ReferenceConnection,
    pub(super) session: Option<SessionId>,
    waiting: VecDeque<(Query, Requester)>,
    pending: Option<(Query, Requester)>,
}

impl ReferenceTask {
    pub(super) fn new(client: Client) -> Self {
        ReferenceTask {
            client,
            machine: ReferenceConnection::default(),
            session: None,
            waiting: VecDeque::new(),
            pending: None,
        }
    }

    pub(super) fn query(&mut self, query: Query, requester: Requester) {
        self.waiting.push_back((query, requester));
    }

    pub(super) fn check(&mut self) {
        if !self.waiting.iter().any(|(query, _)| *query == Query::Check) {
            self.query(Query::Check, Requester::Check);
        }
    }

    pub(super) fn number(&self) -> machine::ConnectionNumber {
        self.machine.number()
    }

    fn close(&mut self, env: &mut Env) {
        if let Some(session) = self.session.take() {
            env.database.disconnect(session);
        }
    }
}

impl Parts {
    pub(super) fn reference_turn(&mut self, env: &mut Env) -> bool {
        let reference = &mut self.reference;
        if let Some((query, requester)) = reference.pending.take() {
            let Some(result) = reference.poll(env) else {
                reference.pending = Some((query, requester));
                return false;
            };
            reference.machine.completed(&query, result.is_some());
            if result.is_none() {
                reference.close(env);
            }
            self.query_ended(&requester, result, env);
            return true;
        }
        let Some((query, requester)) = reference.waiting.pop_front() else { return false };
        match reference.machine.next(&query) {
            Next::Connect => {
                reference.close(env);
                reference.session = env.database.connect(reference.client);
                if reference.session.is_none() {
                    env.count(Fact::NoConnection);
                    self.query_ended(&requester, None, env);
                    return true;
                }
                reference.machine.connected();
                reference.send(query, requester, env);
            }
            Next::Send => reference.send(query, requester, env),
            Next::Known(yes) => {
                let result = yes.then_some(StatementResult::Lane(machine::lane::Response::Ok));
                self.query_ended(&requester, result, env);
            }
        }
        true
    }

    /// Passes the result on. `None` means that the query failed or timed out, or that the reference connection is not
    /// open any more.
    fn query_ended(&mut self, requester: &Requester, result: Option<StatementResult>, env: &mut Env) {
        match requester {
            Requester::Lane(lane) => self.lanes[*lane].reference_checked(result.is_some(), env),
            Requester::Check if result.is_some() => {}
            Requester::Check => self.events.push_back(Event::Restart),
            Requester::Save(_) => match result {
                Some(StatementResult::Saved(incarnation)) => {
                    self.commits.saved_to = Some(incarnation);
                    self.events.push_back(Event::ProgressSaved);
                }
                _ => {
                    env.count(Fact::SaveFailed);
                    self.events.extend([Event::ProgressFailed, Event::Restart]);
                }
            },
            Requester::Start(task, _) => self.loaded(*task, result),
            Requester::Lower(task, partition, _) => {
                self.lowered(*task, *partition, matches!(result, Some(StatementResult::Lowered(true))));
            }
        }
    }
}

impl ReferenceTask {
    fn send(&mut self, query: Query, requester: Requester, env: &mut Env) {
        let statement = match &requester {
            Requester::Lane(_) | Requester::Check => Statement::Ping,
            Requester::Save(statement) | Requester::Start(_, statement) | Requester::Lower(_, _, statement) => {
                statement.clone()
            }
        };
        if let Some(session) = self.session {
            env.database.send(session, statement);
        }
        self.pending = Some((query, requester));
    }

    /// Returns `None` while there is no result, and `Some(None)` if the query failed or timed out.
    fn poll(&mut self, env: &mut Env) -> Option<Option<StatementResult>> {
        let Some(session) = self.session else { return Some(None) };
        if !env.database.has_result(session) {
            let times_out = !env.healing && env.config.has(Fault::ClientTimeout) && env.choices.one_in(30);
            if times_out {
                env.count(Fact::ClientTimeout);
            }
            return times_out.then_some(None);
        }
        Some(match env.database.poll(session) {
            Polled::Result(StatementResult::Failed(_)) | Polled::Broken | Polled::Pending => None,
            Polled::Result(result) => Some(result),
        })
    }
}
