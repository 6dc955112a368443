//! Owns P1 and P2: whether every accepted message is stored, once, as it was sent, and nothing else is.

use std::collections::BTreeSet;

use super::super::evidence::{Evidence, Row, Truncation};
use super::super::history::{Attempt, Outcome};
use super::Finding;
use super::facts::{self, Facts, at, is_conflict, position_name, row_name};

/// Checks P1, P2, and the content of the tables.
pub(super) fn check(facts: &Facts<'_>) -> Vec<Finding> {
    let [lost, seqs, letters, conflicts] = accepted(facts);
    let [duplicated, content, foreign] = rows(facts);
    let [poison, caused, foreign] = dead_letters(facts, foreign);
    vec![lost, seqs, letters, conflicts, poison, counted(facts), duplicated, content, caused, foreign, history(facts)]
}

fn accepted(facts: &Facts<'_>) -> [Finding; 4] {
    let mut lost = Finding::new("P1", "each accepted message is a row, or a dead letter at its position");
    let mut seqs =
        Finding::new("P1", "each response to a waiter has the row's seq, and says whether the row existed before");
    let mut letters = Finding::new("P1", "each message that was reported as dead-lettered is a dead letter");
    let mut conflicts =
        Finding::new("P1", "each accepted record of other content under a known ID is an IDEMPOTENCY_CONFLICT");
    let mut excused = 0;
    for message in 0..u32::try_from(facts.book.messages.len()).expect("the book counts so") {
        let row = facts.row_of(message);
        let (mut accepted, mut nowhere) = (false, None);
        for attempt in facts.book.attempts_of(message) {
            let Some(position) = attempt.outcome.position() else { continue };
            let letter = facts.letter(position, Some(message));
            if attempt.altered {
                let holds = position.1 < 0 || letter.is_some_and(is_conflict) || facts.was_destroyed(attempt);
                conflicts.check(holds, || format!("{} at {}", facts.name(message), position_name(position)));
                continue;
            }
            let dead_lettered = letter.is_some();
            match attempt.outcome {
                Outcome::DeadLettered(..) => {
                    letters.check(dead_lettered, || format!("{} at {}", facts.name(message), position_name(position)));
                    continue;
                }
                Outcome::Stored { seq, duplicate, .. } => {
                    // A message without a row is lost; report that only once.
                    let other = |row: &Row| position.1 >= 0 && position != (row.partition, row.offset);
                    let right = |row: &Row| row.seq == seq && (duplicate == other(row) || position.1 < 0);
                    seqs.check(row.is_none_or(right), || {
                        let row = row.map(row_name);
                        format!("{} was reported as {:?}, the table has {row:?}", facts.name(message), attempt.outcome)
                    });
                }
                _ if facts.was_destroyed(attempt) => {
                    excused += usize::from(row.is_none() && !dead_lettered);
                    continue;
                }
                _ if dead_lettered => {
                    accepted = true;
                    continue;
                }
                _ => {}
            }
            accepted = true;
            nowhere = nowhere.or(Some(position));
        }
        if accepted {
            let nowhere = nowhere.filter(|_| row.is_none());
            let problem = || format!("{} was accepted at {:?}", facts.name(message), nowhere.map(position_name));
            lost.check(nowhere.is_none(), problem);
        }
    }
    if excused > 0 {
        lost.note = format!("{excused} responses are for records that the lab destroyed");
    }
    [lost, seqs, letters, conflicts]
}

/// Checks the count of lost offsets. A transfer detects lost records that it had stored; no one can detect those that
/// it had not read.
fn counted(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P8", "the transfers counted exactly the offsets that Kafka lost");
    let Evidence { truncations, lost_offsets, .. } = facts.evidence;
    let partitions = truncations.iter().map(|cut| cut.partition).chain(lost_offsets.iter().map(|lost| lost.partition));
    for partition in partitions.collect::<BTreeSet<i32>>() {
        let cuts = truncations.iter().filter(|cut| cut.partition == partition);
        let lost: i64 = cuts.map(|cut| (cut.stored - cut.end).max(0)).sum();
        let counts = lost_offsets.iter().filter(|lost| lost.partition == partition);
        let counted: f64 = counts.map(|lost| lost.count).sum();
        let problem = || format!("partition {partition}: {lost} are lost, the transfers counted {counted}");
        // Both are exact: the numbers are small.
        finding.check(counted == lost as f64, problem);
    }
    finding
}

fn rows(facts: &Facts<'_>) -> [Finding; 3] {
    let mut duplicated = Finding::new("P2", "no message is two rows, however often it was sent");
    let mut same =
        Finding::new("", "each row has exactly the bytes that were sent, in the inbox that they were sent to");
    let mut foreign = Finding::new("", "every row and every dead letter is of a message that was sent");
    for (row, message) in &facts.rows {
        foreign.check(message.is_some(), || row_name(row));
        let Some(message) = *message else { continue };
        let first = facts.row_of(message).is_none_or(|first| std::ptr::eq(first, *row));
        duplicated.check(first, || format!("{} is a second row", row_name(row)));
        let inbox = facts.book.messages[message as usize].inbox;
        same.check(row.inbox == inbox && row.same, || format!("{}, sent to inbox-{inbox}", row_name(row)));
    }
    [duplicated, same, foreign]
}

fn dead_letters(facts: &Facts<'_>, mut foreign: Finding) -> [Finding; 3] {
    let mut poison = Finding::new("P1", "each record without a message is a dead letter");
    let mut caused = Finding::new("", "every dead letter was caused by a caller");
    for position in &facts.evidence.poison {
        let topics = &facts.evidence.topics;
        let cut = |cut: &Truncation| cut.partition == position.0 && position.1 >= cut.stored.max(cut.end);
        let destroyed = topics.iter().any(|topic| position.1 >= at(&topic.progress, position.0))
            || facts.evidence.truncations.iter().any(cut);
        poison.check(destroyed || facts.letter(*position, None).is_some(), || position_name(*position));
    }
    for letter in &facts.evidence.dead_letters {
        let position = (letter.partition, letter.offset);
        let name = || format!("{} ({:?}): {}", position_name(position), letter.message, letter.reason);
        let Some((sender, n)) = letter.message else {
            caused.check(facts.poison.contains(&position), name);
            continue;
        };
        let message = facts.book.find(sender, n);
        foreign.check(message.is_some(), name);
        let Some(message) = message else { continue };
        let is_cause = |attempt: &Attempt| match attempt.outcome {
            Outcome::DeadLettered(..) => attempt.outcome.position() == Some(position),
            Outcome::NotSent(_) => false,
            _ => attempt.altered && is_conflict(letter) && facts::position(attempt).is_none_or(|at| at == position),
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
    finding.checked = facts.book.attempts.iter().filter(|attempt| attempt.responded.is_some()).count();
    for contradiction in &facts.book.contradictions {
        finding.check(false, || contradiction.clone());
    }
    finding
}
