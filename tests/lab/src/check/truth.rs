//! Owns P6: whether what callers were told is true.

use std::collections::HashSet;

use super::super::history::{Attempt, Outcome};
use super::Finding;
use super::facts::{Facts, Incarnation, Place, at, is_unknown, place, place_name, row_name};

/// P6.
pub(super) fn check(facts: &Facts<'_>) -> [Finding; 5] {
    [not_sent(facts), attempts(facts), places(facts), records(facts), forbidden(facts)]
}

fn not_sent(facts: &Facts<'_>) -> Finding {
    let mut finding =
        Finding::new("P6", "what was not sent, as its caller was told, is neither a row nor a dead letter");
    let kept: HashSet<_> = facts.evidence.dead_letters.iter().filter_map(|letter| letter.message).collect();
    for (known, message) in facts.book.messages.iter().zip(0..) {
        if facts.book.attempts_of(message).all(|attempt| matches!(attempt.outcome, Outcome::NotSent(_))) {
            let there = facts.row_of(message).is_some() || kept.contains(&(known.sender, known.n));
            finding.check(!there, || facts.name(message));
        }
    }
    finding
}

/// A message can be not sent at first and sent later: its row must be of another attempt.
fn attempts(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P6", "no row is of an attempt that was reported as not sent");
    for (row, message) in facts.rows.iter().filter_map(|(row, message)| Some((*row, (*message)?))) {
        let of_it = || facts.book.attempts_of(message).filter(|attempt| facts.is_of(row, attempt));
        let not_sent = |attempt: &Attempt| matches!(attempt.outcome, Outcome::NotSent(_));
        // Where the times of two attempts overlap, or a clock was set, it can be of either.
        let false_one = of_it().next().is_some() && of_it().all(not_sent);
        finding.check(!false_one, || row_name(row));
    }
    finding
}

/// Each place holds one message: what was told of it, and the row that names it.
fn places(facts: &Facts<'_>) -> Finding {
    let mut finding =
        Finding::new("P6", "each accepted record has a position of its own, and no row of another message has it");
    let accepted = facts.book.attempts.iter().filter_map(|attempt| {
        let (partition, offset) = place(attempt)?;
        Some((facts.incarnation(attempt)?, partition, offset, attempt.message))
    });
    let mut accepted: Vec<(Incarnation, i32, i64, u32)> = accepted.collect();
    accepted.sort_unstable();
    let mut last = None;
    for (incarnation, partition, offset, message) in &accepted {
        let place = (*partition, *offset);
        let alone = last.replace((*incarnation, place)) != Some((*incarnation, place));
        // Of a record without a message it is not known in which of several incarnations it is.
        let poison = !facts.begins_again(*partition) && facts.poison.contains(&place);
        finding.check(alone && !poison, || format!("{} is not alone at {}", facts.name(*message), place_name(place)));
    }
    for (row, message) in &facts.rows {
        let Some(message) = *message else { continue };
        let Some(incarnation) = facts.incarnation_of_row(row, message) else { continue };
        let place = (incarnation, row.partition, row.offset);
        let found = accepted
            .binary_search_by_key(&place, |(incarnation, partition, offset, _)| (*incarnation, *partition, *offset));
        if let Ok(found) = found {
            let other = accepted[found].3;
            finding
                .check(other == message, || format!("{} is where {} was accepted", row_name(row), facts.name(other)));
        }
    }
    finding
}

/// Every place that was told is there, and no more besides than there are attempts whose outcome stayed unknown.
fn records(facts: &Facts<'_>) -> Finding {
    let mut finding =
        Finding::new("P6", "Kafka holds one record for each OK, and none of an attempt that was not sent");
    let ends = &facts.evidence.ends;
    if (0..).zip(ends).any(|(partition, _)| facts.begins_again(partition)) {
        finding.note = "not counted: Kafka lost records".to_owned();
        return finding;
    }
    let attempts = &facts.book.attempts;
    let mut places: Vec<Place> = attempts.iter().filter_map(place).collect();
    places.extend(&facts.poison);
    places.sort_unstable();
    places.dedup();
    for place in &places {
        finding.check(place.1 < at(ends, place.0), || format!("{} is behind the end", place_name(*place)));
    }
    let count = |what: fn(&Attempt) -> bool| attempts.iter().filter(|attempt| what(attempt)).count();
    let placeless = count(|attempt| attempt.outcome.place().is_some() && place(attempt).is_none());
    let (least, unknown) = (places.len() + placeless, count(is_unknown));
    let twice = attempts.iter().filter(|attempt| facts.may_be_twice(attempt)).count();
    let held = usize::try_from(ends.iter().sum::<i64>()).unwrap_or(0);
    let counts = format!("{held} records, {least} of them reported, {unknown} unknown outcomes, {twice} perhaps twice");
    finding.check((least..=least + unknown + twice).contains(&held), || counts.clone());
    finding.note = counts;
    finding
}

fn forbidden(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P6", "nothing is accepted that was sent while nothing can be");
    for fault in facts.evidence.faults.iter().filter(|fault| fault.no_ok) {
        for attempt in &facts.book.attempts {
            let told = attempt.told.filter(|told| attempt.sent > fault.broken && *told < fault.over);
            if told.is_some() {
                let problem = || format!("{} during {} of {}", facts.name(attempt.message), fault.name, fault.target);
                finding.check(attempt.outcome.place().is_none(), problem);
            }
        }
    }
    finding
}
