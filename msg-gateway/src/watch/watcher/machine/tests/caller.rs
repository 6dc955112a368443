//! One watch: a driver of plain values that carries the actions of its machine out, and the oracle, which knows what
//! the caller has to get, and when.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use msg_common::proto::{StoredMsg, WatchedMsgs};

use super::budget::used;
use super::world::Shared;
use super::{HEARTBEAT, INBOXES, MAX_BYTES, MAX_ROWS, RETRY, STALL};
use crate::budget::{Budget, Permit};
use crate::watch::feed::{FeedSlice, size};
use crate::watch::pending_inboxes::PendingInboxes;
use crate::watch::queries::CatchUpPermit;
use crate::watch::watcher::machine::{Action, End, Inboxes, Machine, Page, Settings, Source};

enum Operation {
    Memory(usize),
    CatchUp,
    /// A page, and perhaps its rows.
    Page(Page, CatchUpPermit, Option<Vec<StoredMsg>>),
}

/// What the machine sees of the feed.
struct View<'a> {
    shared: &'a Shared,
    pending: &'a PendingInboxes,
    seen: &'a RefCell<Seen>,
    /// Bytes for which the machine has a permit.
    free: usize,
}

/// What the machine has seen, by inbox.
#[derive(Default)]
struct Seen {
    tips: [i64; INBOXES],
    /// How many events were sent while the inbox had rows and was queued.
    skipped: [usize; INBOXES],
}

impl Inboxes for View<'_> {
    fn pending(&self) -> &PendingInboxes {
        self.pending
    }

    fn slice(&self, index: usize, cursor: i64, rows: usize, bytes: usize) -> FeedSlice {
        assert!(bytes <= self.free, "rows are read without a permit for their bytes");
        let slice = self.shared.feed.slice(&self.shared.recv_ids[index], cursor, rows, bytes);
        let mut seen = self.seen.borrow_mut();
        seen.tips[index] = slice.tip;
        if slice.tip <= cursor {
            seen.skipped[index] = 0;
        }
        slice
    }
}

pub(super) struct Caller {
    machine: Machine<()>,
    pending: Arc<PendingInboxes>,
    seen: RefCell<Seen>,
    operation: Option<Operation>,
    omit_content: bool,
    /// Bytes of the buffer that this watch holds, and permits to catch up.
    memory: Arc<Budget>,
    catch_ups: Arc<Budget>,
    /// An event that is not read, with the bytes of its permit. `Some(None)` is a heartbeat.
    unread: Option<Option<(Permit, usize)>>,
    /// The permits of events that are read and not written.
    unwritten: Vec<(Permit, usize)>,
    /// The last `seq` that was sent, by inbox.
    cursors: Vec<i64>,
    /// When the last event was sent.
    sent_at: Option<u64>,
    opened_at: u64,
    retry_at: Option<u64>,
    /// A slot was free since the last messages: the next ones may be gathered.
    may_gather: bool,
    /// What ends the watch now.
    expected_end: Option<End>,
    has_ended: bool,
}

