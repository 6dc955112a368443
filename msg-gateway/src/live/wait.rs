//! `wait_for: STORED`: who waits until a message that Kafka has is a row, or is kept aside.
//!
//! A hint says which inbox to look at, and one statement looks for all who wait for it. Without a hint everybody is
//! looked after from time to time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use msg_common::proto::{DeadLetterReason, Msg, Placement, StoredHint, StoredPlacement};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::live::look::{Contents, Found, Looker, Sought};
use crate::live::pulse::{Interest, Pulse};
use crate::status::Failure;

/// A hint may come before the one who waits: how soon to look without one, and how often after that.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_secs(1);
const LOOK_WITHOUT_HINTS: Duration = Duration::from_millis(100);
/// Most messages that are looked for at once.
const AT_ONCE: usize = 1000;
/// How long to wait after the database did not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// All that the sender wrote, hashed: whether a row with the same id is the same message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of this message.
    pub fn of(msg: &Msg) -> Self {
        let content = Sha256::digest(&msg.content);
        let texts = [&msg.send_id, &msg.client_msg_id, &msg.content_type];
        Digest::over(texts.map(String::as_str), msg.session_type, &content, &msg.attributes)
    }

    fn of_row(row: &Contents) -> Self {
        let texts = [&row.send_id, &row.client_msg_id, &row.content_type];
        Digest::over(texts.map(String::as_str), row.session_type, &row.content_hash, &row.attributes)
    }

    /// The inbox is left out: a row is looked for in it.
    fn over(texts: [&str; 3], session_type: i32, content_hash: &[u8], attributes: &BTreeMap<String, String>) -> Self {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        texts.iter().for_each(|text| field(text.as_bytes()));
        field(&session_type.to_be_bytes());
        field(content_hash);
        for (key, value) in attributes {
            field(key.as_bytes());
            field(value.as_bytes());
        }
        Digest(hash.finalize().into())
    }
}

type Settled = Result<StoredPlacement, Failure>;

/// Those who wait.
#[derive(Default)]
pub struct Waiters {
    /// `None` without a database.
    looker: Option<Arc<Looker>>,
    max: usize,
    seats: AtomicUsize,
    pulse: Arc<Pulse>,
    state: Mutex<State>,
    due: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    waiting: HashMap<u64, Waiter>,
    by_inbox: HashMap<String, Vec<u64>>,
    /// When each is looked for if no hint comes before.
    timers: BTreeSet<(Instant, u64)>,
}

struct Waiter {
    sought: Sought,
    placement: Placement,
    digest: Digest,
    since: Instant,
    timer: Instant,
    hinted: bool,
    tell: oneshot::Sender<Settled>,
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

    /// Something was settled in these inboxes.
    pub fn hinted(&self, hint: &StoredHint) {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut any = false;
        for inbox in &hint.inboxes {
            let State { by_inbox, waiting, timers, .. } = &mut *state;
            for id in by_inbox.get(&inbox.recv_id).into_iter().flatten() {
                if let Some(waiter) = waiting.get_mut(id) {
                    waiter.hinted = true;
                    waiter.set_timer(*id, now, timers);
                    any = true;
                }
            }
        }
        drop(state);
        if any {
            self.due.notify_one();
        }
    }

    /// Looks for those who wait until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let Some(looker) = self.looker.clone() else { return };
        let looking = async {
            loop {
                let next = self.lock().timers.first().map(|(when, _)| *when);
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
        let (ids, sought) = self.take_due();
        if ids.is_empty() {
            return;
        }
        if let Err(failure) = self.settle(looker, &ids, &sought).await {
            tracing::debug!(?failure, "those who wait for their messages have to wait longer");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Those whose time has come; each is looked for again later.
    fn take_due(&self) -> (Vec<u64>, Vec<Sought>) {
        let again = Instant::now() + if self.pulse.is_reliable() { LOOK } else { LOOK_WITHOUT_HINTS };
        let mut state = self.lock();
        let State { waiting, timers, .. } = &mut *state;
        let now = Instant::now();
        let ids: Vec<u64> =
            timers.iter().take_while(|(when, _)| *when <= now).take(AT_ONCE).map(|(_, id)| *id).collect();
        let mut sought = Vec::with_capacity(ids.len());
        for id in &ids {
            let waiter = waiting.get_mut(id).expect("who has a timer waits");
            waiter.set_timer(*id, again, timers);
            sought.push(waiter.sought.clone());
        }
        (ids, sought)
    }

    async fn settle(&self, looker: &Looker, ids: &[u64], sought: &[Sought]) -> Result<(), Failure> {
        let mut open = vec![true; ids.len()];
        let mut others = Vec::new();
        for found in looker.rows_of(sought).await? {
            let id = ids[found.place];
            match self.with(id, |waiter| waiter.is_its_row(&found)) {
                Some(false) => others.push(found),
                Some(true) => {
                    open[found.place] = false;
                    self.tell(id, Ok(stored(&found, false)));
                }
                None => open[found.place] = false,
            }
        }
        self.compare(looker, ids, sought, &others, &mut open).await?;
        let left: Vec<usize> = (0..ids.len()).filter(|place| open[*place]).collect();
        if left.is_empty() {
            return Ok(());
        }
        let asked: Vec<Sought> = left.iter().map(|place| sought[*place].clone()).collect();
        for (place, reason) in looker.dead_letters_of(&asked).await? {
            let reason = DeadLetterReason::from_str_name(&format!("DEAD_LETTER_REASON_{reason}")).unwrap_or_default();
            let id = ids[left[place]];
            if let Some(placement) = self.with(id, |waiter| waiter.placement.clone()) {
                self.tell(id, Err(Failure::DeadLettered(Box::new(placement), reason)));
            }
        }
        Ok(())
    }

    /// A row that another record made: the same message is a duplicate; another content will be kept as a dead letter,
    /// which has to be waited for.
    async fn compare(
        &self,
        looker: &Looker,
        ids: &[u64],
        sought: &[Sought],
        others: &[Found],
        open: &mut [bool],
    ) -> Result<(), Failure> {
        if others.is_empty() {
            return Ok(());
        }
        let asked: Vec<Sought> = others.iter().map(|found| sought[found.place].clone()).collect();
        for contents in looker.contents_of(&asked).await? {
            let found = &others[contents.place];
            let id = ids[found.place];
            let digest = Digest::of_row(&contents);
            let duplicate = self.with(id, |waiter| (waiter.digest == digest).then(|| !waiter.may_have_made(found)));
            if let Some(Some(duplicate)) = duplicate {
                open[found.place] = false;
                self.tell(id, Ok(stored(found, duplicate)));
            }
        }
        Ok(())
    }

    fn with<T>(&self, id: u64, read: impl FnOnce(&Waiter) -> T) -> Option<T> {
        self.lock().waiting.get(&id).map(read)
    }

    fn tell(&self, id: u64, settled: Settled) {
        let Some(waiter) = self.lock().remove(id) else { return };
        if !waiter.hinted && waiter.since.elapsed() > 4 * FIRST_LOOK {
            self.pulse.doubt();
        }
        // Who gave up in this moment does not hear it.
        let _ = waiter.tell.send(settled);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.waiting.remove(&id)?;
        self.timers.remove(&(waiter.timer, id));
        if let Some(ids) = self.by_inbox.get_mut(&waiter.sought.recv_id) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_inbox.remove(&waiter.sought.recv_id);
            }
        }
        Some(waiter)
    }
}

impl Waiter {
    fn set_timer(&mut self, id: u64, when: Instant, timers: &mut BTreeSet<(Instant, u64)>) {
        timers.remove(&(self.timer, id));
        timers.insert((when, id));
        self.timer = when;
    }

