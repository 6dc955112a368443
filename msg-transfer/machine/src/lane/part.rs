//! The parts of a batch: which records one transaction stores, and which are dropped because they may not be written
//! any more.

use std::collections::BTreeSet;

use super::blocked::report_unblocked;
use super::entry::forget_found;
use super::state::{Batch, State, Step};
use super::{Entry, Kind, Machine, Message, Request};
use crate::consumer::{Event, RecordRef};
use crate::{ConnectionNumber, Partition};

impl<T: Message> Machine<T> {
    pub(super) fn start_part(
        &mut self,
        mut batch: Box<Batch<T>>,
        entries: Vec<Entry<T>>,
        events: &mut Vec<Event>,
    ) -> Request {
        batch.start_part(entries);
        self.queue_blocked(&mut batch, events);
        forget_found(&mut batch.entries);
        self.start_attempt(batch, events)
    }

    /// Starts an attempt to store the records that may still be written.
    pub(super) fn start_attempt(&mut self, mut batch: Box<Batch<T>>, events: &mut Vec<Event>) -> Request {
        batch.drop_fenced(events);
        if batch.entries.is_empty() {
            return self.next_part(batch, events);
        }
        let part = self.part_records(&batch);
        if batch.entries.len() > part {
            let more = batch.entries.split_off(part);
            batch.rest.splice(..0, more);
        }
        let dead = batch.entries.iter().filter(|entry| entry.dead().is_some_and(|(reason, _)| reason.counts()));
        let dead: Vec<RecordRef> = dead.map(|entry| entry.record_ref).collect();
        if !dead.is_empty() && !batch.approved {
            return self.storing(batch, Step::Approval, Request::ApproveDeadLetters(dead));
        }
        let connection_number = batch.entries.iter().filter_map(|entry| entry.assignment.connection_number()).max();
        let connection_number = connection_number.expect("a record is received after its start offset was resolved");
        if batch.fence_older(connection_number, events) {
            return self.start_attempt(batch, events);
        }
        if self.connection == Some(connection_number) {
            return self.read_last_seqs(batch);
        }
        // Another server may lack earlier messages: later ones that are stored on it would overtake them.
        self.connection = None;
        self.cache.clear();
        self.storing(batch, Step::Connection(connection_number), Request::Connect(connection_number))
    }

    /// Returns the maximum number of records of the next part.
    fn part_records(&self, batch: &Batch<T>) -> usize {
        let Some(retry) = &batch.retry else { return self.max_records };
        // A blocked inbox may have far more records than a batch.
        let fits = |bytes: &mut usize, entry: &Entry<T>| {
            let before = *bytes;
            *bytes += entry.record_ref.bytes;
            (before < self.settings.batch_bytes).then_some(())
        };
        let max_records = retry.max_records.min(self.settings.batch_records).max(1);
        batch.entries.iter().take(max_records).scan(0, fits).count().max(1)
    }

    pub(super) fn max_records<'a>(&'a mut self, batch: &'a mut Batch<T>) -> &'a mut usize {
        batch.retry.as_mut().map_or(&mut self.max_records, |retry| &mut retry.max_records)
    }

    pub(super) fn next_part(&mut self, mut batch: Box<Batch<T>>, events: &mut Vec<Event>) -> Request {
        if batch.rest.is_empty() {
            self.state = State::Idle;
            return Request::Done(batch.outcome);
        }
        let rest = std::mem::take(&mut batch.rest);
        self.start_part(batch, rest, events)
    }
}

impl<T: Message> Batch<T> {
    /// Fences the records whose start offset was read over an earlier reference connection: the current server may lack
    /// the messages before them. Returns whether there was any.
    fn fence_older(&self, connection_number: ConnectionNumber, events: &mut Vec<Event>) -> bool {
        let older = |entry: &&Entry<T>| entry.assignment.connection_number() < Some(connection_number);
        let older: BTreeSet<Partition> = self
            .entries
            .iter()
            .filter(older)
            .map(|entry| {
                entry.assignment.fence();
                entry.record_ref.partition
            })
            .collect();
        events.extend(older.iter().map(|partition| Event::RestartPartition(*partition)));
        !older.is_empty()
    }

    /// Drops the records that may not be written any more.
    fn drop_fenced(&mut self, events: &mut Vec<Event>) {
        for entry in &self.entries {
            if let Kind::Newer(reason) = &entry.kind
                && !entry.assignment.is_fenced()
            {
                // Fence immediately, for all lanes: a later record to the same inbox must not overtake this one.
                entry.assignment.fence();
                let RecordRef { partition, epoch, offset, .. } = entry.record_ref;
                events.push(Event::Halt { partition, epoch, reason: format!("offset {offset}: {reason}") });
            }
        }
        let fenced: Vec<Entry<T>> = self.entries.extract_if(.., |entry| entry.assignment.is_fenced()).collect();
        if !fenced.is_empty() {
            report_unblocked(fenced.iter(), events);
            events.push(Event::Dropped(fenced.iter().map(|entry| entry.record_ref).collect()));
            forget_found(&mut self.entries);
        }
    }
}
