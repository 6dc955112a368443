//! `wait_for: STORED`: who waits until a message that Kafka has is a row, or is kept aside.
//!
//! A hint says which inbox to look at, and one statement looks for all who wait for it. Without a hint everybody is
//! looked after from time to time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use msg_common::proto::{Placement, StoredHint};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::live::digest::Digest;
use crate::live::look::{Looker, Sought};
use crate::live::pulse::{Interest, Pulse};
use crate::live::verdict::{self, Awaited, Settled, Verdict};
use crate::live::waiting::{Waiter, Waiting};
use crate::status::Failure;

/// A hint may come before the one who waits: how soon to look without one, and how often after that.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_secs(1);
const LOOK_WITHOUT_HINTS: Duration = Duration::from_millis(100);
/// How long to wait after the database did not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// Those who wait.
#[derive(Default)]
pub struct Waiters {
    /// `None` without a database.
    looker: Option<Arc<Looker>>,
    max: usize,
    seats: AtomicUsize,
    pulse: Arc<Pulse>,
    waiting: Mutex<Waiting>,
    due: Notify,
}

/// A place among those who wait; given back when it is dropped.
pub struct Seat {
    waiters: Arc<Waiters>,
    _interest: Interest,
}

impl Waiters {
    /// At most `max` at a time.
    pub fn new(looker: Arc<Looker>, max: usize, pulse: Arc<Pulse>) -> Self {
        Waiters { looker: Some(looker), max, pulse, ..Waiters::default() }
    }

    /// A place for one message, to be taken before anything is sent.
    pub fn enter(self: &Arc<Self>) -> Result<Seat, Failure> {
        if self.looker.is_none() {
            return Err(Failure::NoDatabase);
        }
        // Added first: two at once cannot both take the last place.
        let seat = Seat { waiters: self.clone(), _interest: self.pulse.interest() };
        if self.seats.fetch_add(1, Ordering::Relaxed) >= self.max {
            return Err(Failure::Overloaded("too many messages are waited for".into()));
        }
        Ok(seat)
    }

    /// How many wait.
    pub fn seats(&self) -> usize {
        self.seats.load(Ordering::Relaxed)
    }

    /// Something was completed in these inboxes.
    pub fn hinted(&self, hint: &StoredHint) {
        let mut waiting = self.lock();
        let now = Instant::now();
        let mut any = false;
        for inbox in &hint.inboxes {
            any |= waiting.hinted(&inbox.recv_id, now);
        }
        drop(waiting);
        if any {
            self.due.notify_one();
        }
    }

    /// Looks for those who wait until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let Some(looker) = self.looker.clone() else { return };
        let looking = async {
            loop {
                let next = self.lock().next_look();
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
                self.look(&looker).await;
            }
        };
        stop.run_until_cancelled(looking).await;
    }

    async fn look(&self, looker: &Looker) {
        let now = Instant::now();
        let again = now + if self.pulse.is_reliable() { LOOK } else { LOOK_WITHOUT_HINTS };
        let asked = self.lock().take_due(now, again);
        if asked.is_empty() {
            return;
        }
        if let Err(failure) = self.settle(looker, &asked).await {
            tracing::debug!(?failure, "cannot look for awaited messages, trying again");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn settle(&self, looker: &Looker, asked: &[Awaited]) -> Result<(), Failure> {
        let mut open: BTreeSet<usize> = (0..asked.len()).collect();
        let rows = looker.rows_of(&pick(asked, &open)).await?;
        let (own, others) = verdict::own_rows(asked, rows);
        self.tell_all(asked, own, &mut open);
        if !others.is_empty() {
            let places = others.iter().map(|row| row.place).collect();
            let contents = looker.contents_of(&pick(asked, &places)).await?;
            self.tell_all(asked, verdict::duplicates(asked, &others, &contents), &mut open);
        }
        if !open.is_empty() {
            let letters = looker.dead_letters_of(&pick(asked, &open)).await?;
            self.tell_all(asked, verdict::dead(asked, letters), &mut open);
        }
        Ok(())
    }

    fn tell_all(&self, asked: &[Awaited], verdicts: Vec<Verdict>, open: &mut BTreeSet<usize>) {
        for (place, settled) in verdicts {
            open.remove(&place);
            self.tell(asked[place].id, settled);
        }
    }

    fn tell(&self, id: u64, settled: Settled) {
        let Some((waiter, hinted)) = self.lock().settle(id, Instant::now()) else { return };
        if !hinted && waiter.since.elapsed() > 4 * FIRST_LOOK {
            self.pulse.doubt();
        }
        // Who gave up in this moment does not hear it.
        let _ = waiter.tell.send(settled);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is looked for, with its index among all.
fn pick<'a>(asked: &'a [Awaited], places: &BTreeSet<usize>) -> Vec<(usize, &'a Sought)> {
    places.iter().map(|place| (*place, &asked[*place].sought)).collect()
}

impl Seat {
    /// Waits, without a deadline of its own, until the record at `placement` is settled: where it is stored, or
    /// `DeadLettered`. Dropping the future is giving up.
    pub async fn stored(self, recv_id: String, digest: Digest, placement: Placement) -> Settled {
        let (tell, settled) = oneshot::channel();
        let msg_id = Uuid::parse_str(&placement.msg_id)
            .map_err(|_| Failure::Internal("the placement's msg_id is not a UUID".into()))?;
        let send_time = placement.send_time.and_then(|time| SystemTime::try_from(time).ok());
        let sought = Sought {
            recv_id,
            msg_id,
            send_time: send_time.unwrap_or(SystemTime::UNIX_EPOCH),
            partition: placement.partition,
            offset: placement.offset,
        };
        let awaited = Awaited { id: 0, sought, placement, digest };
        let _entry = Entry::new(&self.waiters, Waiter { awaited, since: Instant::now(), tell });
        settled.await.unwrap_or_else(|_| Err(Failure::Internal("nobody looks for stored messages any more".into())))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.waiters.seats.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A waiter's entry, until this is dropped.
struct Entry<'a> {
    waiters: &'a Waiters,
    id: u64,
}

impl<'a> Entry<'a> {
    fn new(waiters: &'a Waiters, waiter: Waiter) -> Self {
        let first_look = waiter.since + FIRST_LOOK;
        let (id, first) = waiters.lock().add(waiter, first_look);
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
    fn without_a_database_nobody_can_wait() {
        let waiters = Arc::new(Waiters::default());
        assert_eq!(waiters.enter().err(), Some(Failure::NoDatabase));
        assert_eq!(waiters.seats(), 0);
    }
}
