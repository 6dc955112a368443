//! The transaction of a batch: it numbers the messages, inserts rows, finds repeats, and inserts dead letters.

use super::blocked::report_unblocked;
use super::entry::Known;
use super::state::{Batch, InboxEntries, InboxRows, NewEntries, Rows, Step, WriteStep};
use super::{DeadLetter, Entry, Machine, Message, NumberedEntry, Request, Response, unexpected};
use crate::consumer::Event;
use crate::error::ErrorClass;

/// The number of batches until the faster statement is used again after an error that is no conflict: the database may
/// never accept it.
const BATCHES_AFTER_ERROR: usize = 100;

impl<T: Message> Machine<T> {
    pub(super) fn write(
        &mut self,
        mut batch: Box<Batch<T>>,
        rows: Rows,
        step: WriteStep,
        response: Response,
        events: &mut Vec<Event>,
    ) -> Request {
        match (step, response) {
            (WriteStep::Begin, Response::Ok) => self.guard(batch, rows),
            (WriteStep::Guard(heads), Response::Count(found)) if found == heads => self.insert(batch, rows),
            (WriteStep::Guard(_), Response::Count(_)) => {
                self.abandon_for(batch, ErrorClass::Conflict, "rows that were stored before are not visible yet")
            }
            (WriteStep::Insert | WriteStep::InsertNew, Response::Count(inserted)) => {
                self.inserted(batch, rows, inserted)
            }
            (WriteStep::DuplicateRollback, Response::Ok) => {
                let request = rows.find();
                self.writing(batch, rows, WriteStep::FindDuplicates, request)
            }
            (WriteStep::FindDuplicates, Response::Found(found)) if !found.is_empty() => {
                batch.mark_found(&found);
                self.read_last_seqs(batch)
            }
            (WriteStep::FindRepeats(repeats), Response::Found(found)) if found.len() == repeats => {
                batch.mark_found(&found);
                self.insert_dead_letters(batch, rows)
            }
            (WriteStep::FindDuplicates, Response::Found(_)) => self.rows_without_effect(batch, rows),
            (WriteStep::FindRepeats(repeats), Response::Found(found)) if found.len() < repeats => {
                self.repeats_unreadable(batch, &found, events)
            }
            (WriteStep::DeadLetters, Response::Ok) => self.commit(batch, rows),
            (WriteStep::DeadLetters, Response::FailedFor(failed)) if !failed.is_empty() => {
                self.letters_failed(batch, failed, events)
            }
            (WriteStep::Commit, Response::Ok) => {
                self.cache_last_seqs(&batch, &rows);
                self.committed(batch, &rows, events)
            }
            (WriteStep::Commit, Response::Warned) => {
                // A standby that is promoted may not have these rows: a cache of them would make gaps, which no unique
                // key prevents.
                self.cache.clear();
                self.committed(batch, &rows, events)
            }
            (WriteStep::InsertNew, Response::Failed(error))
                if matches!(error.class, ErrorClass::Conflict | ErrorClass::Fatal) =>
            {
                self.insert_skipping_stored(batch, error.class)
            }
            (WriteStep::Insert | WriteStep::InsertNew, Response::Failed(error)) => {
                self.insert_failed(batch, rows, error)
            }
            (WriteStep::Commit, Response::Failed(error)) => self.commit_failed(batch, rows, error),
            (_, Response::Failed(error)) => self.fail(batch, error),
            (step, response) => self.abandon(batch, unexpected(step, &response)),
        }
    }

