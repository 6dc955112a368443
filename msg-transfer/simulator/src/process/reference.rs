//! The task that owns the reference connection. It sends queries one after the other, as the machine decides.

use std::collections::VecDeque;

use machine::Partition;
use machine::consumer::Event;
use machine::reference_connection::{Next, Query, ReferenceConnection};

use super::Parts;
use crate::config::Fault;
use crate::database::{Client, Polled, Reply, SessionId, Statement};
use crate::env::Env;
use crate::facts::Fact;

/// The task that waits for the answer to a query.
#[derive(Clone, Debug)]
pub(super) enum Waiter {
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
    waiting: VecDeque<(Query, Waiter)>,
    pending: Option<(Query, Waiter)>,
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

    pub(super) fn query(&mut self, query: Query, waiter: Waiter) {
        self.waiting.push_back((query, waiter));
    }

    pub(super) fn check(&mut self) {
        if !self.waiting.iter().any(|(query, _)| *query == Query::Check) {
            self.query(Query::Check, Waiter::Check);
        }
    }

    pub(super) fn number(&self) -> machine::ConnectionNumber {
        self.machine.number()
    }

    fn close(&mut self, env: &mut Env) {
        if let Some(session) = self.session.take() {
            env.database.let_go(session);
        }
    }
}

impl Parts {
    pub(super) fn reference_turn(&mut self, env: &mut Env) -> bool {
        let reference = &mut self.reference;
        if let Some((query, waiter)) = reference.pending.take() {
            let Some(reply) = reference.poll(env) else {
                reference.pending = Some((query, waiter));
                return false;
            };
            reference.machine.answered(&query, reply.is_some());
            if reply.is_none() {
                reference.close(env);
            }
            self.answered(&waiter, reply, env);
            return true;
        }
        let Some((query, waiter)) = reference.waiting.pop_front() else { return false };
        match reference.machine.next(&query) {
            Next::Connect => {
                reference.close(env);
                reference.session = env.database.connect(reference.client);
                if reference.session.is_none() {
                    env.count(Fact::NoConnection);
                    self.answered(&waiter, None, env);
                    return true;
                }
                reference.machine.connected();
                reference.send(query, waiter, env);
            }
            Next::Send => reference.send(query, waiter, env),
            Next::Answer(yes) => {
                let reply = yes.then_some(Reply::Answer(machine::lane::Answer::Ok));
                self.answered(&waiter, reply, env);
            }
        }
        true
    }

    /// `None`: no, or no answer.
    fn answered(&mut self, waiter: &Waiter, reply: Option<Reply>, env: &mut Env) {
        match waiter {
            Waiter::Lane(lane) => self.lanes[*lane].reference_checked(reply.is_some(), env),
            Waiter::Check if reply.is_some() => {}
            Waiter::Check => self.events.push_back(Event::Restart),
            Waiter::Save(_) => match reply {
                Some(Reply::Saved(incarnation)) => {
                    self.commits.saved_to = Some(incarnation);
                    self.events.push_back(Event::ProgressSaved);
                }
                _ => {
                    env.count(Fact::SaveRefused);
                    self.events.extend([Event::ProgressFailed, Event::Restart]);
                }
            },
            Waiter::Start(task, _) => self.loaded(*task, reply),
            Waiter::Lower(task, partition, _) => {
                self.lowered(*task, *partition, matches!(reply, Some(Reply::Lowered(true))));
            }
        }
    }
}

impl ReferenceTask {
    fn send(&mut self, query: Query, waiter: Waiter, env: &mut Env) {
        let statement = match &waiter {
            Waiter::Lane(_) | Waiter::Check => Statement::Ping,
            Waiter::Save(statement) | Waiter::Start(_, statement) | Waiter::Lower(_, _, statement) => statement.clone(),
        };
        if let Some(session) = self.session {
            env.database.send(session, statement);
        }
        self.pending = Some((query, waiter));
    }

    /// `None`: not yet. `Some(None)`: it failed.
    fn poll(&mut self, env: &mut Env) -> Option<Option<Reply>> {
        let Some(session) = self.session else { return Some(None) };
        if !env.database.has_news(session) {
            let gives_up = !env.healing && env.config.has(Fault::ClientTimeout) && env.choices.one_in(30);
            if gives_up {
                env.count(Fact::ClientTimeout);
            }
            return gives_up.then_some(None);
        }
        Some(match env.database.poll(session) {
            Polled::Reply(Reply::Failed(_)) | Polled::Broken | Polled::Nothing => None,
            Polled::Reply(reply) => Some(reply),
        })
    }
}