    /// Whether our record made this row.
    fn is_its_row(&self, row: &Found) -> bool {
        (row.partition, Some(row.offset)) == (self.sought.partition, self.sought.offset)
    }

    /// Whether our record may have made a row with our content. Without an offset the send time tells: Kafka confirmed the record
    /// and did not say where it is.
    fn may_have_made(&self, row: &Found) -> bool {
        let sought = &self.sought;
        sought.offset.is_none() && (row.partition, row.send_time) == (sought.partition, sought.send_time)
    }
}

fn stored(row: &Found, duplicate: bool) -> StoredPlacement {
    StoredPlacement { seq: row.seq, stored_time: Some(row.stored_time.into()), duplicate }
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
        let now = Instant::now();
        let timer = now + FIRST_LOOK;
        let waiter = Waiter { sought, placement, digest, since: now, timer, hinted: false, tell };
        let _waiting = Waiting::begin(&self.waiters, waiter);
        settled.await.unwrap_or_else(|_| Err(Failure::Internal("nobody looks for stored messages any more".into())))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.waiters.seats.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Somebody who waits, until this is dropped.
struct Waiting<'a> {
    waiters: &'a Waiters,
    id: u64,
}

impl<'a> Waiting<'a> {
    fn begin(waiters: &'a Waiters, waiter: Waiter) -> Self {
        let mut state = waiters.lock();
        let id = state.next;
        state.next += 1;
        let first = state.timers.first().is_none_or(|(when, _)| *when > waiter.timer);
        state.timers.insert((waiter.timer, id));
        state.by_inbox.entry(waiter.sought.recv_id.clone()).or_default().push(id);
        state.waiting.insert(id, waiter);
        drop(state);
        if first {
            waiters.due.notify_one();
        }
        Waiting { waiters, id }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.waiters.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msg() -> Msg {
        Msg { send_id: "a".into(), content: b"hello".as_slice().into(), ..Msg::default() }
    }

    #[test]
    fn the_digest_is_of_all_that_the_sender_wrote() {
        let row = |msg: &Msg| Contents {
            place: 0,
            send_id: msg.send_id.clone(),
            client_msg_id: msg.client_msg_id.clone(),
            session_type: msg.session_type,
            content_type: msg.content_type.clone(),
            content_hash: Sha256::digest(&msg.content).to_vec(),
            attributes: msg.attributes.clone(),
        };
        assert_eq!(Digest::of(&msg()), Digest::of_row(&row(&msg())));
        for other in [
            Msg { send_id: "b".into(), ..msg() },
            Msg { client_msg_id: "1".into(), ..msg() },
            Msg { session_type: 2, ..msg() },
            Msg { content_type: "text/plain".into(), ..msg() },
            Msg { content: b"hullo".as_slice().into(), ..msg() },
            Msg { attributes: [("k".to_owned(), "v".to_owned())].into(), ..msg() },
            Msg { send_id: String::new(), client_msg_id: "a".into(), ..msg() },
        ] {
            assert_ne!(Digest::of(&msg()), Digest::of(&other), "{other:?}");
            assert_eq!(Digest::of(&other), Digest::of_row(&row(&other)));
        }
    }

    #[test]
    fn without_a_database_nobody_can_wait() {
        let waiters = Arc::new(Waiters::default());
        assert_eq!(waiters.enter().err(), Some(Failure::NoDatabase));
        assert_eq!(waiters.seats(), 0);
    }
}
