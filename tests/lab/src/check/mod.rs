//! Owns the verdict: a pure function from the history and the lab's evidence to the promises, kept or broken. It trusts
//! neither service: it reads only what callers received, the tables and the offsets.

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

/// Maximum number of examples in a finding.
const EXAMPLES: usize = 5;

#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// One of the promises P1 to P8; empty if the check belongs to none of them.
    pub promise: &'static str,
    /// What must hold, in words.
    pub what: String,
    /// A measured value, or a remark.
    pub note: String,
    pub checked: usize,
    /// How many of the cases are broken.
    pub broken: usize,
    /// The first broken cases, in words.
    pub examples: Vec<String>,
}

impl Finding {
    fn new(promise: &'static str, what: impl Into<String>) -> Finding {
        Finding { promise, what: what.into(), note: String::new(), checked: 0, broken: 0, examples: Vec::new() }
    }

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

/// Checks every row, response, read, offset and sample of a run in which everything is stored.
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

/// Checks that the load was effective: a run without traffic proves nothing.
pub(crate) fn got_through(book: &Book) -> Finding {
    let mut finding = Finding::new("", "the load was effective: messages were accepted, pulled and watched");
    let read = |wanted| book.reads.iter().any(|read| read.way == wanted && !book.msgs(read).is_empty());
    finding.check(book.attempts.iter().any(facts::is_accepted), || "no message was accepted".to_owned());
    finding.check(read(ReadWay::Pull), || "no message was pulled".to_owned());
    finding.check(read(ReadWay::Watch), || "no message was watched".to_owned());
    finding
}
