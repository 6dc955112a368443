//! The transaction of a batch: it numbers the messages, inserts rows, looks repeats up, and inserts dead letters.

use super::blocked::report_unblocked;
use super::entry::State;
use super::{DeadLetter, Machine, Message, NumberedEntry, Pending, Request};
use crate::consumer::Event;

impl<T: Message> Machine<T> {
    /// Requests the last `seq` of each inbox that is not cached.
    pub(super) fn ask(&mut self) -> Request {
        let entries = &self.entries;
        let inbox = |index: &usize| entries[*index].body.recv_id();
        let mut new: Vec<usize> = (0..entries.len()).filter(|index| entries[*index].is_new()).collect();
        // A stable sort keeps the order of receipt within an inbox. Sorted rows are faster to insert into the index.
        new.sort_by(|a, b| inbox(a).cmp(inbox(b)));
        let groups = new.chunk_by(|a, b| inbox(a) == inbox(b));
        let cache = &mut self.cache;
        let known = |group: &[usize]| cache.get(inbox(&group[0]), entries[group[0]].assignment.epoch);
        let with_known = |known: Option<i64>, group: &[usize]| (group.to_vec(), known);
        let mut known = known;
        self.inboxes = groups.map(|group| with_known(known(group), group)).collect();
        let unknown: Vec<usize> =
            self.inboxes.iter().filter(|(_, last)| last.is_none()).map(|(group, _)| group[0]).collect();
        if unknown.is_empty() {
            return self.assign_seqs(Vec::new());
        }
        self.request(Pending::LastSeqs, Request::LastSeqs(unknown))
    }

    /// Gives each new message the next `seq` of its inbox. `seqs` holds the last ones that were requested.
    pub(super) fn assign_seqs(&mut self, seqs: Vec<i64>) -> Request {
        let mut answers = seqs.into_iter();
        self.numbered.clear();
        for (group, known) in &mut self.inboxes {
            let last = *known.get_or_insert_with(|| answers.next().expect("each unknown inbox was asked for"));
            self.numbered.extend(group.iter().zip(last + 1..).map(|(entry, seq)| NumberedEntry { entry: *entry, seq }));
        }
        let begin = if self.is_short() { Request::BeginRetry } else { Request::Begin };
        self.request(Pending::Begin, begin)
    }

    /// Returns the first row of each inbox that needs a predecessor.
    pub(super) fn heads(&self) -> Vec<NumberedEntry> {
        let last = |known: &Option<i64>| known.expect("it was asked for");
        let heads = self.inboxes.iter().map(|(group, known)| NumberedEntry { entry: group[0], seq: last(known) + 1 });
        heads.filter(|head| head.seq > 1).collect()
    }

    pub(super) fn guard(&mut self) -> Request {
        let heads = if self.settings.guard { self.heads() } else { Vec::new() };
        if heads.is_empty() {
            return self.insert();
        }
        self.request(Pending::Guard, Request::Guard(heads))
    }

    pub(super) fn insert(&mut self) -> Request {
        if self.numbered.is_empty() {
            return self.find_repeats();
        }
        self.request(Pending::Insert, Request::Insert(self.numbered.clone()))
    }

    pub(super) fn inserted(&mut self, inserted: usize) -> Request {
        if inserted < self.numbered.len() {
            // Some are stored already, and would leave gaps in `seq`. Retry without them: each attempt finds at least one.
            return self.request(Pending::UndoInsert, Request::Rollback);
        }
        self.find_repeats()
    }

    pub(super) fn repeats(&self) -> Vec<usize> {
        (0..self.entries.len()).filter(|index| self.entries[*index].is(&State::Repeat)).collect()
    }

    /// Looks repeats up in the same transaction: the messages that they repeat are in the table by now.
    pub(super) fn find_repeats(&mut self) -> Request {
        let repeats = self.repeats();
        if repeats.is_empty() {
            return self.insert_dead_letters();
        }
        self.request(Pending::FindRepeats, Request::FindStored(repeats))
    }

    pub(super) fn found(&mut self, found: &[(usize, bool)]) {
        for (index, same) in found {
            self.entries[*index].state = if *same { State::Duplicate } else { State::Conflict };
        }
    }

    pub(super) fn dead_letters(&mut self) -> Vec<DeadLetter> {
        let conflicts = &mut self.conflicts;
        let dead = self.entries.iter().enumerate().filter_map(|(entry, held)| {
            let (reason, detail) = held.dead()?;
            let content = reason.counts() || conflicts.keep(&held.record_ref);
            let lost = if content { "" } else { "; its content is not kept: too many conflicts of late" };
            Some(DeadLetter { entry, reason, detail: format!("{detail}{lost}"), content })
        });
        dead.collect()
    }

    pub(super) fn insert_dead_letters(&mut self) -> Request {
        let dead = self.dead_letters();
        if dead.is_empty() {
            return self.commit();
        }
        self.request(Pending::DeadLetters, Request::InsertDeadLetters(dead))
    }

    pub(super) fn commit(&mut self) -> Request {
        if self.entries.iter().any(|entry| entry.assignment.is_fenced()) {
            return self.request(Pending::UndoFenced, Request::Rollback);
        }
        self.request(Pending::Commit, Request::Commit)
    }

    pub(super) fn committed(&mut self, warned: bool, events: &mut Vec<Event>) -> Request {
        // Only after the COMMIT: a cache that is ahead of the table makes gaps, which no unique key prevents.
        for inbox in &self.inboxes {
            let (group, Some(last)) = inbox else { continue };
            let (entry, rows) = (&self.entries[group[0]], i64::try_from(group.len()).expect("a batch is small"));
            self.cache.put(entry.body.recv_id(), entry.assignment.epoch, last + rows);
        }
        if warned {
            // A standby that takes over may not have these rows: a cache of them would make gaps, which no unique key prevents.
            self.cache.clear();
        }
        self.outcome.stored += self.numbered.len();
        self.outcome.duplicates += self.entries.iter().filter(|entry| entry.is(&State::Duplicate)).count();
        let dead = self.entries.iter().filter_map(|entry| entry.dead());
        self.outcome.dead_letters.extend(dead.map(|(reason, _)| reason));
        report_unblocked(self.entries.iter(), events);
        events.push(Event::Completed(self.entries.drain(..).map(|entry| entry.record_ref).collect()));
        self.most = self.most.saturating_mul(2);
        self.next_part(events)
    }
}
