//! Owns P3 and P4: whether `seq` follows the order of the senders, of the channels and of Kafka, without gaps.

use super::super::evidence::Row;
use super::super::history::{Nanos, Way};
use super::Finding;
use super::facts::{Facts, Incarnation, Position, is_accepted, is_unknown, position, position_name, row_name};

pub(super) fn check(facts: &Facts<'_>) -> [Finding; 5] {
    let mut times = Finding::new("P3", "a message that was accepted before another was sent has the lower seq");
    let mut kafka = Finding::new("P3", "seq order is Kafka's order");
    let mut firsts = Finding::new("P3", "each row is the first delivery of its message");
    let mut gaps = Finding::new("P4", "seq counts 1, 2, 3 … in each inbox");
    for inbox in facts.rows.chunk_by(|a, b| a.0.inbox == b.0.inbox) {
        let mut last_seq = 0;
        // The latest time at which a message with a lower seq was sent.
        let mut latest: Option<(Nanos, u32)> = None;
        let mut offsets = Rising { growths: facts.evidence.growths.len(), ..Rising::default() };
        for (row, message) in inbox {
            gaps.check(row.seq == last_seq + 1, || format!("{} after {last_seq}", row_name(row)));
            last_seq = row.seq;
            // Skip a second row, or a row in another inbox: other checks report them.
            let own = |message: &u32| facts.row_in_order(*message).is_some_and(|first| std::ptr::eq(first, *row));
            let Some(message) = message.filter(own) else { continue };

            let accepted = facts.delivered(message).filter_map(|attempt| attempt.responded).min();
            let in_time = accepted.zip(latest).is_none_or(|(accepted, (sent, _))| accepted >= sent);
            times.check(in_time, || {
                let later = latest.map(|(_, message)| facts.name(message));
                format!("{} was accepted before {later:?} was sent", row_name(row))
            });
            let sent = facts.book.attempts_of(message).next().map_or(0, |attempt| attempt.sent);
            latest = latest.max(Some((sent, message)));

            let Some(incarnation) = facts.incarnation_of_row(row, message) else { continue };
            let position = (row.partition, row.offset);
            let name = || format!("{} is at {}", row_name(row), position_name(position));
            kafka.check(offsets.next(incarnation, position), name);
            firsts.check(is_first(facts, row, message, incarnation), name);
        }
    }
    [times, channels(facts), kafka, firsts, gaps]
}

/// Checks that the positions of one inbox rise in seq order.
#[derive(Default)]
struct Rising {
    /// How many times an inbox may move to another partition: once for each time partitions were added.
    growths: usize,
    /// How many times the topic had been recreated.
    topic: usize,
    moves: usize,
    current: Option<i32>,
    /// For each partition of the inbox: how many times the end of its log had been lost, and the last offset.
    last: Vec<(i32, (usize, i64))>,
}

impl Rising {
    fn next(&mut self, incarnation: Incarnation, (partition, offset): Position) -> bool {
        let Incarnation { topic, tail } = incarnation;
        if topic < self.topic {
            return false;
        }
        if topic > self.topic {
            *self = Rising { growths: self.growths, topic, ..Rising::default() };
        }
        let here = (tail, offset);
        let moved = self.current.replace(partition).is_some_and(|current| current != partition);
        self.moves += usize::from(moved);
        let rising = match self.last.iter_mut().find(|last| last.0 == partition) {
            Some(last) => std::mem::replace(&mut last.1, here) < here,
            None => {
                self.last.push((partition, here));
                true
            }
        };
        rising && !(moved && self.moves > self.growths)
    }
}

/// Whether a row is the first delivery of its message: it is the record of an accepted attempt, and none before it was
/// accepted. A row may also be the record of an unknown attempt, or a record that Kafka may have twice.
fn is_first(facts: &Facts<'_>, row: &Row, message: u32, incarnation: Incarnation) -> bool {
    let here = (row.partition, row.offset);
    let mut possible = false;
    for attempt in facts.book.attempts_of(message).filter(|attempt| !attempt.altered) {
        let Some(accepted) = position(attempt).filter(|_| is_accepted(attempt)) else {
            possible |= is_accepted(attempt) || is_unknown(attempt);
            continue;
        };
        // A producer sends a record again if the broker rejected another one of the same request as too old.
        let twice = || facts.may_be_twice(attempt) || facts.is_of(row, attempt);
        possible |= accepted == here || (accepted.0 == here.0 && accepted.1 > here.1 && twice());
        let before = if accepted.0 == here.0 { accepted.1 < here.1 } else { facts.evidence.growths.is_empty() };
        if before && facts.incarnation(attempt) == Some(incarnation) {
            return false;
        }
    }
    possible
}

/// Checks that within one batch or stream the entries to one inbox keep their order, if the earlier one was accepted
/// there and the later one had never been sent before.
fn channels(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P3", "within one batch or stream, entries to one inbox keep their order");
    let attempts = &facts.book.attempts;
    let inbox = |at: u32| facts.book.messages[attempts[at as usize].message as usize].inbox;
    let count = u32::try_from(attempts.len()).expect("the book counts so");
    let mut entries: Vec<u32> = (0..count).filter(|at| attempts[*at as usize].way != Way::Unary).collect();
    entries.sort_unstable_by_key(|at| (attempts[*at as usize].channel, inbox(*at), attempts[*at as usize].order));
    let same =
        |a: &u32, b: &u32| attempts[*a as usize].channel == attempts[*b as usize].channel && inbox(*a) == inbox(*b);
    for entries in entries.chunk_by(same) {
        let mut highest: Option<&Row> = None;
        for attempt in entries.iter().map(|at| &attempts[*at as usize]) {
            let Some(row) = facts.row_in_order(attempt.message) else { continue };
            let first = facts.book.attempts_of(attempt.message).next();
            if let Some(before) = highest.filter(|_| first.is_some_and(|first| std::ptr::eq(first, attempt))) {
                let problem = || format!("{} was sent after {}", row_name(row), row_name(before));
                finding.check(before.seq < row.seq, problem);
            }
            let accepted = is_accepted(attempt) && !facts.was_destroyed(attempt);
            if accepted && highest.is_none_or(|before| before.seq < row.seq) {
                highest = Some(row);
            }
        }
    }
    finding
}
