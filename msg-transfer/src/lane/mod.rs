//! A lane: one task with one database connection. What has the same key is in the same lane, in order. It stores what
//! is waiting while the next batch gathers, so batches grow with the load and a lone message does not wait.

mod blocked;
pub mod connection;
pub mod decoded;
pub mod headers;
pub mod item;
mod letters;
pub mod sql;
pub mod statements;

use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::Reason;
use machine::consumer::Event;
use machine::failure::Class;
use machine::lane::{BatchFailure, Machine, Outcome, Request, Response};
use msg_common::admin::Readiness;
use msg_common::repeat::Repeats;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use self::blocked::BlockedInboxes;
use self::connection::Connection;
use self::decoded::DecodedRecord;
use self::item::Item;
use crate::hints::Hints;
use crate::{backoff, metrics};

/// Where a lane is reached.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Takes records.
    pub items: mpsc::Sender<Item>,
    /// Notified when the lane may write the dead letters that it requested.
    pub approved: Arc<Notify>,
}

/// Batches that cannot be stored, and dead letters, of all lanes.
static BATCH_FAILURES: Repeats = Repeats::new();
static DEAD_LETTERS: Repeats = Repeats::new();

/// From so many conflicts in a row on, it is no other owner: a unique index of somebody's own, perhaps.
const MANY_CONFLICTS: usize = 5;

/// How large a batch may get.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Records.
    pub records: usize,
    /// Bytes of keys, values and headers.
    pub bytes: usize,
    /// Batches begin no closer together than this, unless they are full.
    pub interval: Duration,
}

/// One lane.
#[derive(Debug)]
pub struct Lane {
    /// Decides.
    pub machine: Machine<DecodedRecord>,
    /// What is waiting. Its capacity is above what the consumer takes in, so nobody ever waits to put something in.
    pub waiting: mpsc::Receiver<Item>,
    /// Notified when the lane may write the dead letters that it requested.
    pub approved: Arc<Notify>,
    /// Where the consumer listens.
    pub events: std::sync::mpsc::Sender<Event>,
    /// Where the rows go.
    pub connection: Connection,
    /// How large a batch may get.
    pub limits: BatchLimits,
    /// Where it tells what is stored, if anywhere.
    pub hints: Option<Hints>,
    /// Says when the database does not take the rows.
    pub readiness: Readiness,
    /// Ends the retries: the process gives up what it has not stored.
    pub give_up: CancellationToken,
}

impl Lane {
    /// Stores what comes until nobody can send any more, or told to give up.
    pub async fn run(mut self) {
        let mut items = Vec::new();
        let mut next = tokio::time::Instant::now();
        let mut blocked = BlockedInboxes::new(self.machine.number(), self.readiness.clone());
        loop {
            if !self.tend(&mut blocked).await {
                return;
            }
            let received = match blocked.wake() {
                // With others waiting, an attempt comes between two batches.
                Some(wake) => tokio::time::timeout_at(wake.into(), self.waiting.recv()).await,
                None => Ok(self.waiting.recv().await),
            };
            let first = match received {
                Ok(Some(first)) => first,
                Ok(None) => return,
                Err(_) => continue,
            };
            let mut bytes = first.record_ref().bytes;
            items.push(first);
            self.gather(&mut items, &mut bytes);
            if self.has_room(&items, bytes) && tokio::time::Instant::now() < next {
                // A transaction costs the server the same for five rows as for fifty. Who comes alone does not wait here.
                tokio::time::sleep_until(next).await;
                self.gather(&mut items, &mut bytes);
            }
            next = tokio::time::Instant::now() + self.limits.interval;
            let stored = self.give_up.clone().run_until_cancelled_owned(self.store(&mut items)).await;
            if stored.is_none() {
                return;
            }
            blocked.update(self.machine.blocked());
        }
    }

    /// Tries the next blocked inbox, if its time has come, and drops what need not wait any more. False: it is to give up.
    async fn tend(&mut self, blocked: &mut BlockedInboxes) -> bool {
        if blocked.wake().is_none() {
            return true;
        }
        let mut events = Vec::new();
        self.machine.sweep(&mut events);
        if blocked.is_due() {
            let begun = Instant::now();
            if let Some(request) = self.machine.retry(&mut events) {
                metrics::blocked_retried();
                let give_up = self.give_up.clone();
                let tried = self.carry_on(request, events);
                let Some(outcome) = give_up.run_until_cancelled_owned(tried).await else { return false };
                if outcome == Outcome::default()
                    && let Some(still) = self.machine.blocked().last()
                {
                    metrics::store_failed(still.failure.class);
                }
                self.tell(outcome.stored + outcome.duplicates, &outcome, begun.elapsed());
                events = Vec::new();
            }
            blocked.tried(begun.elapsed(), self.machine.blocked());
        }
        for event in events {
            self.send(event);
        }
        blocked.update(self.machine.blocked());
        true
    }