    /// Requests the last `seq` of each inbox that is not cached.
    pub(super) fn read_last_seqs(&mut self, batch: Box<Batch<T>>) -> Request {
        let is_new = batch.entries.iter().enumerate().filter(|(_, entry)| entry.is_new());
        let mut new: Vec<(&str, usize)> = is_new.map(|(index, entry)| (entry.body.recv_id(), index)).collect();
        // A stable sort keeps the order of receipt within an inbox. Sorted rows are faster to insert into the index.
        new.sort_by_key(|(inbox, _)| *inbox);
        let (mut inboxes, mut unknown, mut start) = (Vec::new(), Vec::new(), 0);
        for group in new.chunk_by(|a, b| a.0 == b.0) {
            let (inbox, first) = group[0];
            let cached = self.cache.get(inbox, batch.entries[first].assignment.epoch);
            if cached.is_none() {
                unknown.push(first);
            }
            inboxes.push(InboxEntries { range: start..start + group.len(), cached });
            start += group.len();
        }
        let new = NewEntries { sorted: new.into_iter().map(|(_, index)| index).collect(), inboxes };
        if unknown.is_empty() {
            return self.number_rows(batch, new, Vec::new());
        }
        self.storing(batch, Step::LastSeqs(new), Request::LastSeqs(unknown))
    }

    /// Gives each new message the next `seq` of its inbox. `seqs` holds the last ones of the inboxes that are not
    /// cached.
    pub(super) fn number_rows(&mut self, batch: Box<Batch<T>>, new: NewEntries, seqs: Vec<i64>) -> Request {
        let NewEntries { sorted, inboxes } = new;
        if seqs.len() != inboxes.iter().filter(|inbox| inbox.cached.is_none()).count() {
            return self.abandon(batch, unexpected("LastSeqs", &Response::Seqs(seqs)));
        }
        let mut seqs = seqs.into_iter();
        let mut rows = Rows { numbered: Vec::with_capacity(sorted.len()), inboxes: Vec::with_capacity(inboxes.len()) };
        for InboxEntries { range, cached } in inboxes {
            let before = cached.or_else(|| seqs.next()).expect("there is one for each inbox that is not cached");
            let entries = &sorted[range];
            let numbered = entries.iter().zip(before + 1..).map(|(entry, seq)| NumberedEntry { entry: *entry, seq });
            rows.numbered.extend(numbered);
            let (entry, count) = (entries[0], i64::try_from(entries.len()).expect("a batch is small"));
            rows.inboxes.push(InboxRows { first: NumberedEntry { entry, seq: before + 1 }, last: before + count });
        }
        let begin = if self.is_short(&batch) { Request::BeginRetry } else { Request::Begin };
        self.writing(batch, rows, WriteStep::Begin, begin)
    }

    fn guard(&mut self, batch: Box<Batch<T>>, rows: Rows) -> Request {
        let heads = if self.settings.guard { rows.heads() } else { Vec::new() };
        if heads.is_empty() {
            return self.insert(batch, rows);
        }
        self.writing(batch, rows, WriteStep::Guard(heads.len()), Request::Guard(heads))
    }

    fn insert(&mut self, batch: Box<Batch<T>>, rows: Rows) -> Request {
        if rows.numbered.is_empty() {
            return self.find_repeats(batch, rows);
        }
        let numbered = rows.numbered.clone();
        // A retry of a blocked inbox has few rows, and some statement has rejected them before.
        if self.settings.insert_new && self.skipping_batches == 0 && batch.retry.is_none() {
            return self.writing(batch, rows, WriteStep::InsertNew, Request::InsertNew(numbered));
        }
        self.writing(batch, rows, WriteStep::Insert, Request::Insert(numbered))
    }

    /// Handles rows that the faster statement did not insert: the next attempt inserts them by the other statement, which
    /// skips messages that are stored already. Its result decides what is wrong, if anything.
    fn insert_skipping_stored(&mut self, batch: Box<Batch<T>>, class: ErrorClass) -> Request {
        self.skip_stored_for(if class == ErrorClass::Conflict { 1 } else { BATCHES_AFTER_ERROR });
        self.storing(batch, Step::Rollback, Request::Rollback)
    }

    /// Inserts the rows of this number of batches by the statement that skips messages that are stored already.
    pub(super) fn skip_stored_for(&mut self, batches: usize) {
        self.skipping_batches = self.skipping_batches.max(batches);
    }

