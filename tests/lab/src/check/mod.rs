//! Owns the verdict: a pure function from the history and what the lab has seen to each promise, kept or broken. It believes
//! neither service: it knows only what callers were told, the tables and the offsets.

mod bounds;
mod facts;
mod health;
mod offsets;
mod order;
mod reads;
mod stored;
mod truth;

#[cfg(test)]
mod tests;

use serde::Serialize;

use super::evidence::Evidence;
use super::history::{Book, ReadWay};
use facts::Facts;

/// Of a broken promise, this many cases are told.
const EXAMPLES: usize = 5;

/// What became of one promise.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Which of the promises P1 to P8; empty where none has a number for it.
    pub promise: &'static str,
    /// In words.
    pub what: String,
    /// What was measured, where there is a figure.
    pub note: String,
    /// How many things were looked at.
    pub checked: usize,
    /// How many of them break it.
    pub broken: usize,
    /// The first of those, in words.
    pub examples: Vec<String>,
}

impl Finding {
    fn new(promise: &'static str, what: impl Into<String>) -> Finding {
        Finding { promise, what: what.into(), note: String::new(), checked: 0, broken: 0, examples: Vec::new() }
    }

    /// Whether the promise was kept.
    pub fn holds(&self) -> bool {
        self.broken == 0
    }

    fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds {
            self.broken += 1;
            if self.examples.len() < EXAMPLES {
                self.examples.push(problem());
            }
        }
    }
}

/// Looks at every row, every answer, every read, every offset and every sample of a run that is at rest.
pub(crate) fn check(book: &Book, evidence: &Evidence) -> Vec<Finding> {
    let facts = Facts::new(book, evidence);
    let mut findings = stored::check(&facts);
    findings.extend(order::check(&facts));
    findings.extend(reads::check(&facts));
    findings.extend(offsets::check(&facts));
    findings.extend(truth::check(&facts));
    findings.extend(bounds::check(evidence));
    findings.extend(health::check(evidence));
    findings
}

/// A run in which nothing got through shows nothing.
pub(crate) fn got_through(book: &Book) -> Finding {
    let mut finding = Finding::new("", "the load got through: messages were accepted, pulled and watched");
    let read = |wanted| book.reads.iter().any(|read| read.way == wanted && !book.msgs(read).is_empty());
    finding.check(book.attempts.iter().any(facts::is_accepted), || "no message was accepted".to_owned());
    finding.check(read(ReadWay::Pull), || "none was pulled".to_owned());
    finding.check(read(ReadWay::Watch), || "none was watched".to_owned());
    finding
}
