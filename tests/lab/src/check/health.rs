//! Owns P8: whether the transfers said that something is wrong while records waited and none was stored, and whether the cause of
//! a fault was named.

use std::collections::HashMap;

use super::super::evidence::{Evidence, Health, Waiting};
use super::super::history::Nanos;
use super::Finding;

/// For a health signal to turn bad: the 30 s that the promise allows, and what both samples and commits may be late.
const WITHIN: Nanos = 40_000_000_000;
/// What was said this long before still counts as said now.
const FRESH: Nanos = 3_000_000_000;

/// P8.
pub(super) fn check(evidence: &Evidence) -> [Finding; 2] {
    [waiting(evidence), named(evidence)]
}

/// A partition is blocked from the moment on since which it had records that are not committed, its committed offset stayed the
/// same, and every transfer was ready.
fn waiting(evidence: &Evidence) -> Finding {
    let mut finding =
        Finding::new("P8", "no transfer is ready while records wait and none of their partition is stored");
    let mut samples: Vec<&Waiting> = evidence.waiting.iter().collect();
    samples.sort_by_key(|sample| sample.at);
    // By partition: since when it is blocked, and at which committed offset.
    let mut blocked: HashMap<usize, (Nanos, i64)> = HashMap::new();
    for sample in samples {
        for (partition, (end, committed)) in sample.ends.iter().zip(&sample.committed).enumerate() {
            if end <= committed || recreated(evidence, sample.at) {
                blocked.remove(&partition);
                continue;
            }
            let (since, at) = *blocked.entry(partition).or_insert((sample.at, *committed));
            let said = said(evidence, sample.at);
            // While one says that something is wrong, or none runs, health is no better than it should be.
            if at != *committed || said.is_empty() || said.iter().any(|health| !health.ready) {
                finding.check(true, String::new);
                blocked.insert(partition, (sample.at, *committed));
                continue;
            }
            let waited = sample.at - since;
            let good = waited > WITHIN;
            finding.check(!good, || {
                let seconds = waited / 1_000_000_000;
                format!(
                    "partition {partition} stayed at {committed} of {end} for {seconds} s, and {} were ready",
                    said.len()
                )
            });
            if good {
                // The rest of the same time is the same violation.
                blocked.insert(partition, (sample.at, *committed));
            }
        }
    }
    finding
}

/// A fault that lasts long enough is named in time by a process that is not ready.
fn named(evidence: &Evidence) -> Finding {
    let mut finding = Finding::new("P8", "what was broken is named by health, by a process that is not ready");
    for fault in evidence.faults.iter().filter(|fault| fault.over >= fault.broken + WITHIN) {
        for says in &fault.says {
            let names = |health: &&Health| {
                !health.ready
                    && health.process.starts_with(&says.process)
                    && says.words.iter().all(|word| health.reason.contains(word))
            };
            let in_time = fault.began..=fault.broken + WITHIN;
            let said = || evidence.health.iter().filter(|health| in_time.contains(&health.at));
            finding.check(said().any(|health| names(&health)), || {
                let said = said().rfind(|health| !health.ready && health.process.starts_with(&says.process));
                let said = said.map(|health| &health.reason);
                format!(
                    "{} of {}: no {} said {:?}; the last said {said:?}",
                    fault.name, fault.target, says.process, says.words
                )
            });
        }
    }
    finding
}

/// The last word of each transfer just before.
fn said(evidence: &Evidence, at: Nanos) -> Vec<&Health> {
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

/// While a topic is deleted and recreated, offsets of two topics are compared.
fn recreated(evidence: &Evidence, at: Nanos) -> bool {
    evidence.topics.iter().any(|topic| topic.deleted <= at && at <= topic.made + WITHIN)
}
