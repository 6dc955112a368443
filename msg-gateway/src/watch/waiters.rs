//! `wait_for: STORED`: callers wait until an accepted message is a row or a dead letter.
//!
//! A hint describes the rows that were just stored, and their waiters get their results from it. For all else it names
//! the inbox to look up, and one query looks up the messages of many waiters. Without hints, every waiter's message is
//! looked up at an interval.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use metrics::{Counter, counter};
use msg_common::proto::{Placement, StoredHint, StoredPlacement};
use msg_common::table::Digest;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::budget::{Budget, Permit};
use crate::metrics::STORED_RESULTS;
use crate::status::Failure;
use crate::watch::RETRY_INTERVAL;
use crate::watch::hint_monitor::{HintInterest, HintMonitor};
use crate::watch::hinted_rows::{self, Origin, RecentRows};
use crate::watch::message_key::MessageKey;
use crate::watch::queries::WatchQueries;
use crate::watch::verdict::{self, Awaited, Verdict, WaitResult};
use crate::watch::waiter_queue::{FIRST_LOOKUP_DELAY, Hinted, Waiter, WaiterQueue};

/// The intervals of the lookups after the first one.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(1);
const LOOKUP_INTERVAL_WITHOUT_HINTS: Duration = Duration::from_millis(100);

/// The callers that wait until a message is stored.
pub(crate) struct Waiters {
    /// `None` without a database.
    queries: Option<Arc<WatchQueries>>,
    budget: Arc<Budget>,
    monitor: Arc<HintMonitor>,
    /// The ID of the topic that the gateway writes to, once it is known.
    topic_id: Arc<ArcSwapOption<Uuid>>,
    state: Mutex<State>,
    due: Notify,
    results: Results,
}

#[derive(Default)]
struct State {
    queue: WaiterQueue,
    recent: RecentRows,
}

/// Counts the results of waiters, by source.
struct Results {
    by_hint: Counter,
    by_table: Counter,
}

impl Results {
    /// Returns handles of the installed recorder.
    fn new() -> Self {
        Results {
            by_hint: counter!(STORED_RESULTS, "source" => "hint"),
            by_table: counter!(STORED_RESULTS, "source" => "table"),
        }
    }
}

impl State {
    /// Gives the waiters of the rows that a hint describes their results, if `stored_time_us` says that its rows are of
    /// this gateway's topic and in its table. Makes the other inboxes due, and returns whether one is. `is_sending` says
    /// whether a message may be awaited later whose row is described now.
    fn hinted(
        &mut self,
        hint: &StoredHint,
        stored_time_us: Option<i64>,
        is_sending: bool,
        now: Instant,
    ) -> (Vec<(Waiter, StoredPlacement)>, bool) {
        let (mut completed, mut any) = (Vec::new(), false);
        for inbox in &hint.inboxes {
            // A transfer that describes no rows may be an older one, which does not say whether a record has no row.
            let may_be_without_row = inbox.without_row || inbox.seq == 0 || hint.rows.is_none();
            let mut hinted = if may_be_without_row { Hinted::WithoutRow } else { Hinted::Rows };
            let has_waiters = self.queue.has_waiters(&inbox.recv_id);
            let described = stored_time_us.filter(|_| has_waiters || is_sending);
            for row in described.into_iter().flat_map(|time| hinted_rows::rows(inbox, time)) {
                let waiter = if has_waiters { self.queue.complete_hinted(&inbox.recv_id, &row) } else { None };
                match waiter {
                    Some(waiter) => completed.push((waiter, row.placement())),
                    None if is_sending => self.recent.insert(row),
                    None => {}
                }
                if hinted == Hinted::Rows {
                    hinted = Hinted::AllDescribed;
                }
            }
            any |= has_waiters && self.queue.hinted(&inbox.recv_id, hinted, now);
        }
        (completed, any)
    }

    /// Adds a waiter. Returns its ID, and whether no other lookup is due earlier; or its result, if its row was described
    /// before.
    fn add(&mut self, waiter: Waiter) -> Result<(u64, bool), StoredPlacement> {
        let row = self.recent.get(waiter.awaited.key.hash());
        if let Some(row) = row.filter(|row| waiter.awaited.is_its_hinted_row(row)) {
            return Err(row.placement());
        }
        let first_lookup = waiter.since + FIRST_LOOKUP_DELAY;
        Ok(self.queue.add(waiter, first_lookup))
    }
}

pub(crate) struct WaiterPermit {
    waiters: Arc<Waiters>,
    _permit: Permit,
    _interest: HintInterest,
}

impl Waiters {
    pub(crate) fn new(
        queries: Option<Arc<WatchQueries>>,
        budget: Arc<Budget>,
        monitor: Arc<HintMonitor>,
        topic_id: Arc<ArcSwapOption<Uuid>>,
    ) -> Self {
        let (state, due, results) = (Mutex::default(), Notify::new(), Results::new());
        Waiters { queries, budget, monitor, topic_id, state, due, results }
    }

    /// Acquires a permit for one message. Call it before the message is sent, so that the call can still be rejected.
    pub(crate) fn acquire(self: &Arc<Self>) -> Result<WaiterPermit, Failure> {
        if self.queries.is_none() {
            return Err(Failure::NoDatabase);
        }
        let permit = self.budget.try_acquire(1)?;
        Ok(WaiterPermit { waiters: self.clone(), _permit: permit, _interest: self.monitor.register_interest() })
    }

