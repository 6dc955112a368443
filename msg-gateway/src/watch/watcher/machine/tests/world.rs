//! What all watchers share: the table, the real feed, its reader and the budgets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use msg_common::proto::{HintedInbox, StoredHint, StoredMsg};

use super::budget::SharedBudget;
use super::caller::Caller;
use super::table::Table;
use super::{BUFFER, CATCH_UPS, INBOXES, MAX_WATCHERS, Request, Step};
use crate::watch::feed::{Feed, FeedSlice};
use crate::watch::pending_inboxes::PendingInboxes;

/// Bytes of a row without content in the cache.
const ROW_BYTES: usize = 540;
/// A statement of the feed reader reads up to this many inboxes, rows of each, and rows.
const READ_INBOXES: usize = 2;
const READ_PER_INBOX: usize = 2;
const READ_ROWS: usize = 3;

/// Everything that a watcher's driver uses.
pub(super) struct Shared {
    pub(super) table: Table,
    pub(super) feed: Feed,
    pub(super) recv_ids: Vec<Arc<str>>,
    pub(super) buffer: SharedBudget,
    pub(super) catch_ups: SharedBudget,
    /// Other callers use the budgets: nothing is granted immediately.
    pub(super) is_contended: bool,
    start: Instant,
    pub(super) millis: u64,
}

impl Shared {
    pub(super) fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.millis)
    }
}

/// A watch that opens: it has subscribed, and may have read the last `seq`s.
struct Opening {
    request: Request,
    pending: Arc<PendingInboxes>,
    last_seqs: Option<Vec<i64>>,
}

/// A statement of the feed reader that is in flight: its inboxes, and perhaps its rows.
struct Reading {
    inboxes: Vec<(Arc<str>, i64)>,
    rows: Option<Vec<(usize, StoredMsg)>>,
}

pub(super) struct World {
    shared: Shared,
    opening: Option<Opening>,
    reading: Option<Reading>,
    callers: Vec<Caller>,
    next_number: u64,
}

impl World {
    pub(super) fn new(cached_rows: usize) -> Self {
        let shared = Shared {
            table: Table::default(),
            feed: Feed::new(cached_rows * ROW_BYTES),
            recv_ids: (0..INBOXES).map(|inbox| inbox.to_string().into()).collect(),
            buffer: SharedBudget::new(BUFFER),
            catch_ups: SharedBudget::new(CATCH_UPS),
            is_contended: false,
            start: Instant::now(),
            millis: 0,
        };
        World { shared, opening: None, reading: None, callers: Vec::new(), next_number: 0 }
    }

