//! Owns P8: whether a transfer was not ready while records waited and none was stored, and whether a process named the
//! cause of a fault.

use std::collections::HashMap;

use super::super::evidence::{Evidence, Health, Waiting};
use super::super::history::Nanos;
use super::Finding;

/// The deadline for a transfer to become not ready if none of a partition's records is stored: the 30 s of the promise,
/// the 2 s between two checks, and the possible delay of samples and commits.
const STALLED_WITHIN: Nanos = 36_000_000_000;
/// The deadline for a process to name the cause of a fault.
const WITHIN: Nanos = 40_000_000_000;
/// The maximum age of a sample that counts as current.
const FRESH: Nanos = 3_000_000_000;

pub(super) fn check(evidence: &Evidence) -> [Finding; 2] {
    [waiting(evidence), named(evidence)]
}

/// Checks readiness. A partition is blocked as long as it has records that are not committed, its committed offset does
/// not move, and every transfer is ready.
fn waiting(evidence: &Evidence) -> Finding {
    let mut finding = Finding::new("P8", "no transfer is ready while records of its partition wait and none is stored");
    let mut samples: Vec<&Waiting> = evidence.waiting.iter().collect();
    samples.sort_by_key(|sample| sample.at);
    // For each blocked partition: since when it is blocked, and its committed offset.
    let mut blocked: HashMap<usize, (Nanos, i64)> = HashMap::new();
    for sample in samples {
        for (partition, (end, committed)) in sample.ends.iter().zip(&sample.committed).enumerate() {
            if end <= committed || recreated(evidence, sample.at) {
                blocked.remove(&partition);
                continue;
            }
            let (since, at) = *blocked.entry(partition).or_insert((sample.at, *committed));
            let current = current_readiness(evidence, sample.at);
            // If a transfer is not ready, or none runs, the readiness is right.
            if at != *committed || current.is_empty() || current.iter().any(|health| !health.ready) {
                finding.check(true, String::new);
                blocked.insert(partition, (sample.at, *committed));
                continue;
            }
            let waited = sample.at - since;
            let good = waited > STALLED_WITHIN;
            finding.check(!good, || {
                let seconds = waited / 1_000_000_000;
                format!(
                    "partition {partition} stayed at {committed} of {end} for {seconds} s, and {} were ready",
                    current.len()
                )
            });
            if good {
                // Count the rest of the same time only as one violation.
                blocked.insert(partition, (sample.at, *committed));
            }
        }
    }
    finding
}

/// Checks that a fault that lasts long enough is named before the deadline by a process that is not ready.
fn named(evidence: &Evidence) -> Finding {
    let mut finding = Finding::new("P8", "a process that is not ready names the injected fault");
    for fault in evidence.faults.iter().filter(|fault| fault.over >= fault.broken + WITHIN) {
        for says in &fault.says {
            let names = |health: &&Health| {
                !health.ready
                    && health.process.starts_with(&says.process)
                    && says.words.iter().all(|word| health.reason.contains(word))
            };
            let in_time = fault.began..=fault.broken + WITHIN;
            let reported = || evidence.health.iter().filter(|health| in_time.contains(&health.at));
            finding.check(reported().any(|health| names(&health)), || {
                let last = reported().rfind(|health| !health.ready && health.process.starts_with(&says.process));
                let last = last.map(|health| &health.reason);
                format!(
                    "{} of {}: no {} reported {:?}; the last reported {last:?}",
                    fault.name, fault.target, says.process, says.words
                )
            });
        }
    }
    finding
}

fn current_readiness(evidence: &Evidence, at: Nanos) -> Vec<&Health> {
    let mut last: HashMap<&str, &Health> = HashMap::new();
    let transfers = evidence.health.iter().filter(|health| health.process.starts_with("transfer"));
    for health in transfers.filter(|health| health.at <= at && health.at + FRESH >= at) {
        let known = last.entry(&health.process).or_insert(health);
        if known.at <= health.at {
            *known = health;
        }
    }
    last.into_values().collect()
}

/// Whether the topic is being deleted and recreated: then the offsets of two topics would be compared.
fn recreated(evidence: &Evidence, at: Nanos) -> bool {
    evidence.topics.iter().any(|topic| topic.deleted <= at && at <= topic.made + WITHIN)
}
