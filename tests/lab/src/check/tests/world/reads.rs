//! Adds what readers receive in the small world: pages, events of watches, last seqs and states.

use super::super::super::super::history::{Event, ReadWay, State};
use super::{SECOND, World};

impl World {
    pub(super) fn pull(&mut self, reader: u32, inbox: u32, from: i64) {
        let (requested, msgs) = (self.tick(), self.msgs(inbox, from));
        let at = self.tick();
        self.lines.push(Event::Read { reader, way: ReadWay::Pull, requested, at, inbox, from, msgs, end: true });
    }

    /// Watches new messages, in two events if there are several.
    pub(super) fn watch(&mut self, reader: u32, inbox: u32) {
        let mut msgs = self.msgs(inbox, self.watched.get(&(reader, inbox)).copied().unwrap_or(0) + 1);
        let rest = msgs.split_off(msgs.len().div_ceil(2));
        for msgs in [msgs, rest].into_iter().filter(|msgs| !msgs.is_empty()) {
            let at = self.tick();
            let from = msgs[0].0;
            self.watched.insert((reader, inbox), msgs[msgs.len() - 1].0);
            self.lines.push(Event::Read {
                reader,
                way: ReadWay::Watch,
                requested: at,
                at,
                inbox,
                from,
                msgs,
                end: false,
            });
        }
    }

    pub(super) fn watched_for_long(&mut self, reader: u32, inbox: u32) {
        let requested = self.tick();
        self.now += 45 * SECOND;
        let (at, from) = (self.now, self.watched[&(reader, inbox)] + 1);
        let (way, msgs) = (ReadWay::Watch, Vec::new());
        self.lines.push(Event::Read { reader, way, requested, at, inbox, from, msgs, end: true });
    }

    pub(super) fn max_seqs(&mut self, reader: u32, inboxes: &[u32]) {
        let highest = |inbox: u32| self.msgs(inbox, 1).last().map_or(0, |(seq, _, _)| *seq);
        let seqs = inboxes.iter().map(|inbox| (*inbox, highest(*inbox))).collect();
        let (requested, at) = (self.tick(), self.tick());
        self.lines.push(Event::MaxSeqs { reader, requested, at, seqs });
    }

    pub(in super::super) fn status(&mut self, sender: u32, n: u32) {
        let dead_lettered = self.evidence.dead_letters.iter().any(|letter| letter.message == Some((sender, n)));
        let state = match self.stored.get(&(sender, n)) {
            Some(seq) => State::Stored(*seq),
            None if dead_lettered => State::DeadLettered,
            None => State::NotFound,
        };
        let (requested, at) = (self.tick(), self.tick());
        self.lines.push(Event::Status { reader: 1, requested, at, sender, n, state });
    }

    fn msgs(&self, inbox: u32, from: i64) -> Vec<(i64, u32, u32)> {
        let rows = self.evidence.rows.iter().filter(|row| row.inbox == inbox && row.seq >= from);
        rows.map(|row| (row.seq, row.sender, row.n)).collect()
    }
}
