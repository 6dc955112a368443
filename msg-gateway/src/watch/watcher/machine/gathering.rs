//! The states of the next event: from the wait for a slot, over the permit for its bytes, to its messages.

use std::sync::Arc;
use std::time::Instant;

use msg_common::proto::{StoredMsg, WatchedMsgs};

use crate::budget::Permit;
use crate::watch::feed::{FeedSlice, size};
use crate::watch::queries::CatchUpPermit;
use crate::watch::watcher::machine::{Action, Inboxes, Machine, Page, Source};

/// What the watcher does for its next event. No state holds memory and waits for more of it, or for the permit to read
/// the table: watchers that catch up must not block those that have caught up.
pub(super) enum Gathering {
    /// The first event was not sent. It is a heartbeat, which shows the caller that the watch has started.
    Opening,
    /// Nothing is gathered before there is a slot: messages that arrive meanwhile are in the same event.
    AwaitingSlot,
    AwaitingInbox,
    /// [`Action::AcquireMemory`] is due. With more `bytes` than an event usually has, the next message is larger.
    NeedsMemory {
        bytes: usize,
        catch_up: Option<CatchUpPermit>,
    },
    AwaitingMemory {
        bytes: usize,
        catch_up: Option<CatchUpPermit>,
    },
    /// The permit for `bytes` is held, before the messages are read or copied.
    Collecting {
        bytes: usize,
        memory: Permit,
        catch_up: Option<CatchUpPermit>,
    },
    /// The first queued inbox has to be read from the table.
    AwaitingCatchUp {
        bytes: usize,
    },
    /// The table is being read. The inbox had rows up to `tip` before; later ones queue it again.
    AwaitingPage {
        index: usize,
        tip: i64,
        bytes: usize,
        memory: Permit,
    },
    /// The table could not be read.
    AwaitingRetry {
        at: Instant,
    },
    /// The messages wait for a slot, because a heartbeat used the last one.
    Gathered {
        msgs: WatchedMsgs,
        source: Source,
        memory: Permit,
    },
}

#[derive(Default)]
struct Batch {
    msgs: WatchedMsgs,
    bytes: usize,
}

impl Gathering {
    /// Starts to gather, because the first heartbeat was sent.
    pub(super) fn opened(&mut self) {
        if let Gathering::Opening = self {
            *self = Gathering::AwaitingSlot;
        }
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        if let Gathering::AwaitingRetry { at } = self { Some(*at) } else { None }
    }

    pub(super) fn memory(&mut self, memory: Permit) {
        *self = match self.take() {
            Gathering::AwaitingMemory { bytes, catch_up } => Gathering::Collecting { bytes, memory, catch_up },
            other => other,
        };
    }

    pub(super) fn catch_up(&mut self, permit: CatchUpPermit) {
        *self = match self.take() {
            Gathering::AwaitingCatchUp { bytes } => Gathering::NeedsMemory { bytes, catch_up: Some(permit) },
            other => other,
        };
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Gathering::AwaitingSlot)
    }
}

impl<S> Machine<S> {
    /// Advances the next event until it needs the driver or has to wait.
    pub(super) fn gather(&mut self, inboxes: &impl Inboxes, now: Instant) -> Option<Action<S>> {
        loop {
            self.gathering = match self.gathering.take() {
                Gathering::AwaitingSlot if !self.awaits_slot() => Gathering::AwaitingInbox,
                Gathering::AwaitingInbox if !inboxes.pending().is_empty() => {
                    Gathering::NeedsMemory { bytes: self.settings.max_bytes, catch_up: None }
                }
                Gathering::NeedsMemory { bytes, catch_up } => {
                    self.gathering = Gathering::AwaitingMemory { bytes, catch_up };
                    return Some(Action::AcquireMemory(bytes));
                }
                Gathering::Collecting { bytes, memory, catch_up } => {
                    match self.collect(inboxes, bytes, memory, catch_up) {
                        (gathering, None) => gathering,
                        (gathering, action) => {
                            self.gathering = gathering;
                            return action;
                        }
                    }
                }
                Gathering::AwaitingRetry { at } if at <= now => Gathering::AwaitingInbox,
                Gathering::Gathered { msgs, source, memory } => match self.use_slot(now) {
                    Some(slot) => return Some(Action::SendMsgs { slot, msgs, source, memory }),
                    None => {
                        self.gathering = Gathering::Gathered { msgs, source, memory };
                        return None;
                    }
                },
                waiting => {
                    self.gathering = waiting;
                    return None;
                }
            };
        }
    }

