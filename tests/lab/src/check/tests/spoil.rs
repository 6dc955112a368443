//! Owns the ways into the small world by which it is spoilt.

use super::super::super::evidence::Row;
use super::super::super::history::{Event, Nanos, Outcome, ReadWay, State};
use super::world::World;

impl World {
    pub(super) fn row(&mut self, sender: u32, n: u32) -> &mut Row {
        let mut rows = self.evidence.rows.iter_mut();
        rows.find(|row| (row.sender, row.n) == (sender, n)).expect("the message has a row")
    }

    /// The message has no row, and those behind it stay.
    pub(super) fn lose(&mut self, sender: u32, n: u32) {
        self.evidence.rows.retain(|row| (row.sender, row.n) != (sender, n));
    }

    /// The two change their places in the inbox.
    pub(super) fn swap_seqs(&mut self, one: (u32, u32), other: (u32, u32)) {
        let seq = self.row(one.0, one.1).seq;
        let seq = std::mem::replace(&mut self.row(other.0, other.1).seq, seq);
        self.row(one.0, one.1).seq = seq;
    }

    /// The two change their rows: what is not the message stays.
    pub(super) fn swap_messages(&mut self, one: (u32, u32), other: (u32, u32)) {
        let at = |world: &World, (sender, n): (u32, u32)| {
            let mut rows = world.evidence.rows.iter();
            rows.position(|row| (row.sender, row.n) == (sender, n)).expect("the message has a row")
        };
        for (row, (sender, n)) in [(at(self, one), other), (at(self, other), one)] {
            let row = &mut self.evidence.rows[row];
            (row.sender, row.n) = (sender, n);
        }
    }

    /// The two were handled in the other order from the first on: in Kafka, in the table and in what was told and read.
    pub(super) fn swap_records(&mut self, one: (u32, u32), other: (u32, u32)) {
        self.swap_messages(one, other);
        for line in &mut self.lines {
            let Event::Read { msgs, .. } = line else { continue };
            for (_, sender, n) in msgs {
                if (*sender, *n) == one {
                    (*sender, *n) = other;
                } else if (*sender, *n) == other {
                    (*sender, *n) = one;
                }
            }
        }
        let outcome = self.outcome(other, 0).clone();
        let outcome = std::mem::replace(self.outcome(one, 0), outcome);
        *self.outcome(other, 0) = outcome;
    }

    /// The answer to a message names a second record of it, and not the row's. When that was told.
    pub(super) fn sent_twice(&mut self) -> &mut Nanos {
        let (partition, _) = self.outcome((3, 5), 0).place().expect("it is an OK");
        let second = self.record(partition);
        *self.outcome((3, 5), 0) = Outcome::Ok(partition, second);
        self.settle();
        let mut told = self.lines.iter_mut().filter_map(|line| match line {
            Event::Told { at, results, .. }
                if results.iter().any(|(_, it)| it.place() == Some((partition, second))) =>
            {
                Some(at)
            }
            _ => None,
        });
        told.next().expect("it was told")
    }

    /// What was told of an attempt of a message.
    pub(super) fn outcome(&mut self, (sender, n): (u32, u32), attempt: usize) -> &mut Outcome {
        let mut sends = self.lines.iter().filter_map(|line| match line {
            Event::Send { call, sender: by, msgs, .. } if *by == sender => {
                Some((*call, msgs.iter().position(|msg| msg.0 == n)?))
            }
            _ => None,
        });
        let (wanted, place) = sends.nth(attempt).expect("it was sent so often");
        let results = self.lines.iter_mut().find_map(|line| match line {
            Event::Told { call, results, .. } if *call == wanted => Some(results),
            _ => None,
        });
        let mut results = results.expect("it was answered").iter_mut();
        &mut results.find(|(index, _)| *index as usize == place).expect("it was told").1
    }

    /// The messages of a page or an event; `which` counts from 0.
    pub(super) fn read(&mut self, wanted: ReadWay, which: usize) -> &mut Vec<(i64, u32, u32)> {
        let reads = self.lines.iter_mut().filter_map(|line| match line {
            Event::Read { way, msgs, .. } if *way == wanted => Some(msgs),
            _ => None,
        });
        reads.into_iter().nth(which).expect("so many reads")
    }

    /// How far the watch that was used for long has come.
    pub(super) fn brought(&mut self) -> &mut i64 {
        let mut ends = self.lines.iter_mut().filter_map(|line| match line {
            Event::Read { way: ReadWay::Watch, end: true, from, .. } => Some(from),
            _ => None,
        });
        ends.next().expect("there is one")
    }

    /// What the GetMsgStatus told.
    pub(super) fn state(&mut self, which: usize) -> &mut State {
        let states = self.lines.iter_mut().filter_map(|line| match line {
            Event::Status { state, .. } => Some(state),
            _ => None,
        });
        states.into_iter().nth(which).expect("so many")
    }

    /// What the GetMaxSeqs told.
    pub(super) fn seqs(&mut self, which: usize) -> &mut Vec<(u32, i64)> {
        let seqs = self.lines.iter_mut().filter_map(|line| match line {
            Event::MaxSeqs { seqs, .. } => Some(seqs),
            _ => None,
        });
        seqs.into_iter().nth(which).expect("so many reads")
    }
}