    /// Takes what is waiting, up to the limits.
    fn gather(&mut self, items: &mut Vec<Item>, bytes: &mut usize) {
        while self.has_room(items, *bytes) {
            let Ok(item) = self.waiting.try_recv() else { break };
            *bytes += item.record_ref().bytes;
            items.push(item);
        }
    }

    fn has_room(&self, items: &[Item], bytes: usize) -> bool {
        items.len() < self.limits.records && bytes < self.limits.bytes
    }

    /// Comes back when each item is completed or dropped, however long the database is away.
    async fn store(&mut self, items: &mut Vec<Item>) {
        let (count, begun) = (items.len(), Instant::now());
        let mut events = Vec::new();
        let request = self.machine.begin(items.drain(..).map(DecodedRecord::read).collect(), &mut events);
        let outcome = self.carry_on(request, events).await;
        // Nothing of this lane's waits for the database any more, but for blocked inboxes.
        self.readiness.ready(&self.component());
        self.tell(count, &outcome, begun.elapsed());
    }

    /// Does what the machine asks for, until it is done.
    async fn carry_on(&mut self, mut request: Request, mut events: Vec<Event>) -> Outcome {
        loop {
            for event in events.drain(..) {
                self.send(event);
            }
            let answer = match request {
                Request::Done(outcome) => return outcome,
                Request::ApproveDeadLetters(dead) => {
                    self.send(Event::DeadLettersRequested { lane: self.machine.number(), dead });
                    self.approved.notified().await;
                    Response::Ok
                }
                Request::Wait(failed) => {
                    self.wait(&failed).await;
                    Response::Ok
                }
                request => {
                    if let (Request::BeginSearch, Some(cause)) = (&request, self.machine.searching()) {
                        // It may take long, time-out after time-out.
                        self.readiness.not_ready(&self.component(), &cause.text);
                    }
                    let answer = self.connection.carry_out(&request, self.machine.entries()).await;
                    if (&request, &answer) == (&Request::Commit, &Response::Ok) {
                        self.hint();
                    }
                    answer
                }
            };
            request = self.machine.handle(answer, &mut events);
        }
    }

    /// After a COMMIT was answered: all entries are completed, and the rows among them are there.
    fn hint(&self) {
        let Some(hints) = &self.hints else { return };
        let (entries, numbered) = (self.machine.entries(), self.machine.numbered());
        let rows = numbered.iter().map(|row| (entries[row.entry].body.record().msg.recv_id.as_str(), row.seq));
        // Those without a row are few, mostly none.
        let others = if numbered.len() < entries.len() { entries } else { &[] };
        hints.tell(rows.chain(others.iter().filter_map(|entry| Some((entry.body.known_recv_id()?, 0)))));
    }

    fn tell(&self, records: usize, outcome: &Outcome, took: Duration) {
        if *outcome != Outcome::default() {
            metrics::batch_stored(records, outcome, took);
        }
        if !outcome.dead_letters.is_empty() {
            let count = outcome.dead_letters.len();
            // Callers cause conflicts, and find them in their response or status; the rest is for an operator to look at.
            let conflicts =
                outcome.dead_letters.iter().filter(|reason| **reason == Reason::IdempotencyConflict).count();
            if count == conflicts {
                tracing::debug!(lane = self.machine.number(), count, "records dead-lettered as conflicts");
            } else if let Some(repeated) = DEAD_LETTERS.occurred("") {
                tracing::warn!(lane = self.machine.number(), count, conflicts, repeated, "records dead-lettered");
            }
        }
    }

    async fn wait(&self, BatchFailure { failure, attempts }: &BatchFailure) {
        let (lane, error, class) = (self.machine.number(), failure.text.as_str(), failure.class);
        metrics::store_failed(class);
        // All lanes meet the same database, each again and again.
        let repeated = BATCH_FAILURES.occurred(error);
        match class {
            // Another owner was faster; the table tells how far. Again and again it is something else.
            Class::Conflict if *attempts < MANY_CONFLICTS => {
                tracing::info!(lane, error, "another owner wrote the same inbox, looking again");
            }
            Class::Fatal => {
                if let Some(repeated) = repeated {
                    tracing::error!(
                        lane,
                        error,
                        repeated,
                        "the database refuses the batch, an operator has to look; trying again"
                    );
                }
                self.readiness.not_ready(&self.component(), error);
            }
            _ => {
                if let Some(repeated) = repeated {
                    tracing::warn!(lane, error, ?class, repeated, "batch not stored, will be tried again");
                }
                self.readiness.not_ready(&self.component(), error);
            }
        }
        tokio::time::sleep(backoff::jittered(backoff::ceiling(class, *attempts))).await;
    }

    fn component(&self) -> String {
        format!("database (lane {})", self.machine.number())
    }

    fn send(&self, event: Event) {
        // Nobody listens any more only when the process is ending.
        let _ = self.events.send(event);
    }
}