    /// Does one step, if it can happen now.
    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Open(request) => self.open(request),
            Step::Opening => self.advance_opening(),
            Step::Store { inbox, rows, bytes, is_hinted } => self.store(inbox, rows, bytes, is_hinted),
            Step::Purge { inbox, rows } => {
                let tip = self.tip(inbox);
                self.shared.table.purge(inbox, rows, tip);
            }
            Step::Lose { inbox, rows } => self.shared.table.lose(inbox, rows),
            Step::FeedRead { fails } => self.read(fails),
            Step::Check => self.check(),
            Step::Contention(is_contended) => self.shared.is_contended = is_contended,
            Step::Time(millis) => {
                self.shared.millis += millis;
                self.callers.iter_mut().for_each(|caller| caller.time(&self.shared));
            }
            Step::Operation { watcher, fails } => self.with(watcher, |caller, shared| caller.advance(shared, fails)),
            Step::Read { watcher } => self.with(watcher, Caller::read),
            Step::Written { watcher } => self.with(watcher, |caller, _| caller.written()),
            Step::ConnectionEnding { watcher } => self.with(watcher, Caller::connection_ending),
            Step::Disconnect { watcher } => self.with(watcher, Caller::disconnect),
        }
        for caller in &mut self.callers {
            caller.wake(&self.shared);
            caller.compare(&self.shared);
        }
        self.callers.retain(|caller| !caller.has_ended());
        let held: usize = self.callers.iter().map(Caller::held_memory).sum();
        assert_eq!(self.shared.buffer.used(), held, "bytes of the buffer after watches have ended");
    }

    /// Lets everything succeed: each watcher has to get all rows, also those without a hint.
    pub(super) fn finish(mut self) {
        for step in [Step::Contention(false), Step::Opening, Step::Opening] {
            self.step(step);
        }
        // The feed reads only after its tip: it finds rows that were lost and stored again with the next new one.
        for inbox in (0..INBOXES).filter(|inbox| self.shared.table.has_lost(*inbox)).collect::<Vec<_>>() {
            while self.shared.table.last_seqs()[inbox] <= self.tip(inbox) {
                self.store(inbox, 1, 0, false);
            }
        }
        let last_seqs = self.shared.table.last_seqs();
        for _ in 0..3000 {
            if self.callers.iter().all(|caller| caller.is_complete(&last_seqs)) {
                break;
            }
            for step in [Step::Check, Step::FeedRead { fails: false }, Step::Time(1)] {
                self.step(step);
            }
            for watcher in 0..self.callers.len() {
                self.step(Step::Operation { watcher, fails: false });
                self.step(Step::Read { watcher });
                self.step(Step::Written { watcher });
            }
        }
        for caller in &self.callers {
            assert!(caller.is_complete(&last_seqs), "got {:?} of {last_seqs:?}", caller.cursors());
        }
        for watcher in (0..self.callers.len()).rev() {
            self.step(Step::ConnectionEnding { watcher });
        }
        assert!(self.callers.is_empty(), "a watch has not ended");
        assert_eq!(self.shared.catch_ups.used(), 0, "permits to catch up are not released");
        assert_eq!(self.shared.feed.len(), 0, "inboxes are watched without a watcher");
    }

    fn with(&mut self, watcher: usize, step: impl FnOnce(&mut Caller, &Shared)) {
        if let Some(index) = watcher.checked_rem(self.callers.len()) {
            step(&mut self.callers[index], &self.shared);
        }
    }

    fn open(&mut self, request: Request) {
        if self.opening.is_some() || self.callers.len() == MAX_WATCHERS {
            return;
        }
        self.next_number += 1;
        let pending = Arc::new(PendingInboxes::new(self.next_number, INBOXES));
        self.shared.feed.subscribe(&pending, &self.shared.recv_ids);
        self.opening = Some(Opening { request, pending, last_seqs: None });
    }

    fn advance_opening(&mut self) {
        self.opening = match self.opening.take() {
            Some(Opening { request, pending, last_seqs: None }) => {
                let last_seqs = Some(self.shared.table.last_seqs());
                Some(Opening { request, pending, last_seqs })
            }
            Some(Opening { request, pending, last_seqs: Some(last_seqs) }) => {
                let requested = request.after.into_iter().map(|after| after.map(i64::from));
                let cursors = self.shared.feed.start(&pending, &self.shared.recv_ids, &last_seqs, requested);
                self.callers.push(Caller::new(&self.shared, pending, cursors, request.omit_content));
                None
            }
            None => None,
        };
    }

    fn store(&mut self, inbox: usize, rows: usize, bytes: usize, is_hinted: bool) {
        let seq = (0..rows).map(|_| self.shared.table.store(inbox, bytes)).last();
        if let Some(seq) = seq.filter(|_| is_hinted) {
            let hinted = HintedInbox { recv_id: inbox.to_string(), seq, ..HintedInbox::default() };
            self.shared.feed.hinted(&StoredHint { inboxes: vec![hinted], rows: None });
        }
    }

    fn read(&mut self, fails: bool) {
        let Shared { feed, table, .. } = &self.shared;
        self.reading = match self.reading.take() {
            None => Some(Reading { inboxes: feed.next_unread(READ_INBOXES), rows: None }),
            Some(Reading { inboxes, .. }) if fails => {
                feed.put_back(&inboxes);
                None
            }
            Some(Reading { inboxes, rows: None }) => {
                let of = |(index, (recv_id, tip)): (usize, &(Arc<str>, i64))| {
                    let inbox = recv_id.parse().expect("it is a number");
                    let rows = table.after(inbox, *tip).take(READ_PER_INBOX);
                    rows.map(|row| (index, row)).collect::<Vec<_>>()
                };
                let rows = Some(inboxes.iter().enumerate().flat_map(of).collect());
                Some(Reading { inboxes, rows })
            }
            Some(Reading { inboxes, rows: Some(mut rows) }) => {
                let is_cut = rows.len() > READ_ROWS;
                rows.truncate(READ_ROWS);
                feed.publish(&inboxes, rows, READ_PER_INBOX, is_cut);
                None
            }
        };
    }

    fn check(&self) {
        for (recv_id, seq) in self.shared.feed.next_checks(INBOXES) {
            if self.shared.table.has(recv_id.parse().expect("it is a number"), seq) {
                self.shared.feed.found_stored(&recv_id, seq);
            }
        }
    }

    /// Returns the last `seq` that the feed has read.
    fn tip(&self, inbox: usize) -> i64 {
        let FeedSlice { tip, .. } = self.shared.feed.slice(&self.shared.recv_ids[inbox], 0, 0, 0);
        tip
    }
}
