//! Owns P6: whether the outcomes that callers received are true.

use std::collections::HashSet;

use super::super::history::{Attempt, Outcome};
use super::Finding;
use super::facts::{Facts, Incarnation, Position, at, is_unknown, position, position_name, row_name};

pub(super) fn check(facts: &Facts<'_>) -> [Finding; 5] {
    [not_sent(facts), attempts(facts), positions(facts), records(facts), forbidden(facts)]
}

fn not_sent(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P6", "a message that was reported as not sent is neither a row nor a dead letter");
    let letters: HashSet<_> = facts.evidence.dead_letters.iter().filter_map(|letter| letter.message).collect();
    for (known, message) in facts.book.messages.iter().zip(0..) {
        if facts.book.attempts_of(message).all(|attempt| matches!(attempt.outcome, Outcome::NotSent(_))) {
            let there = facts.row_of(message).is_some() || letters.contains(&(known.sender, known.n));
            finding.check(!there, || facts.name(message));
        }
    }
    finding
}

/// Checks that a row is not of an attempt that was not sent. A message may first be not sent and later be sent.
fn attempts(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P6", "no row is of an attempt that was reported as not sent");
    for (row, message) in facts.rows.iter().filter_map(|(row, message)| Some((*row, (*message)?))) {
        let of_it = || facts.book.attempts_of(message).filter(|attempt| facts.is_of(row, attempt));
        let not_sent = |attempt: &Attempt| matches!(attempt.outcome, Outcome::NotSent(_));
        // The row may be of any attempt whose time fits: times overlap, and a fault sets clocks.
        let only_not_sent = of_it().next().is_some() && of_it().all(not_sent);
        finding.check(!only_not_sent, || row_name(row));
    }
    finding
}

/// Checks that each position has one message: in the responses, and in the row that names the position.
fn positions(facts: &Facts<'_>) -> Finding {
    let mut finding =
        Finding::new("P6", "each accepted record has a position of its own, and no row of another message has it");
    let accepted = facts.book.attempts.iter().filter_map(|attempt| {
        let (partition, offset) = position(attempt)?;
        Some((facts.incarnation(attempt)?, partition, offset, attempt.message))
    });
    let mut accepted: Vec<(Incarnation, i32, i64, u32)> = accepted.collect();
    accepted.sort_unstable();
    let mut last = None;
    for (incarnation, partition, offset, message) in &accepted {
        let position = (*partition, *offset);
        let alone = last.replace((*incarnation, position)) != Some((*incarnation, position));
        // Skip poison records of a partition that has reused offsets: their incarnation is unknown.
        let poison = !facts.reuses_offsets(*partition) && facts.poison.contains(&position);
        finding.check(alone && !poison, || {
            format!("{} is not alone at {}", facts.name(*message), position_name(position))
        });
    }
    for (row, message) in &facts.rows {
        let Some(message) = *message else { continue };
        let Some(incarnation) = facts.incarnation_of_row(row, message) else { continue };
        let position = (incarnation, row.partition, row.offset);
        let found = accepted
            .binary_search_by_key(&position, |(incarnation, partition, offset, _)| (*incarnation, *partition, *offset));
        if let Ok(found) = found {
            let other = accepted[found].3;
            finding
                .check(other == message, || format!("{} is where {} was accepted", row_name(row), facts.name(other)));
        }
    }
    finding
}

/// Checks that Kafka has a record at every reported position, and at most as many others as there are unknown outcomes.
fn records(facts: &Facts<'_>) -> Finding {
    let mut finding =
        Finding::new("P6", "Kafka holds one record for each OK, and none of an attempt that was not sent");
    let ends = &facts.evidence.ends;
    if (0..).zip(ends).any(|(partition, _)| facts.reuses_offsets(partition)) {
        finding.note = "not counted: Kafka lost records".to_owned();
        return finding;
    }
    let attempts = &facts.book.attempts;
    let mut positions: Vec<Position> = attempts.iter().filter_map(position).collect();
    positions.extend(&facts.poison);
    positions.sort_unstable();
    positions.dedup();
    for position in &positions {
        finding.check(position.1 < at(ends, position.0), || {
            format!("{} is above the end offset", position_name(*position))
        });
    }
    let count = |what: fn(&Attempt) -> bool| attempts.iter().filter(|attempt| what(attempt)).count();
    let without_position = count(|attempt| attempt.outcome.position().is_some() && position(attempt).is_none());
    let (least, unknown) = (positions.len() + without_position, count(is_unknown));
    let twice = attempts.iter().filter(|attempt| facts.may_be_twice(attempt)).count();
    let records = usize::try_from(ends.iter().sum::<i64>()).unwrap_or(0);
    let counts =
        format!("{records} records, {least} of them reported, {unknown} unknown outcomes, {twice} perhaps twice");
    finding.check((least..=least + unknown + twice).contains(&records), || counts.clone());
    finding.note = counts;
    finding
}

fn forbidden(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P6", "no message is accepted that was sent while too few replicas were in sync");
    for fault in facts.evidence.faults.iter().filter(|fault| fault.no_ok) {
        for attempt in &facts.book.attempts {
            let reported = attempt.responded.filter(|at| attempt.sent > fault.broken && *at < fault.over);
            if reported.is_some() {
                let problem = || format!("{} during {} of {}", facts.name(attempt.message), fault.name, fault.target);
                finding.check(attempt.outcome.position().is_none(), problem);
            }
        }
    }
    finding
}
