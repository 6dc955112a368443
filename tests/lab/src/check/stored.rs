//! Owns P1 and P2: whether all that was accepted is there, once, as it was sent, and nothing else.

use std::collections::BTreeSet;

use super::super::evidence::{Evidence, Row, Truncation};
use super::super::history::{Attempt, Outcome};
use super::Finding;
use super::facts::{self, Facts, at, is_conflict, place_name, row_name};

/// P1, P2, and what is in the tables.
pub(super) fn check(facts: &Facts<'_>) -> Vec<Finding> {
    let [lost, seqs, letters, conflicts] = accepted(facts);
    let [doubled, content, foreign] = rows(facts);
    let [poison, caused, foreign] = dead_letters(facts, foreign);
    vec![lost, seqs, letters, conflicts, poison, counted(facts), doubled, content, caused, foreign, history(facts)]
}

fn accepted(facts: &Facts<'_>) -> [Finding; 4] {
    let mut lost = Finding::new("P1", "each accepted message is a row, or a dead letter at its place");
    let mut seqs = Finding::new("P1", "who waited for STORED was told the row's seq, and whether it had been there");
    let mut letters = Finding::new("P1", "each message that was told to be a dead letter is one");
    let mut conflicts =
        Finding::new("P1", "each accepted record of other content under a known ID is an IDEMPOTENCY_CONFLICT");
    let mut excused = 0;
    for message in 0..u32::try_from(facts.book.messages.len()).expect("the book counts so") {
        let row = facts.row_of(message);
        let (mut accepted, mut nowhere) = (false, None);
        for attempt in facts.book.attempts_of(message) {
            let Some(place) = attempt.outcome.place() else { continue };
            let letter = facts.letter(place, Some(message));
            if attempt.altered {
                let holds = place.1 < 0 || letter.is_some_and(is_conflict) || facts.was_destroyed(attempt);
                conflicts.check(holds, || format!("{} at {}", facts.name(message), place_name(place)));
                continue;
            }
            let kept = letter.is_some();
            match attempt.outcome {
                Outcome::DeadLettered(..) => {
                    letters.check(kept, || format!("{} at {}", facts.name(message), place_name(place)));
                    continue;
                }
                Outcome::Stored { seq, duplicate, .. } => {
                    // Without any row it is lost, which is said once.
                    let other = |row: &Row| place.1 >= 0 && place != (row.partition, row.offset);
                    let right = |row: &Row| row.seq == seq && (duplicate == other(row) || place.1 < 0);
                    seqs.check(row.is_none_or(right), || {
                        let row = row.map(row_name);
                        format!("{} was told {:?}, the table has {row:?}", facts.name(message), attempt.outcome)
                    });
                }
                _ if facts.was_destroyed(attempt) => {
                    excused += usize::from(row.is_none() && !kept);
                    continue;
                }
                _ if kept => {
                    accepted = true;
                    continue;
                }
                _ => {}
            }
            accepted = true;
            nowhere = nowhere.or(Some(place));
        }
        if accepted {
            let nowhere = nowhere.filter(|_| row.is_none());
            let told = || format!("{} was accepted at {:?}", facts.name(message), nowhere.map(place_name));
            lost.check(nowhere.is_none(), told);
        }
    }
    if excused > 0 {
        lost.note = format!("{excused} answers are for records that the lab destroyed");
    }
    [lost, seqs, letters, conflicts]
}

/// What was stored and is lost in Kafka, the transfers know by its offsets. What was not read yet nobody can.
fn counted(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P8", "offsets that Kafka lost are counted by the transfers, all and no others");
    let Evidence { truncations, lost_offsets, .. } = facts.evidence;
    let partitions = truncations.iter().map(|cut| cut.partition).chain(lost_offsets.iter().map(|lost| lost.partition));
    for partition in partitions.collect::<BTreeSet<i32>>() {
        let cuts = truncations.iter().filter(|cut| cut.partition == partition);
        let lost: i64 = cuts.map(|cut| (cut.stored - cut.end).max(0)).sum();
        let counts = lost_offsets.iter().filter(|lost| lost.partition == partition);
        let counted: f64 = counts.map(|lost| lost.count).sum();
        let told = || format!("partition {partition}: {lost} are lost, {counted} counted");
        // Few enough that both are exact.
        finding.check(counted == lost as f64, told);
    }
    finding
}

fn rows(facts: &Facts<'_>) -> [Finding; 3] {
    let mut doubled = Finding::new("P2", "no message is two rows, however often it was sent");
    let mut same = Finding::new("", "each row is what was sent, byte for byte, in the inbox it was sent to");
    let mut foreign = Finding::new("", "nothing that was not sent is a row or a dead letter");
    for (row, message) in &facts.rows {
        foreign.check(message.is_some(), || row_name(row));
        let Some(message) = *message else { continue };
        let first = facts.row_of(message).is_none_or(|first| std::ptr::eq(first, *row));
        doubled.check(first, || format!("{} is a second row", row_name(row)));
        let inbox = facts.book.messages[message as usize].inbox;
        same.check(row.inbox == inbox && row.same, || format!("{}, sent to inbox-{inbox}", row_name(row)));
    }
    [doubled, same, foreign]
}

fn dead_letters(facts: &Facts<'_>, mut foreign: Finding) -> [Finding; 3] {
    let mut poison = Finding::new("P1", "each record that holds no message is a dead letter");
    let mut caused = Finding::new("", "nothing is a dead letter that callers did not cause");
    for place in &facts.evidence.poison {
        let topics = &facts.evidence.topics;
        let cut = |cut: &Truncation| cut.partition == place.0 && place.1 >= cut.stored.max(cut.end);
        let went = topics.iter().any(|topic| place.1 >= at(&topic.progress, place.0))
            || facts.evidence.truncations.iter().any(cut);
        poison.check(went || facts.letter(*place, None).is_some(), || place_name(*place));
    }
    for letter in &facts.evidence.dead_letters {
        let place = (letter.partition, letter.offset);
        let name = || format!("{} ({:?}): {}", place_name(place), letter.message, letter.reason);
        let Some((sender, n)) = letter.message else {
            caused.check(facts.poison.contains(&place), name);
            continue;
        };
        let message = facts.book.find(sender, n);
        foreign.check(message.is_some(), name);
        let Some(message) = message else { continue };
        let is_cause = |attempt: &Attempt| match attempt.outcome {
            Outcome::DeadLettered(..) => attempt.outcome.place() == Some(place),
            Outcome::NotSent(_) => false,
            _ => attempt.altered && is_conflict(letter) && facts::place(attempt).is_none_or(|at| at == place),
        };
        caused.check(facts.book.attempts_of(message).any(is_cause), name);
    }
    for what in &facts.evidence.foreign {
        foreign.check(false, || what.clone());
    }
    [poison, caused, foreign]
}

fn history(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("", "every response is the only one to a request");
    finding.checked = facts.book.attempts.iter().filter(|attempt| attempt.told.is_some()).count();
    for contradiction in &facts.book.contradictions {
        finding.check(false, || contradiction.clone());
    }
    finding
}
