//! Owns P5: whether the group never committed an offset before all records below it were stored, and had committed
//! everything at the end.

use std::collections::HashMap;

use super::super::evidence::Commits;
use super::super::history::Nanos;
use super::Finding;
use super::facts::{Facts, Incarnation, Position, at, position, position_name};

/// Checks P5, during the run and at its end.
pub(super) fn check(facts: &Facts<'_>) -> [Finding; 2] {
    [along(facts), at_rest(facts)]
}

fn along(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P5", "no offset was committed before all records below it were stored");
    finding.note = format!("committed offsets were read {} times", facts.evidence.commits.len());
    let steps = steps(facts);
    let mut check = |incarnation: Option<Incarnation>, position: Position, stored: i64| {
        let steps = incarnation.and_then(|incarnation| steps.get(&(incarnation, position.0)));
        let passed = steps.and_then(|steps| steps.get(steps.partition_point(|(next, _)| *next <= position.1)));
        if let Some((next, seen)) = passed {
            let late = stored.saturating_sub(*seen);
            let problem =
                || format!("{} was stored {late} µs after the commit of {next} was seen", position_name(position));
            finding.check(late <= 0, problem);
        }
    };
    for attempt in &facts.book.attempts {
        let Some(position) = position(attempt) else { continue };
        let letter = facts.letter(position, Some(attempt.message)).map(|letter| letter.seen);
        if let Some(stored) = letter.or_else(|| facts.row_of(attempt.message).map(|row| row.stored)) {
            check(facts.incarnation(attempt), position, stored);
        }
    }
    for (row, message) in &facts.rows {
        // Skip a second row of the message: another check reports it.
        let first = message.filter(|message| facts.row_of(*message).is_some_and(|first| std::ptr::eq(first, *row)));
        let incarnation = first.and_then(|message| facts.incarnation_of_row(row, message));
        check(incarnation, (row.partition, row.offset), row.stored);
    }
    // Skip poison records of a partition that has reused offsets: they have no time, so their incarnation is unknown.
    for position in facts.evidence.poison.iter().filter(|position| !facts.reuses_offsets(position.0)) {
        if let Some(letter) = facts.letter(*position, None) {
            check(Some(Incarnation::default()), *position, letter.seen);
        }
    }
    finding
}

/// Returns, by incarnation and partition, each next offset that was higher than all before, and when it was first seen.
fn steps(facts: &Facts<'_>) -> HashMap<(Incarnation, i32), Vec<(i64, i64)>> {
    let mut commits: Vec<&Commits> = facts.evidence.commits.iter().collect();
    commits.sort_by_key(|commits| commits.at);
    let mut steps: HashMap<(Incarnation, i32), Vec<(i64, i64)>> = HashMap::new();
    for commits in commits {
        let seen = facts.evidence.clock.nanos(commits.at);
        for (next, partition) in commits.next.iter().zip(0..) {
            // Only offsets of the log at that time count.
            let Some(incarnation) = facts.incarnation_between((partition, i64::MAX), seen, seen) else { continue };
            if is_ambiguous(facts, partition, *next, seen) {
                continue;
            }
            let steps = steps.entry((incarnation, partition)).or_default();
            if steps.last().is_none_or(|(last, _)| last < next) {
                steps.push((*next, commits.at));
            }
        }
    }
    steps
}

/// Whether it is unknown which log a committed offset is of. After the end of a log is lost, the group keeps its old
/// offset until a transfer commits for the first time, and the lost offsets are assigned again.
fn is_ambiguous(facts: &Facts<'_>, partition: i32, next: i64, seen: Nanos) -> bool {
    let mut cuts = facts.evidence.truncations.iter().filter(|cut| cut.partition == partition && cut.at <= seen);
    cuts.any(|cut| next > cut.end && next <= cut.was)
}

/// Checks that every committed offset is the end offset. A partition of a recreated topic may be empty still, and then
/// only has the progress row of the old topic.
fn at_rest(facts: &Facts<'_>) -> Finding {
    let mut finding =
        Finding::new("P5", "at rest the committed offset is the end offset, and the progress row is not below it");
    let evidence = facts.evidence;
    let partitions = evidence.ends.len().max(evidence.committed.len()).max(evidence.progress.len());
    for partition in 0..i32::try_from(partitions).expect("partitions are few") {
        let list = [&evidence.committed, &evidence.progress, &evidence.ends].map(|list| at(list, partition));
        let [committed, progress, end] = list;
        let empty = end == 0 && !evidence.topics.is_empty();
        let problem = || format!("partition {partition}: committed {committed}, progress {progress}, end {end}");
        finding.check(committed == end && (empty || (committed..=end).contains(&progress)), problem);
    }
    finding
}
