//! The keeper's connection: what is asked over it, one after the other, as its machine says.

use std::collections::VecDeque;

use machine::Partition;
use machine::consumer::Event;
use machine::keeper::{Ask, Keeper, Next};

use super::Parts;
use crate::config::Fault;
use crate::database::{Client, Polled, Reply, SessionId, Statement};
use crate::env::Env;
use crate::facts::Fact;

/// Who waits for the answer.
#[derive(Clone, Debug)]
pub(super) enum For {
    Lane(usize),
    Check,
    /// The rows to write.
    Save(Statement),
    /// The task, and what it reads.
    Start(u32, Statement),
    /// The task, and the row that it puts down.
    Lower(u32, Partition, Statement),
}

/// The task that everybody waits in line for.
#[derive(Debug)]
pub(super) struct KeeperTask {
    client: Client,
    machine: Keeper,
    pub(super) session: Option<SessionId>,
    line: VecDeque<(Ask, For)>,
    asked: Option<(Ask, For)>,
}

impl KeeperTask {
    pub(super) fn new(client: Client) -> Self {
        KeeperTask { client, machine: Keeper::default(), session: None, line: VecDeque::new(), asked: None }
    }

    pub(super) fn ask(&mut self, ask: Ask, who: For) {
        self.line.push_back((ask, who));
    }

    pub(super) fn check(&mut self) {
        if !self.line.iter().any(|(ask, _)| *ask == Ask::Check) {
            self.ask(Ask::Check, For::Check);
        }
    }

    pub(super) fn generation(&self) -> machine::Generation {
        self.machine.generation()
    }

    fn close(&mut self, env: &mut Env) {
        if let Some(session) = self.session.take() {
            env.database.let_go(session);
        }
    }
}

impl Parts {
    pub(super) fn keeper_turn(&mut self, env: &mut Env) -> bool {
        let keeper = &mut self.keeper;
        if let Some((ask, who)) = keeper.asked.take() {
            let Some(reply) = keeper.poll(env) else {
                keeper.asked = Some((ask, who));
                return false;
            };
            keeper.machine.answered(&ask, reply.is_some());
            if reply.is_none() {
                keeper.close(env);
            }
            self.answered(&who, reply, env);
            return true;
        }
        let Some((ask, who)) = keeper.line.pop_front() else { return false };
        match keeper.machine.next(&ask) {
            Next::Connect => {
                keeper.close(env);
                keeper.session = env.database.connect(keeper.client);
                if keeper.session.is_none() {
                    env.count(Fact::NoConnection);
                    self.answered(&who, None, env);
                    return true;
                }
                keeper.machine.connected();
                keeper.send(ask, who, env);
            }
            Next::Send => keeper.send(ask, who, env),
            Next::Answer(yes) => {
                let reply = yes.then_some(Reply::Answer(machine::lane::Answer::Ok));
                self.answered(&who, reply, env);
            }
        }
        true
    }

    /// `None`: no, or no answer.
    fn answered(&mut self, who: &For, reply: Option<Reply>, env: &mut Env) {
        match who {
            For::Lane(lane) => self.lanes[*lane].told(reply.is_some(), env),
            For::Check if reply.is_some() => {}
            For::Check => self.events.push_back(Event::Restart),
            For::Save(_) => match reply {
                Some(Reply::Saved(incarnation)) => {
                    self.commits.saved_to = Some(incarnation);
                    self.events.push_back(Event::ProgressSaved);
                }
                _ => {
                    env.count(Fact::SaveRefused);
                    self.events.extend([Event::ProgressFailed, Event::Restart]);
                }
            },
            For::Start(task, _) => self.loaded(*task, reply),
            For::Lower(task, partition, _) => {
                self.lowered(*task, *partition, matches!(reply, Some(Reply::Lowered(true))));
            }
        }
    }
}

impl KeeperTask {
    fn send(&mut self, ask: Ask, who: For, env: &mut Env) {
        let statement = match &who {
            For::Lane(_) | For::Check => Statement::Ping,
            For::Save(statement) | For::Start(_, statement) | For::Lower(_, _, statement) => statement.clone(),
        };
        if let Some(session) = self.session {
            env.database.send(session, statement);
        }
        self.asked = Some((ask, who));
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
