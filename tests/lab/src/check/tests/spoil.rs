//! Owns the changes that break a promise of the small world.

use super::super::super::evidence::Row;
use super::super::super::history::{Event, Nanos, Outcome, ReadWay, State};
use super::world::World;

impl World {
    pub(super) fn row(&mut self, sender: u32, n: u32) -> &mut Row {
        let mut rows = self.evidence.rows.iter_mut();
        rows.find(|row| (row.sender, row.n) == (sender, n)).expect("the message has a row")
    }

    /// Removes the row of a message, and keeps the rows behind it.
    pub(super) fn lose(&mut self, sender: u32, n: u32) {
        self.evidence.rows.retain(|row| (row.sender, row.n) != (sender, n));
    }

    pub(super) fn swap_seqs(&mut self, one: (u32, u32), other: (u32, u32)) {
        let seq = self.row(one.0, one.1).seq;
        let seq = std::mem::replace(&mut self.row(other.0, other.1).seq, seq);
        self.row(one.0, one.1).seq = seq;
    }

    /// Swaps the messages of two rows; all other columns stay.
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

    /// Swaps two messages everywhere from the first send on: in Kafka, in the table, in responses and in reads.
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

    /// Makes the response to a message name a second record, which is not the row's. Returns the time of the response.
    pub(super) fn sent_twice(&mut self) -> &mut Nanos {
        let (partition, _) = self.outcome((3, 5), 0).position().expect("the message was accepted");
        let second = self.record(partition);
        *self.outcome((3, 5), 0) = Outcome::Ok(partition, second);
        self.drain();
        let mut responses = self.lines.iter_mut().filter_map(|line| match line {
            Event::Outcomes { at, results, .. }
                if results.iter().any(|(_, it)| it.position() == Some((partition, second))) =>
            {
                Some(at)
            }
            _ => None,
        });
        responses.next().expect("the outcome was reported")
    }

    /// The reported outcome of an attempt of a message.
    pub(super) fn outcome(&mut self, (sender, n): (u32, u32), attempt: usize) -> &mut Outcome {
        let mut sends = self.lines.iter().filter_map(|line| match line {
            Event::Send { call, sender: by, msgs, .. } if *by == sender => {
                Some((*call, msgs.iter().position(|msg| msg.0 == n)?))
            }
            _ => None,
        });
        let (wanted, entry) = sends.nth(attempt).expect("the message was sent this often");
        let results = self.lines.iter_mut().find_map(|line| match line {
            Event::Outcomes { call, results, .. } if *call == wanted => Some(results),
            _ => None,
        });
        let mut results = results.expect("the call has a response").iter_mut();
        &mut results.find(|(index, _)| *index as usize == entry).expect("the entry has a result").1
    }

    /// The messages of a page or an event; `which` counts from 0.
    pub(super) fn read(&mut self, wanted: ReadWay, which: usize) -> &mut Vec<(i64, u32, u32)> {
        let reads = self.lines.iter_mut().filter_map(|line| match line {
            Event::Read { way, msgs, .. } if *way == wanted => Some(msgs),
            _ => None,
        });
        reads.into_iter().nth(which).expect("there are enough reads")
    }

    /// The last seq of the long watch, plus 1.
    pub(super) fn watched_up_to(&mut self) -> &mut i64 {
        let mut ends = self.lines.iter_mut().filter_map(|line| match line {
            Event::Read { way: ReadWay::Watch, end: true, from, .. } => Some(from),
            _ => None,
        });
        ends.next().expect("there is a long watch")
    }

    /// The result of a GetMsgStatus; `which` counts from 0.
    pub(super) fn state(&mut self, which: usize) -> &mut State {
        let states = self.lines.iter_mut().filter_map(|line| match line {
            Event::Status { state, .. } => Some(state),
            _ => None,
        });
        states.into_iter().nth(which).expect("there are enough calls")
    }

    /// The results of a GetMaxSeqs; `which` counts from 0.
    pub(super) fn seqs(&mut self, which: usize) -> &mut Vec<(u32, i64)> {
        let seqs = self.lines.iter_mut().filter_map(|line| match line {
            Event::MaxSeqs { seqs, .. } => Some(seqs),
            _ => None,
        });
        seqs.into_iter().nth(which).expect("there are enough calls")
    }
}