    fn inserted(&mut self, batch: Box<Batch<T>>, rows: Rows, inserted: usize) -> Request {
        if inserted < rows.numbered.len() {
            // Some are stored already, and would leave gaps in `seq`. Retry without them: each attempt finds at least
            // one, unless the database discards rows.
            return self.writing(batch, rows, WriteStep::DuplicateRollback, Request::Rollback);
        }
        self.find_repeats(batch, rows)
    }

    /// Finds repeats in the same transaction: the messages that they repeat are in the table by now.
    fn find_repeats(&mut self, batch: Box<Batch<T>>, rows: Rows) -> Request {
        let repeats = batch.repeats();
        if repeats.is_empty() {
            return self.insert_dead_letters(batch, rows);
        }
        self.writing(batch, rows, WriteStep::FindRepeats(repeats.len()), Request::FindStored(repeats))
    }

    fn insert_dead_letters(&mut self, batch: Box<Batch<T>>, rows: Rows) -> Request {
        let dead = self.dead_letters(&batch);
        if dead.is_empty() {
            return self.commit(batch, rows);
        }
        self.writing(batch, rows, WriteStep::DeadLetters, Request::InsertDeadLetters(dead))
    }

    fn dead_letters(&mut self, batch: &Batch<T>) -> Vec<DeadLetter> {
        let conflicts = &mut self.conflicts;
        let dead = batch.entries.iter().enumerate().filter_map(|(index, entry)| {
            let (reason, detail) = entry.dead()?;
            let content = reason.counts() || conflicts.keep(&entry.record_ref);
            let lost = if content { "" } else { "; its content is not kept: too many recent conflicts" };
            Some(DeadLetter { entry: index, reason, detail: format!("{detail}{lost}"), content })
        });
        dead.collect()
    }

    fn commit(&mut self, batch: Box<Batch<T>>, rows: Rows) -> Request {
        if batch.is_fenced() {
            return self.storing(batch, Step::Rollback, Request::Rollback);
        }
        self.writing(batch, rows, WriteStep::Commit, Request::Commit)
    }

    /// Only after the COMMIT: a cache that is ahead of the table makes gaps, which no unique key prevents.
    fn cache_last_seqs(&mut self, batch: &Batch<T>, rows: &Rows) {
        for InboxRows { first, last } in &rows.inboxes {
            let entry = &batch.entries[first.entry];
            self.cache.put(entry.body.recv_id(), entry.assignment.epoch, *last);
        }
    }

    pub(super) fn committed(&mut self, mut batch: Box<Batch<T>>, rows: &Rows, events: &mut Vec<Event>) -> Request {
        batch.outcome.stored += rows.numbered.len();
        batch.outcome.duplicates += batch.entries.iter().filter(|entry| entry.is(&Known::Duplicate)).count();
        let dead = batch.entries.iter().filter_map(|entry| entry.dead());
        batch.outcome.dead_letters.extend(dead.map(|(reason, _)| reason));
        // Duplicates come in runs: records that are received again, or a caller that sends again.
        let is_found = |entry: &Entry<T>| entry.is(&Known::Duplicate) || entry.is(&Known::Conflict);
        let is_any_found = batch.entries.iter().any(is_found);
        self.skipping_batches = self.skipping_batches.saturating_sub(1).max(usize::from(is_any_found));
        report_unblocked(batch.entries.iter(), events);
        events.push(Event::Completed(batch.entries.drain(..).map(|entry| entry.record_ref).collect()));
        let max_records = self.max_records(&mut batch);
        *max_records = max_records.saturating_mul(2);
        self.next_part(batch, events)
    }

    fn writing(&mut self, batch: Box<Batch<T>>, rows: Rows, step: WriteStep, request: Request) -> Request {
        self.storing(batch, Step::Writing(rows, step), request)
    }
}

impl Rows {
    /// Requests which of these messages are in the table.
    pub(super) fn find(&self) -> Request {
        Request::FindStored(self.numbered.iter().map(|row| row.entry).collect())
    }

    /// Returns the first row of each inbox that needs a predecessor.
    fn heads(&self) -> Vec<NumberedEntry> {
        self.inboxes.iter().map(|inbox| inbox.first).filter(|first| first.seq > 1).collect()
    }
}
