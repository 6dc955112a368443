//! A lane: makes batches of the waiting records, and executes its machine's requests one at a time over one session.

use std::collections::VecDeque;

use machine::consumer::Event;
use machine::error::{ClassifiedError, ErrorClass};
use machine::lane::{Entry, Machine, Message, NumberedEntry, Request, Response, Settings};
use machine::reference_connection::Query;
use uuid::Uuid;

use super::Parts;
use super::reference::Requester;
use crate::assignment_id::AssignmentId;
use crate::config::{Config, Fault};
use crate::database::{Client, Dead, Polled, Row, SessionId, Statement, StatementResult};
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::log::{INBOXES, Record, RecordKind};

impl Message for Record {
    fn recv_id(&self) -> &str {
        INBOXES[self.inbox as usize]
    }

    fn msg_id(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.id))
    }
}

/// The activity of a lane, or the event that the lane waits for.
#[derive(Debug)]
enum Activity {
    Idle,
    /// Has a request from the machine that is not started yet.
    Decided(Request),
    Statement,
    /// Waits for the check of the reference connection, after the lane opened a new connection.
    Reference,
    /// Waits until the consumer's thread approves dead letters.
    Approval,
    Backoff,
    /// Has a result that the machine has not received.
    HasResult(Response),
}

#[derive(Debug)]
pub(super) struct Lane {
    client: Client,
    machine: Machine<Record>,
    pub(super) waiting: VecDeque<Entry<Record>>,
    activity: Activity,
    /// Whether the last turn retried a blocked inbox.
    has_retried: bool,
    pub(super) session: Option<SessionId>,
}

impl Lane {
    pub(super) fn new(number: usize, client: Client, config: &Config) -> Self {
        let settings = Settings {
            cached_inboxes: config.cached_inboxes,
            guard: config.guard,
            insert_new: config.insert_new,
            huge: RecordKind::HUGE,
            batch_records: config.batch,
            batch_bytes: 1000,
            conflict_limit: 3,
            conflict_window: 10,
        };
        let machine = Machine::new(number, settings);
        Lane { client, machine, waiting: VecDeque::new(), activity: Activity::Idle, has_retried: false, session: None }
    }

    /// Returns a record of a wanted partition that the lane may still store.
    pub(super) fn unfenced(&self, wanted: impl Fn(i32) -> bool) -> Option<Record> {
        let entries = self.waiting.iter().chain(self.machine.entries());
        let mut unfenced = entries.filter(|entry| wanted(entry.record_ref.partition) && !entry.assignment.is_fenced());
        unfenced.next().map(|entry| entry.body)
    }

    pub(super) fn dead_letters_approved(&mut self) {
        if matches!(self.activity, Activity::Approval) {
            self.activity = Activity::HasResult(Response::Ok);
        }
    }

    /// Receives whether the reference connection is still open.
    pub(super) fn reference_checked(&mut self, alive: bool, env: &mut Env) {
        if !alive {
            env.count(Fact::Stale);
            self.close(env);
        }
        self.activity = Activity::HasResult(if alive { Response::Ok } else { Response::Stale });
    }

    fn close(&mut self, env: &mut Env) {
        if let Some(session) = self.session.take() {
            env.database.disconnect(session);
        }
    }

    fn record(&self, entry: usize) -> Record {
        self.machine.entries()[entry].body
    }

    fn rows(&self, numbered: &[NumberedEntry]) -> Vec<Row> {
        numbered.iter().map(|row| Row { seq: row.seq, record: self.record(row.entry) }).collect()
    }

    fn statement(&self, request: &Request) -> Option<Statement> {
        Some(match request {
            Request::LastSeqs(entries) => {
                Statement::LastSeqs(entries.iter().map(|entry| (*entry, self.record(*entry).inbox)).collect())
            }
            Request::Begin | Request::BeginRetry => Statement::Begin,
            Request::Guard(heads) => Statement::Guard(self.rows(heads)),
            Request::Insert(numbered) => Statement::Insert(self.rows(numbered)),
            Request::InsertNew(numbered) => Statement::InsertNew(self.rows(numbered)),
            Request::FindStored(entries) => {
                Statement::FindStored(entries.iter().map(|entry| (*entry, self.record(*entry))).collect())
            }
            Request::InsertDeadLetters(dead) => {
                let letter = |dead: &machine::lane::DeadLetter| {
                    let epoch = self.machine.entries()[dead.entry].record_ref.epoch;
                    let Client { process, restarts, .. } = self.client;
                    let by = AssignmentId { process, restarts, epoch };
                    let record = self.record(dead.entry);
                    (dead.entry, Dead { record, reason: dead.reason, by, journal_index: 0 })
                };
                Statement::InsertDead(dead.iter().map(letter).collect())
            }
            Request::Commit => Statement::Commit,
            Request::Rollback => Statement::Rollback,
            Request::BeginBisection | Request::BeginSearch => Statement::BeginBisection,
            Request::Canary(replaced) => Statement::Canary(replaced.map(|row| self.rows(&[row])[0])),
            Request::MoveSavepoint => Statement::MoveSavepoint,
            Request::RollbackToSavepoint => Statement::RollbackToSavepoint,
            Request::Done(_)
            | Request::ApproveDeadLetters(_)
            | Request::Connect(_)
            | Request::Disconnect
            | Request::Wait(_) => {
                return None;
            }
        })
    }
}