    /// Gives waiters their results from a hint, and makes the other lookups of its inboxes due.
    pub(crate) fn hinted(&self, hint: &StoredHint) {
        let stored_time_us = self.origin().and_then(|origin| origin.stored_time_us(hint));
        // A message that will be awaited has its permit before it is sent, and so before its row can be described.
        let permits = self.budget.used().items;
        let mut state = self.lock();
        let is_sending = permits > state.queue.len();
        let (completed, any) = state.hinted(hint, stored_time_us, is_sending, Instant::now());
        drop(state);
        for (waiter, stored) in completed {
            self.results.by_hint.increment(1);
            // The waiter may have timed out in this moment.
            let _ = waiter.result.send(Ok(stored));
        }
        if any {
            self.due.notify_one();
        }
    }

    /// Returns the gateway's topic and table, if both are known.
    fn origin(&self) -> Option<Origin> {
        let topic_id = **self.topic_id.load().as_ref()?;
        Some(Origin { topic_id, table: self.queries.as_ref()?.table()? })
    }

    /// Looks up awaited messages until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let Some(queries) = self.queries.clone() else { return };
        let lookups = async {
            loop {
                let next = self.lock().queue.next_lookup();
                let wait = async {
                    match next {
                        Some(when) => tokio::time::sleep_until(when.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = self.due.notified() => {}
                    () = wait => {}
                }
                self.look_up(&queries).await;
            }
        };
        stop.run_until_cancelled(lookups).await;
    }

    async fn look_up(&self, queries: &WatchQueries) {
        let now = Instant::now();
        let again = now + if self.monitor.is_reliable() { LOOKUP_INTERVAL } else { LOOKUP_INTERVAL_WITHOUT_HINTS };
        let awaited = self.lock().queue.due(now, again);
        if awaited.is_empty() {
            return;
        }
        if let Err(failure) = self.find_results(queries, &awaited).await {
            tracing::debug!(?failure, "cannot look up awaited messages, retrying");
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn find_results(&self, queries: &WatchQueries, awaited: &[Awaited]) -> Result<(), Failure> {
        let mut open: BTreeSet<usize> = (0..awaited.len()).collect();
        let rows = queries.rows(&pick(awaited, &open)).await?;
        let (own, others) = verdict::own_rows(awaited, rows);
        self.complete_all(awaited, own, &mut open);
        if !others.is_empty() {
            let indexes = others.iter().map(|row| row.index).collect();
            let digests = queries.digests(&pick(awaited, &indexes)).await?;
            self.complete_all(awaited, verdict::duplicates(awaited, &others, &digests), &mut open);
        }
        open.retain(|index| awaited[*index].may_be_dead);
        if !open.is_empty() {
            let letters = queries.dead_letters(&pick(awaited, &open)).await?;
            self.complete_all(awaited, verdict::dead(awaited, letters), &mut open);
        }
        Ok(())
    }

    fn complete_all(&self, awaited: &[Awaited], verdicts: Vec<Verdict>, open: &mut BTreeSet<usize>) {
        for (index, result) in verdicts {
            open.remove(&index);
            self.complete(awaited[index].id, result);
        }
    }

    fn complete(&self, id: u64, result: WaitResult) {
        let Some((waiter, hinted)) = self.lock().queue.complete(id, Instant::now()) else { return };
        self.results.by_table.increment(1);
        if !hinted && waiter.since.elapsed() > 4 * FIRST_LOOKUP_DELAY {
            self.monitor.mark_unreliable();
        }
        // The waiter may have timed out in this moment.
        let _ = waiter.result.send(result);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pick<'a>(awaited: &'a [Awaited], indexes: &BTreeSet<usize>) -> Vec<(usize, &'a MessageKey)> {
    indexes.iter().map(|index| (*index, &awaited[*index].key)).collect()
}

impl WaiterPermit {
    /// Waits until the record at `placement` is stored or dead-lettered, without a timeout. Returns where it is
    /// stored, or `DeadLettered`. Dropping the future removes the waiter.
    pub(crate) async fn stored(self, recv_id: String, digest: Digest, placement: Placement) -> WaitResult {
        let (result_sender, result) = oneshot::channel();
        let msg_id = Uuid::parse_str(&placement.msg_id)
            .map_err(|_| Failure::Internal("the placement's msg_id is not a UUID".into()))?;
        let send_time = placement.send_time.and_then(|time| SystemTime::try_from(time).ok());
        let key = MessageKey {
            recv_id,
            msg_id,
            send_time: send_time.unwrap_or(SystemTime::UNIX_EPOCH),
            partition: placement.partition,
            offset: placement.offset,
        };
        let awaited = Awaited { id: 0, key, placement, digest, may_be_dead: false };
        let waiter = Waiter { awaited, since: Instant::now(), result: result_sender };
        let _entry = match Entry::new(&self.waiters, waiter) {
            Ok(entry) => entry,
            Err(stored) => {
                self.waiters.results.by_hint.increment(1);
                return Ok(stored);
            }
        };
        result.await.unwrap_or_else(|_| Err(Failure::Internal("stored messages are not looked up any more".into())))
    }
}

/// A waiter's entry in the queue, removed when this is dropped.
struct Entry<'a> {
    waiters: &'a Waiters,
    id: u64,
}

impl<'a> Entry<'a> {
    /// Adds a waiter. Returns its result instead if its row was hinted before.
    fn new(waiters: &'a Waiters, waiter: Waiter) -> Result<Self, StoredPlacement> {
        let (id, first) = waiters.lock().add(waiter)?;
        if first {
            waiters.due.notify_one();
        }
        Ok(Entry { waiters, id })
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.waiters.lock().queue.remove(self.id);
    }
}

#[cfg(test)]
mod tests;
