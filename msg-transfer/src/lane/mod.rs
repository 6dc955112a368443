//! A lane: one task with one database connection. What has the same key is in the same lane, in order. It stores what
//! is waiting while the next batch gathers, so batches grow with the load and a lone message does not wait.

pub mod batch;
pub mod cache;
pub mod item;
pub mod sql;
pub mod store;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use msg_common::admin::Readiness;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::batch::{Batch, TooNew};
use self::item::Item;
use self::store::{Outcome, Store, StoreError};
use crate::backoff::Backoff;
use crate::failure::Class;
use crate::machine::{Event, Receipt};
use crate::metrics;

/// Which lane a key goes to, whatever its partition.
pub fn lane_for(key: Option<&[u8]>, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    usize::try_from(hasher.finish() % lanes as u64).expect("below a usize")
}

/// How large a batch may get.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Records.
    pub records: usize,
    /// Bytes of keys, values and headers.
    pub bytes: usize,
    /// Batches begin no closer together than this, unless they are full.
    pub interval: Duration,
    /// How long one attempt to store it may take, from the first statement to the COMMIT's answer.
    pub attempt: Duration,
}

/// One lane.
#[derive(Debug)]
pub struct Lane {
    /// Its number, from 0.
    pub number: usize,
    /// What is waiting. Its capacity is above what the consumer takes in, so nobody ever waits to put something in.
    pub waiting: mpsc::Receiver<Item>,
    /// Where the consumer listens.
    pub events: std::sync::mpsc::Sender<Event>,
    /// Where the rows go.
    pub store: Store,
    /// How large a batch may get.
    pub limits: BatchLimits,
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
        while let Some(first) = self.waiting.recv().await {
            let mut bytes = first.receipt().bytes;
            items.push(first);
            self.gather(&mut items, &mut bytes);
            if self.has_room(&items, bytes) && tokio::time::Instant::now() < next {
                // A transaction costs the server the same for five rows as for fifty. Who comes alone does not wait here.
                tokio::time::sleep_until(next).await;
                self.gather(&mut items, &mut bytes);
            }
            next = tokio::time::Instant::now() + self.limits.interval;
            let stored = self.give_up.clone().run_until_cancelled_owned(self.store_all(&mut items)).await;
            if stored.is_none() {
                return;
            }
        }
    }

    /// Takes what is waiting, up to the limits.
    fn gather(&mut self, items: &mut Vec<Item>, bytes: &mut usize) {
        while self.has_room(items, *bytes) {
            let Ok(item) = self.waiting.try_recv() else { break };
            *bytes += item.receipt().bytes;
            items.push(item);
        }
    }

    fn has_room(&self, items: &[Item], bytes: usize) -> bool {
        items.len() < self.limits.records && bytes < self.limits.bytes
    }

    /// Comes back when each item is settled or dropped, however long the database is away.
    async fn store_all(&mut self, items: &mut Vec<Item>) {
        let mut backoff = Backoff::default();
        while let Some(mut batch) = self.decode(items) {
            let begun = Instant::now();
            let attempt = tokio::time::timeout(self.limits.attempt, self.store.store(items, &mut batch)).await;
            match attempt {
                Ok(Ok(outcome)) => {
                    self.settled(items, outcome, begun.elapsed());
                    return;
                }
                Ok(Err(StoreError::Stale)) => {
                    self.store.reset();
                    // At once: what waits behind must not be stored before what the database may have lost.
                    for item in items.iter() {
                        item.assignment.fence();
                    }
                    self.send(Event::Restart);
                }
                // What is left of the batch is not to blame.
                Ok(Err(StoreError::Fenced)) => self.store.reset(),
                Ok(Err(error)) => self.failed(&error.to_string(), error.class(), &mut backoff).await,
                Err(_) => self.failed("the database did not answer in time", Class::Transient, &mut backoff).await,
            }
        }
    }

    /// Lets go of what may not be written any more, and reads the rest; `None` when nothing is left.
    fn decode(&self, items: &mut Vec<Item>) -> Option<Batch> {
        loop {
            let fenced: Vec<Receipt> =
                items.extract_if(.., |item| item.assignment.is_fenced()).map(|item| item.receipt()).collect();
            if !fenced.is_empty() {
                self.send(Event::Dropped(fenced));
            }
            if items.is_empty() {
                // Nothing of this lane's waits for the database any more.
                self.readiness.ready(&self.component());
                return None;
            }
            match Batch::decode(items) {
                Ok(batch) => return Some(batch),
                Err(TooNew { item, reason }) => {
                    // At once, and for all lanes: a later record to the same inbox must not pass this one.
                    let item = &items[item];
                    item.assignment.fence();
                    let (partition, epoch) = (item.partition, item.assignment.epoch);
                    let reason = format!("offset {}: {reason}", item.offset);
                    self.send(Event::Halt { partition, epoch, reason });
                }
            }
        }
    }

    fn settled(&self, items: &mut Vec<Item>, outcome: Outcome, took: Duration) {
        self.readiness.ready(&self.component());
        metrics::batch_stored(items.len(), outcome, took);
        if outcome.dead_letters > 0 {
            tracing::warn!(lane = self.number, count = outcome.dead_letters, "records kept as dead letters");
        }
        self.send(Event::Settled(items.drain(..).map(|item| item.receipt()).collect()));
    }

    async fn failed(&mut self, error: &str, class: Class, backoff: &mut Backoff) {
        self.store.reset();
        metrics::store_failed(class);
        if class == Class::Conflict {
            // Another owner was faster; the table tells how far.
            tracing::info!(lane = self.number, "another owner wrote the same inbox, looking again");
        } else {
            self.readiness.not_ready(&self.component(), error);
            tracing::warn!(lane = self.number, error, ?class, "batch not stored, will be tried again");
        }
        backoff.wait().await;
    }

    fn component(&self) -> String {
        format!("database (lane {})", self.number)
    }

    fn send(&self, event: Event) {
        // Nobody listens any more only when the process is ending.
        let _ = self.events.send(event);
    }
}
