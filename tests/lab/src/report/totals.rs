//! Owns the sums of a run.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::evidence::Evidence;
use super::super::history::book::Book;
use super::super::history::{Outcome, ReadWay, Way};
use super::moments::seconds;

#[derive(Debug, Serialize)]
pub(crate) struct Totals {
    /// Seconds from the start of the load until its last sender ended.
    pub(crate) seconds: f64,
    pub(crate) messages: usize,
    pub(crate) rows: usize,
    pub(crate) dead_letters: usize,
    pub(crate) faults: usize,
    /// Processes that were killed with SIGKILL.
    pub(crate) kills: u32,
    /// Pages that PullMsgs returned to the readers.
    pub(crate) pages: usize,
    pub(crate) watch_events: usize,
    pub(crate) failed_reads: usize,
    /// Attempts to send a message, by way.
    pub(crate) ways: Vec<Sends>,
    /// Attempts that were not accepted, by reason.
    pub(crate) reasons: BTreeMap<String, usize>,
}

/// Attempts of one way, by the reported outcome.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Sends {
    pub(crate) way: &'static str,
    pub(crate) attempts: usize,
    pub(crate) accepted: usize,
    pub(crate) stored: usize,
    pub(crate) not_stored_yet: usize,
    pub(crate) dead_lettered: usize,
    pub(crate) not_sent: usize,
    pub(crate) unknown: usize,
}

impl Totals {
    pub(crate) fn of(book: &Book, evidence: &Evidence) -> Totals {
        let mut ways: BTreeMap<(Way, bool), Sends> = BTreeMap::new();
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        for attempt in &book.attempts {
            let sends = ways.entry((attempt.way, attempt.stored)).or_default();
            sends.way = way(attempt.way, attempt.stored);
            sends.attempts += 1;
            let (count, reason) = match &attempt.outcome {
                Outcome::Ok(..) => (&mut sends.accepted, None),
                Outcome::Stored { .. } => (&mut sends.stored, None),
                Outcome::NotStoredYet(..) => (&mut sends.not_stored_yet, None),
                Outcome::DeadLettered(..) => (&mut sends.dead_lettered, None),
                Outcome::NotSent(reason) => (&mut sends.not_sent, Some(reason)),
                Outcome::Unknown(reason) => (&mut sends.unknown, Some(reason)),
            };
            *count += 1;
            if let Some(reason) = reason {
                *reasons.entry(reason.to_string()).or_default() += 1;
            }
        }
        Totals {
            seconds: seconds(evidence.began, evidence.ended),
            messages: book.messages.len(),
            rows: evidence.rows.len(),
            dead_letters: evidence.dead_letters.len(),
            faults: evidence.faults.len(),
            kills: evidence.faults.iter().map(|fault| fault.kills).sum(),
            pages: book.reads.iter().filter(|read| read.way == ReadWay::Pull).count(),
            watch_events: book.reads.iter().filter(|read| read.way == ReadWay::Watch && !read.end).count(),
            failed_reads: book.failed_reads.len(),
            ways: ways.into_values().collect(),
            reasons,
        }
    }

    /// The attempts of all ways that were accepted, not sent, and unknown.
    pub(crate) fn outcomes(&self) -> [usize; 3] {
        let sum = |of: fn(&Sends) -> usize| self.ways.iter().map(of).sum();
        [
            sum(|sends| sends.accepted + sends.stored + sends.not_stored_yet + sends.dead_lettered),
            sum(|sends| sends.not_sent),
            sum(|sends| sends.unknown),
        ]
    }
}

fn way(way: Way, stored: bool) -> &'static str {
    match (way, stored) {
        (Way::Unary, false) => "SendMsg",
        (Way::Unary, true) => "SendMsg, STORED",
        (Way::Batch, false) => "BatchSendMsg",
        (Way::Batch, true) => "BatchSendMsg, STORED",
        (Way::Stream, false) => "StreamSendMsg",
        (Way::Stream, true) => "StreamSendMsg, STORED",
    }
}