impl Caller {
    pub(super) fn new(shared: &Shared, pending: Arc<PendingInboxes>, cursors: Vec<i64>, omit_content: bool) -> Self {
        let settings = Settings {
            max_rows: MAX_ROWS,
            max_bytes: MAX_BYTES,
            omit_content,
            heartbeat_interval: Duration::from_millis(HEARTBEAT),
            stall_timeout: Duration::from_millis(STALL),
            retry_interval: Duration::from_millis(RETRY),
        };
        let mut caller = Caller {
            machine: Machine::new(settings, cursors.clone(), shared.now()),
            pending,
            seen: RefCell::default(),
            operation: None,
            omit_content,
            memory: shared.buffer.add_watcher(),
            catch_ups: shared.catch_ups.add_watcher(),
            unread: None,
            unwritten: Vec::new(),
            cursors,
            sent_at: None,
            opened_at: shared.millis,
            retry_at: None,
            may_gather: false,
            expected_end: None,
            has_ended: false,
        };
        caller.act(shared);
        caller
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Returns the bytes of the buffer that this watch holds.
    pub(super) fn held_memory(&self) -> usize {
        used(&self.memory)
    }

    pub(super) fn read(&mut self, shared: &Shared) {
        if let Some(event) = self.unread.take() {
            self.unwritten.extend(event);
        }
        self.wake(shared);
    }

    /// The connection has written all events that were read.
    pub(super) fn written(&mut self) {
        self.unwritten.clear();
    }

    pub(super) fn connection_ending(&mut self, shared: &Shared) {
        self.expected_end = Some(End::ConnectionEnding);
        self.machine.connection_ending();
        self.act(shared);
    }

    pub(super) fn disconnect(&mut self, shared: &Shared) {
        self.expected_end = Some(End::Disconnected);
        self.machine.disconnected();
        self.act(shared);
    }

    /// Calls the machine if its timer is due.
    pub(super) fn time(&mut self, shared: &Shared) {
        if self.machine.next_timeout() <= shared.now() {
            self.act(shared);
            assert!(self.has_ended || self.machine.next_timeout() > shared.now(), "the timer spins");
        }
    }

    pub(super) fn advance(&mut self, shared: &Shared, fails: bool) {
        match self.operation.take() {
            None => return,
            Some(Operation::Memory(bytes)) => match shared.buffer.try_acquire(bytes, &self.memory) {
                Some(permit) => self.machine.memory(permit),
                None => self.operation = Some(Operation::Memory(bytes)),
            },
            Some(Operation::CatchUp) => match shared.catch_ups.try_acquire(1, &self.catch_ups) {
                Some(permit) => self.machine.catch_up(CatchUpPermit(permit)),
                None => self.operation = Some(Operation::CatchUp),
            },
            Some(Operation::Page(_, permit, _)) if fails => {
                self.retry_at = Some(shared.millis + RETRY);
                self.complete_page(shared, None, permit);
            }
            Some(Operation::Page(page, permit, None)) => {
                let rows = shared.table.after(page.index, page.cursor).take(page.max_rows).collect();
                self.operation = Some(Operation::Page(page, permit, Some(rows)));
            }
            Some(Operation::Page(page, permit, rows)) => {
                if rows.as_ref().is_some_and(Vec::is_empty) {
                    self.seen.get_mut().skipped[page.index] = 0;
                }
                self.complete_page(shared, rows, permit);
            }
        }
        self.act(shared);
    }

    fn complete_page(&mut self, shared: &Shared, rows: Option<Vec<StoredMsg>>, permit: CatchUpPermit) {
        let view = View { shared, pending: &self.pending, seen: &self.seen, free: self.gathering_memory() };
        let (queued, is_empty) = (self.pending.queued(), rows.as_ref().is_some_and(Vec::is_empty));
        self.machine.page(&view, rows, permit, shared.now());
        assert!(!is_empty || self.pending.queued() == queued, "rows that do not exist are awaited");
    }

    /// Does what the driver does when a slot is free or an inbox is queued.
    pub(super) fn wake(&mut self, shared: &Shared) {
        if self.has_ended {
            return;
        }
        if self.unread.is_none() && self.machine.awaits_slot() {
            self.machine.reserved(());
            self.may_gather |= self.sent_at.is_some();
            self.act(shared);
        }
        if self.machine.awaits_inbox() && !self.pending.is_empty() {
            self.act(shared);
        }
    }

    /// Carries out all actions that are due.
    fn act(&mut self, shared: &Shared) {
        for _ in 0..1000 {
            let view = View { shared, pending: &self.pending, seen: &self.seen, free: self.gathering_memory() };
            match self.machine.next_action(&view, shared.now()) {
                Action::AcquireMemory(bytes) => {
                    self.assert_may_gather(shared);
                    assert_eq!(self.gathering_memory(), 0, "bytes are held and more are awaited");
                    let is_limit = bytes == MAX_BYTES || (bytes > MAX_BYTES && shared.table.has_row_of(bytes));
                    assert!(is_limit, "{bytes} bytes are neither those of an event nor of one row");
                    match shared.buffer.try_acquire(bytes, &self.memory).filter(|_| !shared.is_contended) {
                        Some(permit) => self.machine.memory(permit),
                        None => self.operation = Some(Operation::Memory(bytes)),
                    }
                }
                Action::AcquireCatchUp => {
                    self.assert_may_gather(shared);
                    assert_eq!(self.gathering_memory(), 0, "bytes are held while the table is awaited");
                    assert_eq!(used(&self.catch_ups), 0, "a permit to catch up is held, and one is awaited");
                    self.operation = Some(Operation::CatchUp);
                }
                Action::ReadPage(page, permit) => {
                    self.assert_may_gather(shared);
                    assert!(page.max_bytes <= self.gathering_memory(), "a page is read without a permit");
                    assert_eq!(page.cursor, self.cursors[page.index], "the page starts after another row");
                    self.operation = Some(Operation::Page(page, permit, None));
                }
                Action::SendHeartbeat(()) => {
                    assert!(self.heartbeat_at() <= shared.millis, "a heartbeat is early");
                    self.send(shared, None);
                }
                Action::SendMsgs { slot: (), msgs, source, memory } => self.receive(shared, msgs, source, memory),
                Action::End(end) => {
                    assert_eq!(Some(end), self.expected_end.or_else(|| self.stall(shared)));
                    return self.end(shared);
                }
                Action::Wait => return,
            }
        }
        panic!("the machine spins");
    }

    /// Checks messages that the machine sends.
    fn receive(&mut self, shared: &Shared, WatchedMsgs { msgs, behind }: WatchedMsgs, source: Source, memory: Permit) {
        assert!(self.sent_at.is_some(), "the first event is no heartbeat");
        let mut inboxes = [false; INBOXES];
        let (mut bytes, held) = (0, self.gathering_memory());
        for row in &msgs {
            let msg = row.msg.as_ref().expect("a row has a message");
            let inbox: usize = msg.recv_id.parse().expect("it is a number");
            let cursor = self.cursors[inbox];
            let may_follow = shared.table.may_follow(inbox, cursor, row.seq);
            assert!(may_follow, "inbox {inbox}: {} after {cursor} is a gap or a duplicate", row.seq);
            self.cursors[inbox] = row.seq;
            inboxes[inbox] = true;
            assert!(!self.omit_content || msg.content.is_empty(), "the content is not omitted");
            bytes += size(row);
        }
        let sizes = (1..=MAX_ROWS).contains(&msgs.len()) && (held <= MAX_BYTES || msgs.len() == 1);
        assert!(sizes, "an event has {} messages and {bytes} bytes", msgs.len());
        let is_exact = if self.omit_content { bytes <= held } else { bytes == held };
        assert!(is_exact, "the permit of an event of {bytes} bytes is for {held}");
        let of_the_event = || (0..INBOXES).filter(|inbox| inboxes[*inbox]);
        assert!(source == Source::Cache || of_the_event().count() == 1, "a page has rows of several inboxes");
        let tips = self.seen.borrow().tips;
        let is_behind = of_the_event().any(|inbox| self.cursors[inbox] < tips[inbox]);
        assert_eq!(behind, is_behind, "behind");
        self.count_skipped(inboxes);
        self.may_gather = false;
        self.send(shared, Some((memory, held)));
    }

    /// Notes that queued inboxes are not in an event. Each has to be in its turn: after one event for each other inbox,
    /// and one that was gathered already.
    fn count_skipped(&mut self, in_the_event: [bool; INBOXES]) {
        let (queued, skipped) = (self.pending.queued(), &mut self.seen.borrow_mut().skipped);
        for inbox in 0..INBOXES {
            let is_skipped = !in_the_event[inbox] && queued.contains(&inbox);
            skipped[inbox] = if is_skipped { skipped[inbox] + 1 } else { 0 };
            assert!(skipped[inbox] <= INBOXES, "inbox {inbox} was skipped {} times", skipped[inbox]);
        }
    }

    fn send(&mut self, shared: &Shared, memory: Option<(Permit, usize)>) {
        assert!(self.unread.is_none(), "an event is sent without a slot");
        assert_eq!(self.expected_end, None, "an event is sent after the end");
        self.unread = Some(memory);
        self.sent_at = Some(shared.millis);
    }

    fn end(&mut self, shared: &Shared) {
        self.has_ended = true;
        shared.feed.unsubscribe(&self.pending, &shared.recv_ids);
        self.operation = None;
        self.unread = None;
        self.unwritten.clear();
    }

    /// Compares what can be seen of the machine while it waits.
    pub(super) fn compare(&self, shared: &Shared) {
        if self.has_ended {
            return;
        }
        assert_eq!(self.expected_end.or_else(|| self.stall(shared)), None, "the watch has not ended");
        assert_eq!(self.machine.awaits_slot(), self.unread.is_some(), "a slot is awaited");
        if self.unread.is_none() {
            assert!(self.heartbeat_at() > shared.millis, "no heartbeat is sent");
        }
        let is_waiting = self.operation.is_some() || self.retry_at.is_some_and(|retry_at| retry_at > shared.millis);
        if !is_waiting {
            assert!(self.pending.is_empty() || self.unread.is_some(), "queued inboxes are not read");
            assert_eq!(used(&self.catch_ups), 0, "a permit to catch up is held for nothing");
        }
        if self.machine.awaits_inbox() {
            assert_eq!(self.gathering_memory(), 0, "bytes are held for nothing");
        }
    }

    /// Returns whether every row of each inbox was sent.
    pub(super) fn is_complete(&self, last_seqs: &[i64]) -> bool {
        self.cursors.iter().zip(last_seqs).all(|(cursor, last)| cursor >= last)
    }

    /// Returns the last `seq` that was sent, by inbox.
    pub(super) fn cursors(&self) -> &[i64] {
        &self.cursors
    }

    /// Returns the end of a watch whose caller does not read.
    fn stall(&self, shared: &Shared) -> Option<End> {
        let since = self.sent_at.unwrap_or(self.opened_at);
        let is_unread = self.unread.is_some() || self.sent_at.is_none();
        (is_unread && since + STALL <= shared.millis).then_some(End::SlowReader)
    }

    fn heartbeat_at(&self) -> u64 {
        self.sent_at.map_or(self.opened_at, |sent_at| sent_at + HEARTBEAT)
    }

    /// Returns the bytes that are held for the next event.
    fn gathering_memory(&self) -> usize {
        let unread = self.unread.iter().flatten();
        used(&self.memory) - unread.chain(&self.unwritten).map(|(_, bytes)| bytes).sum::<usize>()
    }

    fn assert_may_gather(&mut self, shared: &Shared) {
        assert!(self.may_gather, "messages are gathered without a slot");
        let is_early = self.retry_at.take().is_some_and(|retry_at| retry_at > shared.millis);
        assert!(!is_early, "the table is read again without a pause");
    }
}
