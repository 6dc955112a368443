//! Owns the moments that the figures are computed from: accepted attempts, errors and rows, each sorted by time.

use std::collections::HashSet;

use super::super::evidence::Evidence;
use super::super::history::book::Book;
use super::super::history::{Nanos, Outcome, Way};

pub(crate) const SECOND: Nanos = 1_000_000_000;

#[derive(Debug, Default)]
pub(crate) struct Moments<'a> {
    /// By the time of the response to the caller.
    pub(crate) accepts: Vec<Accept>,
    /// By the time of the response to the caller.
    pub(crate) errors: Vec<Failure<'a>>,
    /// Sorted by the `stored_time` of the row.
    pub(crate) rows: Vec<Stored>,
    /// By the time of the response to the reader.
    pub(crate) failed_reads: Vec<Nanos>,
    /// The duration of the slowest accepted call.
    pub(crate) slowest: Nanos,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Accept {
    pub(crate) at: Nanos,
    pub(crate) duration: Nanos,
    pub(crate) partition: i32,
    pub(crate) call: Call,
}

/// The kind of a call, if its latency is meaningful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A SendMsg that waits for Kafka only.
    Unary,
    Stored,
    /// An entry of a batch or stream.
    Entry,
}

/// An attempt that was not accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure<'a> {
    /// The time of the response, or the time of the send if there was no response.
    pub(crate) at: Nanos,
    /// Whether the outcome is unknown; otherwise the message was not sent.
    pub(crate) unknown: bool,
    pub(crate) reason: &'a str,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) at: Nanos,
    pub(crate) partition: i32,
}

impl<'a> Moments<'a> {
    /// Collects the moments of a run.
    pub(crate) fn of(book: &'a Book, evidence: &Evidence) -> Moments<'a> {
        let mut moments = Moments::default();
        for attempt in &book.attempts {
            let at = attempt.responded.unwrap_or(attempt.sent);
            let call = match (attempt.way, attempt.stored) {
                (Way::Unary, false) => Call::Unary,
                (Way::Unary, true) => Call::Stored,
                (Way::Batch | Way::Stream, _) => Call::Entry,
            };
            let failure = match &attempt.outcome {
                Outcome::NotSent(reason) => Failure { at, unknown: false, reason },
                Outcome::Unknown(reason) => Failure { at, unknown: true, reason },
                accepted => {
                    let duration = at.saturating_sub(attempt.sent);
                    let partition = accepted.position().map_or(-1, |(partition, _)| partition);
                    moments.accepts.push(Accept { at, duration, partition, call });
                    moments.slowest = moments.slowest.max(duration);
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

    /// Returns the attempts that were accepted from `from` to before `to`.
    pub(crate) fn accepts(&self, from: Nanos, to: Nanos) -> &[Accept] {
        between(&self.accepts, |accept| accept.at, from, to)
    }

    /// Returns the attempts that were not accepted, from `from` to before `to`.
    pub(crate) fn errors(&self, from: Nanos, to: Nanos) -> &[Failure<'a>] {
        between(&self.errors, |failure| failure.at, from, to)
    }

    /// Returns the rows that were stored from `from` to before `to`.
    pub(crate) fn rows(&self, from: Nanos, to: Nanos) -> &[Stored] {
        between(&self.rows, |row| row.at, from, to)
    }

    /// Returns the reads that failed from `from` to before `to`.
    pub(crate) fn failed_reads(&self, from: Nanos, to: Nanos) -> &[Nanos] {
        between(&self.failed_reads, |at| *at, from, to)
    }

    /// Returns the partitions with an accepted attempt from `from` to before `to`.
    pub(crate) fn partitions(&self, from: Nanos, to: Nanos) -> HashSet<i32> {
        self.accepts(from, to).iter().map(|accept| accept.partition).collect()
    }
}

/// Returns the part from `from` to before `to` of a list that is sorted by time.
pub(crate) fn between<T>(all: &[T], at: impl Fn(&T) -> Nanos, from: Nanos, to: Nanos) -> &[T] {
    let first = all.partition_point(|item| at(item) < from);
    let rest = &all[first..];
    &rest[..rest.partition_point(|item| at(item) < to)]
}

/// Returns the time between two moments in seconds; 0 if the second is not later.
pub(crate) fn seconds(from: Nanos, to: Nanos) -> f64 {
    to.saturating_sub(from) as f64 / SECOND as f64
}

/// Returns the quantile (the nearest rank) of values in ascending order.
pub(crate) fn quantile(sorted: &[Nanos], share: f64) -> Option<Nanos> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

pub(crate) fn millis(nanos: Nanos) -> f64 {
    nanos as f64 / 1e6
}
