//! Owns P5: whether the group ever committed an offset before what is below it was stored, and whether all is drained at rest.

use std::collections::HashMap;

use super::super::evidence::Commits;
use super::super::history::Nanos;
use super::Finding;
use super::facts::{Facts, Incarnation, Place, at, place, place_name};

/// P5, along the way and at rest.
pub(super) fn check(facts: &Facts<'_>) -> [Finding; 2] {
    [along(facts), at_rest(facts)]
}

fn along(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P5", "no offset was committed before what is below it was stored");
    finding.note = format!("committed offsets were read {} times", facts.evidence.commits.len());
    let steps = steps(facts);
    let mut look = |incarnation: Option<Incarnation>, place: Place, stored: i64| {
        let steps = incarnation.and_then(|incarnation| steps.get(&(incarnation, place.0)));
        let passed = steps.and_then(|steps| steps.get(steps.partition_point(|(next, _)| *next <= place.1)));
        if let Some((next, seen)) = passed {
            let late = stored.saturating_sub(*seen);
            let told = || format!("{} was stored {late} µs after the commit of {next} was seen", place_name(place));
            finding.check(late <= 0, told);
        }
    };
    for attempt in &facts.book.attempts {
        let Some(place) = place(attempt) else { continue };
        let letter = facts.letter(place, Some(attempt.message)).map(|letter| letter.seen);
        if let Some(stored) = letter.or_else(|| facts.row_of(attempt.message).map(|row| row.stored)) {
            look(facts.incarnation(attempt), place, stored);
        }
    }
    for (row, message) in &facts.rows {
        // A second row is told of elsewhere.
        let first = message.filter(|message| facts.row_of(*message).is_some_and(|first| std::ptr::eq(first, *row)));
        let incarnation = first.and_then(|message| facts.incarnation_of_row(row, message));
        look(incarnation, (row.partition, row.offset), row.stored);
    }
    // Of a record without a message it is not known when it was written, and so not to which of several topics.
    for place in facts.evidence.poison.iter().filter(|place| !facts.begins_again(place.0)) {
        if let Some(letter) = facts.letter(*place, None) {
            look(Some(Incarnation::default()), *place, letter.seen);
        }
    }
    finding
}

/// By incarnation and partition: each next offset that was higher than all before it, and when it was seen first.
fn steps(facts: &Facts<'_>) -> HashMap<(Incarnation, i32), Vec<(i64, i64)>> {
    let mut commits: Vec<&Commits> = facts.evidence.commits.iter().collect();
    commits.sort_by_key(|commits| commits.at);
    let mut steps: HashMap<(Incarnation, i32), Vec<(i64, i64)>> = HashMap::new();
    for commits in commits {
        let seen = facts.evidence.clock.nanos(commits.at);
        for (next, partition) in commits.next.iter().zip(0..) {
            // Of the log as it was then.
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

/// When the end of a log is lost, the group's offset stays above it until a transfer commits for the first time. Of the offsets that
/// were lost it is not known which of the two a commit means.
fn is_ambiguous(facts: &Facts<'_>, partition: i32, next: i64, seen: Nanos) -> bool {
    let mut cuts = facts.evidence.truncations.iter().filter(|cut| cut.partition == partition && cut.at <= seen);
    cuts.any(|cut| next > cut.end && next <= cut.was)
}

/// All is drained: the committed offset is the end. A partition of a topic that was made anew can be empty still, and then has
/// only the old one's progress.
fn at_rest(facts: &Facts<'_>) -> Finding {
    let mut finding =
        Finding::new("P5", "at rest the committed offset is the end offset, and the progress row is not below it");
    let evidence = facts.evidence;
    let partitions = evidence.ends.len().max(evidence.committed.len()).max(evidence.progress.len());
    for partition in 0..i32::try_from(partitions).expect("partitions are few") {
        let list = [&evidence.committed, &evidence.progress, &evidence.ends].map(|list| at(list, partition));
        let [committed, progress, end] = list;
        let empty = end == 0 && !evidence.topics.is_empty();
        let told = || format!("partition {partition}: committed {committed}, progress {progress}, end {end}");
        finding.check(committed == end && (empty || (committed..=end).contains(&progress)), told);
    }
    finding
}