    /// Collects messages of the queued inboxes. Those of the table are in an event of their own: up to one page, so
    /// that other watchers get their turn to read it.
    fn collect(
        &mut self,
        inboxes: &impl Inboxes,
        bytes: usize,
        memory: Permit,
        catch_up: Option<CatchUpPermit>,
    ) -> (Gathering, Option<Action<S>>) {
        let max_rows = self.max_rows(bytes);
        let mut batch = Batch::default();
        while batch.msgs.msgs.len() < max_rows && batch.bytes < bytes {
            let Some(index) = inboxes.pending().next() else { break };
            let cursor = self.cursors[index];
            let (rows_left, bytes_left) = (max_rows - batch.msgs.msgs.len(), bytes - batch.bytes);
            let FeedSlice { rows, tip } = inboxes.slice(index, cursor, rows_left, bytes_left);
            if tip <= cursor {
                continue;
            }
            if rows.is_empty() && batch.is_empty() {
                let Some(catch_up) = catch_up else {
                    inboxes.pending().put_back(index);
                    return (Gathering::AwaitingCatchUp { bytes }, Some(Action::AcquireCatchUp));
                };
                let page = Page { index, cursor, max_rows, max_bytes: bytes };
                let gathering = Gathering::AwaitingPage { index, tip, bytes, memory };
                return (gathering, Some(Action::ReadPage(page, catch_up)));
            }
            let size = rows.iter().map(|row| size(row)).sum();
            if rows.is_empty() || size > bytes_left {
                inboxes.pending().put_back(index);
                if batch.is_empty() {
                    return (Gathering::NeedsMemory { bytes: size, catch_up }, None);
                }
                break;
            }
            self.add(&mut batch, inboxes, index, tip, &rows, size);
        }
        if batch.is_empty() {
            return (Gathering::AwaitingInbox, None);
        }
        (batch.gathered(Source::Cache, memory), None)
    }

    /// Handles the rows of a page, or `None` for its failure, and the permit that it was read with: adds the rows to the
    /// event, or schedules another attempt.
    pub(in crate::watch::watcher) fn page(
        &mut self,
        inboxes: &impl Inboxes,
        rows: Option<Vec<StoredMsg>>,
        permit: CatchUpPermit,
        now: Instant,
    ) {
        self.gathering = match (self.gathering.take(), rows) {
            (Gathering::AwaitingPage { index, .. }, None) => {
                inboxes.pending().put_back(index);
                Gathering::AwaitingRetry { at: now + self.settings.retry_interval }
            }
            (Gathering::AwaitingPage { index, tip, bytes, memory }, Some(rows)) => {
                let rows = fitting(rows, bytes);
                let size = rows.iter().map(|row| size(row)).sum();
                if rows.is_empty() {
                    // A row that does not exist at all is not waited for.
                    Gathering::Collecting { bytes, memory, catch_up: Some(permit) }
                } else if size > bytes {
                    inboxes.pending().put_back(index);
                    Gathering::NeedsMemory { bytes: size, catch_up: Some(permit) }
                } else {
                    let mut batch = Batch::default();
                    self.add(&mut batch, inboxes, index, tip, &rows, size);
                    batch.gathered(Source::Table, memory)
                }
            }
            (other, _) => other,
        };
    }

    /// Adds rows of an inbox to the event, and moves the cursor after them.
    fn add(
        &mut self,
        batch: &mut Batch,
        inboxes: &impl Inboxes,
        index: usize,
        tip: i64,
        rows: &[Arc<StoredMsg>],
        size: usize,
    ) {
        let cursor = rows.last().map_or(self.cursors[index], |last| last.seq);
        self.cursors[index] = cursor;
        if cursor < tip {
            batch.msgs.behind = true;
            inboxes.pending().mark(index);
        }
        batch.bytes += size;
        batch.msgs.msgs.extend(rows.iter().map(|row| copy(row, self.settings.omit_content)));
    }

    /// A large message is sent alone. Otherwise a stream could get many small messages in an event of that size.
    fn max_rows(&self, bytes: usize) -> usize {
        if bytes > self.settings.max_bytes { 1 } else { self.settings.max_rows }
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.msgs.msgs.is_empty()
    }

    fn gathered(self, source: Source, mut memory: Permit) -> Gathering {
        memory.shrink(self.bytes);
        Gathering::Gathered { msgs: self.msgs, source, memory }
    }
}

/// Returns the first rows, up to `bytes` and at least one. The table counts bytes differently.
fn fitting(rows: Vec<StoredMsg>, bytes: usize) -> Vec<Arc<StoredMsg>> {
    let mut sum = 0;
    let fits = rows.into_iter().enumerate().take_while(|(number, row)| {
        sum += size(row);
        *number == 0 || sum <= bytes
    });
    fits.map(|(_, row)| Arc::new(row)).collect()
}

fn copy(row: &StoredMsg, omit_content: bool) -> StoredMsg {
    let mut row = row.clone();
    if let Some(msg) = row.msg.as_mut().filter(|_| omit_content) {
        msg.content.clear();
    }
    row
}
