//! `wait_for: STORED`: callers wait until an accepted message is a row or a dead letter.
//!
//! A hint names the inbox to look up, and one query looks up the messages of many waiters. Without hints, every
//! waiter's message is looked up at an interval.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use msg_common::proto::{Placement, StoredHint};
use msg_common::table::Digest;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::budget::{Budget, Permit};
use crate::status::Failure;
use crate::watch::RETRY_INTERVAL;
use crate::watch::hint_monitor::{HintInterest, HintMonitor};
use crate::watch::queries::{MessageKey, WatchQueries};
use crate::watch::verdict::{self, Awaited, Verdict, WaitResult};
use crate::watch::waiter_queue::{Waiter, WaiterQueue};

/// The delay of the first lookup, because a hint may arrive before its waiter; and the intervals after that.
const FIRST_LOOKUP_DELAY: Duration = Duration::from_millis(50);
const LOOKUP_INTERVAL: Duration = Duration::from_secs(1);
const LOOKUP_INTERVAL_WITHOUT_HINTS: Duration = Duration::from_millis(100);

/// The callers that wait until a message is stored.
pub(crate) struct Waiters {
    /// `None` without a database.
    queries: Option<Arc<WatchQueries>>,
    budget: Arc<Budget>,
    monitor: Arc<HintMonitor>,
    queue: Mutex<WaiterQueue>,
    due: Notify,
}

pub(crate) struct WaiterPermit {
    waiters: Arc<Waiters>,
    _permit: Permit,
    _interest: HintInterest,
}

impl Waiters {
    pub(crate) fn new(queries: Option<Arc<WatchQueries>>, budget: Arc<Budget>, monitor: Arc<HintMonitor>) -> Self {
        Waiters { queries, budget, monitor, queue: Mutex::default(), due: Notify::new() }
    }

    /// Acquires a permit for one message. Call it before the message is sent, so that the call can still be rejected.
    pub(crate) fn acquire(self: &Arc<Self>) -> Result<WaiterPermit, Failure> {
        if self.queries.is_none() {
            return Err(Failure::NoDatabase);
        }
        let permit = self.budget.try_acquire(1)?;
        Ok(WaiterPermit { waiters: self.clone(), _permit: permit, _interest: self.monitor.register_interest() })
    }

    /// Makes the lookups of these inboxes due.
    pub(crate) fn hinted(&self, hint: &StoredHint) {
        let mut queue = self.lock();
        let now = Instant::now();
        let mut any = false;
        for inbox in &hint.inboxes {
            any |= queue.hinted(&inbox.recv_id, now);
        }
        drop(queue);
        if any {
            self.due.notify_one();
        }
    }

    /// Looks up awaited messages until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let Some(queries) = self.queries.clone() else { return };
        let lookups = async {
            loop {
                let next = self.lock().next_lookup();
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
        let awaited = self.lock().due(now, again);
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
        let Some((waiter, hinted)) = self.lock().complete(id, Instant::now()) else { return };
        if !hinted && waiter.since.elapsed() > 4 * FIRST_LOOKUP_DELAY {
            self.monitor.mark_unreliable();
        }
        // The waiter may have timed out in this moment.
        let _ = waiter.result.send(result);
    }

    fn lock(&self) -> MutexGuard<'_, WaiterQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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
        let awaited = Awaited { id: 0, key, placement, digest };
        let _entry = Entry::new(&self.waiters, Waiter { awaited, since: Instant::now(), result: result_sender });
        result.await.unwrap_or_else(|_| Err(Failure::Internal("stored messages are not looked up any more".into())))
    }
}

/// A waiter's entry in the queue, removed when this is dropped.
struct Entry<'a> {
    waiters: &'a Waiters,
    id: u64,
}

impl<'a> Entry<'a> {
    fn new(waiters: &'a Waiters, waiter: Waiter) -> Self {
        let first_lookup = waiter.since + FIRST_LOOKUP_DELAY;
        let (id, first) = waiters.lock().add(waiter, first_lookup);
        if first {
            waiters.due.notify_one();
        }
        Entry { waiters, id }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.waiters.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acquire_fails_without_a_database() {
        let waiters = Arc::new(Waiters::new(None, Budget::of_items(1), Arc::default()));
        assert_eq!(waiters.acquire().err(), Some(Failure::NoDatabase));
        assert_eq!(waiters.budget.used().items, 0);
    }
}
