//! Owns the moments that the figures are made of: accepts, errors and rows, each in the order of time.

use std::collections::HashSet;

use super::super::evidence::Evidence;
use super::super::history::book::Book;
use super::super::history::{Nanos, Outcome, Way};

/// A second.
pub(crate) const SECOND: Nanos = 1_000_000_000;

/// What happened when.
#[derive(Debug, Default)]
pub(crate) struct Moments<'a> {
    /// By the time at which the caller was told.
    pub(crate) accepts: Vec<Accept>,
    /// By the time at which the caller was told.
    pub(crate) errors: Vec<Failure<'a>>,
    /// By `stored_time`.
    pub(crate) rows: Vec<Stored>,
    /// By the time at which the reader was told.
    pub(crate) failed_reads: Vec<Nanos>,
    /// How long the slowest accepted call took.
    pub(crate) slowest: Nanos,
}

/// An attempt that was accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accept {
    pub(crate) at: Nanos,
    pub(crate) took: Nanos,
    pub(crate) partition: i32,
    pub(crate) call: Call,
}

/// What kind of call it was, as far as its latency means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// SendMsg.
    Unary,
    /// SendMsg with `wait_for: STORED`.
    Stored,
    /// An entry of a batch or stream.
    Entry,
}

/// An attempt that was not accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure<'a> {
    /// When the caller was told, or, of one that was never told, when it was sent.
    pub(crate) at: Nanos,
    /// It may be there or not; else it is certainly not.
    pub(crate) unknown: bool,
    pub(crate) reason: &'a str,
}

/// A new row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) at: Nanos,
    pub(crate) partition: i32,
}

impl<'a> Moments<'a> {
    /// All of a run's.
    pub(crate) fn of(book: &'a Book, evidence: &Evidence) -> Moments<'a> {
        let mut moments = Moments::default();
        for attempt in &book.attempts {
            let at = attempt.told.unwrap_or(attempt.sent);
            let call = match (attempt.way, attempt.stored) {
                (Way::Unary, false) => Call::Unary,
                (Way::Unary, true) => Call::Stored,
                (Way::Batch | Way::Stream, _) => Call::Entry,
            };
            let failure = match &attempt.outcome {
                Outcome::NotSent(reason) => Failure { at, unknown: false, reason },
                Outcome::Unknown(reason) => Failure { at, unknown: true, reason },
                accepted => {
                    let took = at.saturating_sub(attempt.sent);
                    let partition = accepted.place().map_or(-1, |(partition, _)| partition);
                    moments.accepts.push(Accept { at, took, partition, call });
                    moments.slowest = moments.slowest.max(took);
                    continue;
                }
            };
            moments.errors.push(failure);
        }
        let clock = &evidence.clock;
        let stored = evidence.rows.iter().map(|row| Stored { at: clock.nanos(row.stored), partition: row.partition });
        moments.rows.extend(stored);
        moments.failed_reads.extend(&book.failed_reads);
        moments.accepts.sort_unstable_by_key(|accept| accept.at);
        moments.errors.sort_unstable_by_key(|failure| failure.at);
        moments.rows.sort_unstable_by_key(|row| row.at);
        moments.failed_reads.sort_unstable();
        moments
    }

    /// Accepted from `from` to before `to`.
    pub(crate) fn accepts(&self, from: Nanos, to: Nanos) -> &[Accept] {
        between(&self.accepts, |accept| accept.at, from, to)
    }

    /// Not accepted from `from` to before `to`.
    pub(crate) fn errors(&self, from: Nanos, to: Nanos) -> &[Failure<'a>] {
        between(&self.errors, |failure| failure.at, from, to)
    }

    /// Stored from `from` to before `to`.
    pub(crate) fn rows(&self, from: Nanos, to: Nanos) -> &[Stored] {
        between(&self.rows, |row| row.at, from, to)
    }

    /// Reads that failed from `from` to before `to`.
    pub(crate) fn failed_reads(&self, from: Nanos, to: Nanos) -> &[Nanos] {
        between(&self.failed_reads, |at| *at, from, to)
    }

    /// The partitions of what was accepted from `from` to before `to`.
    pub(crate) fn partitions(&self, from: Nanos, to: Nanos) -> HashSet<i32> {
        self.accepts(from, to).iter().map(|accept| accept.partition).collect()
    }
}

/// The part from `from` to before `to` of what is in the order of time.
pub(crate) fn between<T>(all: &[T], at: impl Fn(&T) -> Nanos, from: Nanos, to: Nanos) -> &[T] {
    let first = all.partition_point(|item| at(item) < from);
    let rest = &all[first..];
    &rest[..rest.partition_point(|item| at(item) < to)]
}

/// From one moment to a later one, in seconds; 0 where it is not later.
pub(crate) fn seconds(from: Nanos, to: Nanos) -> f64 {
    to.saturating_sub(from) as f64 / SECOND as f64
}

/// The value that a share of all is not above (the nearest rank), of values in ascending order.
pub(crate) fn quantile(sorted: &[Nanos], share: f64) -> Option<Nanos> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Milliseconds.
pub(crate) fn millis(nanos: Nanos) -> f64 {
    nanos as f64 / 1e6
}