fn failed(class: ErrorClass) -> Response {
    Response::Failed(ClassifiedError { class, text: class.name().to_owned() })
}

impl Parts {
    pub(super) fn lane_turn(&mut self, number: usize, env: &mut Env) -> bool {
        let mut events = Vec::new();
        let lane = &mut self.lanes[number];
        let activity = std::mem::replace(&mut lane.activity, Activity::Idle);
        let response = match activity {
            Activity::Idle => {
                lane.machine.sweep(&mut events);
                self.events.extend(events.drain(..));
                // Batches and retries take turns.
                lane.has_retried = !lane.has_retried && lane.machine.blocked().next().is_some();
                if lane.has_retried
                    && (env.healing || env.choices.one_in(3))
                    && let Some(request) = lane.machine.retry(&mut events)
                {
                    env.count(Fact::BlockedRetry);
                    self.events.extend(events);
                    self.decided(number, request, env);
                    return true;
                }
                if lane.waiting.is_empty() {
                    return false;
                }
                // A lane waits for more records before it begins a batch that is not full.
                let gathers = lane.waiting.len() < env.config.batch && env.config.delayed_reads > 0 && !env.healing;
                if gathers && !env.choices.one_in(env.config.delayed_reads) {
                    return false;
                }
                let batch = lane.waiting.drain(..lane.waiting.len().min(env.config.batch)).collect();
                let request = lane.machine.begin(batch, &mut events);
                self.events.extend(events);
                self.decided(number, request, env);
                return true;
            }
            Activity::Decided(request) => {
                self.begin_request(number, request, env);
                return true;
            }
            Activity::Statement => match lane.poll(env) {
                Some(response) => response,
                None => {
                    lane.activity = Activity::Statement;
                    return false;
                }
            },
            waits @ (Activity::Reference | Activity::Approval) => {
                lane.activity = waits;
                return false;
            }
            Activity::Backoff => Response::Ok,
            Activity::HasResult(response) => response,
        };
        count(&response, env);
        let request = self.lanes[number].machine.handle(response, &mut events);
        self.events.extend(events);
        self.decided(number, request, env);
        true
    }

    /// Begins the request immediately, or sometimes later: a process may be frozen in between.
    fn decided(&mut self, number: usize, request: Request, env: &mut Env) {
        if !env.healing && env.choices.one_in(env.config.delayed_sends) {
            self.lanes[number].activity = Activity::Decided(request);
        } else {
            self.begin_request(number, request, env);
        }
    }

    fn begin_request(&mut self, number: usize, request: Request, env: &mut Env) {
        let lane = &mut self.lanes[number];
        if let Some(statement) = lane.statement(&request) {
            if matches!(statement, Statement::BeginBisection) {
                env.count(Fact::Bisection);
            }
            match lane.session {
                Some(session) => env.database.send(session, statement),
                None => env.violate(format!("lane {number} sends {} without a connection", statement.show())),
            }
            lane.activity = Activity::Statement;
            return;
        }
        lane.activity = match request {
            Request::Done(outcome) => {
                env.facts.add(Fact::Duplicate, outcome.duplicates);
                let rejected = [machine::Reason::RejectedByDatabase, machine::Reason::TooLarge];
                let found = outcome.dead_letters.iter().filter(|reason| rejected.contains(reason)).count();
                env.facts.add(Fact::Rejected, found);
                Activity::Idle
            }
            Request::ApproveDeadLetters(dead) => {
                env.facts.add(Fact::DeadLettersRequested, dead.len());
                self.events.push_back(Event::DeadLettersRequested { lane: number, dead });
                Activity::Approval
            }
            Request::Connect(connection_number) => {
                lane.close(env);
                lane.session = env.database.connect(lane.client);
                if lane.session.is_some() {
                    self.reference.query(Query::IsAlive(connection_number), Requester::Lane(number));
                    Activity::Reference
                } else {
                    env.count(Fact::NoConnection);
                    Activity::HasResult(failed(ErrorClass::Lost))
                }
            }
            Request::Disconnect => {
                lane.close(env);
                Activity::HasResult(Response::Ok)
            }
            Request::Wait(failed) => {
                if failed.error.text.contains("not visible yet") {
                    env.count(Fact::Guarded);
                }
                Activity::Backoff
            }
            other => unreachable!("{other:?} is a statement"),
        };
    }
}

impl Lane {
    fn poll(&mut self, env: &mut Env) -> Option<Response> {
        let Some(session) = self.session else { return Some(failed(ErrorClass::Lost)) };
        if !env.database.has_result(session) {
            let times_out = !env.healing && env.config.has(Fault::ClientTimeout) && env.choices.one_in(30);
            if times_out {
                env.count(Fact::ClientTimeout);
            }
            return times_out.then(|| failed(ErrorClass::Lost));
        }
        let delayed_reads = env.config.delayed_reads;
        if delayed_reads > 0 && !env.healing && !env.choices.one_in(delayed_reads) {
            return None;
        }
        Some(match env.database.poll(session) {
            Polled::Result(StatementResult::Lane(response)) => response,
            Polled::Result(StatementResult::Failed(class)) => failed(class),
            Polled::Result(result) => unreachable!("{result:?} is no result for a lane"),
            Polled::Broken | Polled::Pending => failed(ErrorClass::Lost),
        })
    }
}

fn count(response: &Response, env: &mut Env) {
    if let Response::Failed(error) = response
        && error.class == ErrorClass::Conflict
    {
        env.count(Fact::SeqCollision);
    }
}
