//! Owns how the run went over time: rates, latency, lag and memory in equal steps.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::evidence::Evidence;
use super::super::history::Nanos;
use super::moments::{Accept, Call, Moments, SECOND, millis, quantile};

/// No more steps than this; a short run has a step a second.
const MOST: u64 = 600;

/// The columns have one value for each step. The first step begins with the load, the last ends when all was at rest.
#[derive(Debug, Serialize)]
pub(crate) struct Timeline {
    /// The length of a step.
    pub(crate) step_seconds: f64,
    /// Attempts that were accepted, by when the caller was told, a second.
    pub(crate) accepted: Vec<f64>,
    /// New rows, by `stored_time`, a second.
    pub(crate) rows: Vec<f64>,
    /// Attempts that were certainly not sent, by when the caller was told, a second.
    pub(crate) not_sent: Vec<f64>,
    /// Attempts with an unknown outcome, by when the caller was told (or, if it never was, by when it sent), a second.
    pub(crate) unknown: Vec<f64>,
    /// Reads that failed, a second.
    pub(crate) failed_reads: Vec<f64>,
    /// Accepted SendMsg, by when the caller was told; none where there was no such call.
    pub(crate) unary: Vec<Option<Latency>>,
    /// Accepted SendMsg with `wait_for: STORED`.
    pub(crate) stored: Vec<Option<Latency>>,
    /// The highest lag that was seen in the step; none where it was not seen.
    pub(crate) lag: Vec<Option<i64>>,
    /// The highest resident memory that was seen in the step, bytes, by process.
    pub(crate) rss: BTreeMap<String, Vec<Option<u64>>>,
}

/// Milliseconds from sent to told.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// The steps of a run.
#[derive(Clone, Copy)]
struct Steps {
    began: Nanos,
    length: Nanos,
    count: usize,
}

impl Timeline {
    /// Works it out.
    pub(crate) fn of(moments: &Moments<'_>, evidence: &Evidence) -> Timeline {
        let steps = Steps::of(moments, evidence);
        let mut rss = BTreeMap::new();
        for sample in &evidence.samples {
            let column: &mut Vec<Option<u64>> =
                rss.entry(sample.process.clone()).or_insert_with(|| vec![None; steps.count]);
            steps.highest(column, sample.at, sample.rss);
        }
        let mut lag = vec![None; steps.count];
        for &(at, records) in &evidence.lag {
            if let Some(records) = records {
                steps.highest(&mut lag, at, records);
            }
        }
        let errors = |unknown| moments.errors.iter().filter(move |failure| failure.unknown == unknown);
        Timeline {
            step_seconds: steps.length as f64 / SECOND as f64,
            accepted: steps.rate(moments.accepts.iter().map(|accept| accept.at)),
            rows: steps.rate(moments.rows.iter().map(|row| row.at)),
            not_sent: steps.rate(errors(false).map(|failure| failure.at)),
            unknown: steps.rate(errors(true).map(|failure| failure.at)),
            failed_reads: steps.rate(moments.failed_reads.iter().copied()),
            unary: steps.latency(&moments.accepts, Call::Unary),
            stored: steps.latency(&moments.accepts, Call::Stored),
            lag,
            rss,
        }
    }

    /// From the begin of the first step to the end of the last.
    pub(crate) fn seconds(&self) -> f64 {
        self.accepted.len() as f64 * self.step_seconds
    }
}

impl Latency {
    /// None of no call.
    pub(crate) fn of(mut took: Vec<Nanos>) -> Option<Latency> {
        took.sort_unstable();
        let at = |share| quantile(&took, share).map(millis);
        Some(Latency { p50: at(0.5)?, p99: at(0.99)?, max: at(1.0)? })
    }
}

impl Steps {
    fn of(moments: &Moments<'_>, evidence: &Evidence) -> Steps {
        let last_row = moments.rows.last().map(|row| row.at);
        let last_lag = evidence.lag.last().map(|(at, _)| *at);
        let last_fault = evidence.faults.last().map(|fault| fault.healed);
        let ended = [last_row, last_lag, last_fault].into_iter().flatten().fold(evidence.ended, Nanos::max);
        let seconds = ended.saturating_sub(evidence.began) / SECOND + 1;
        let length = seconds.div_ceil(MOST);
        let count = usize::try_from(seconds.div_ceil(length)).expect("no more than MOST");
        Steps { began: evidence.began, length: length * SECOND, count }
    }

    /// Which one a moment is in.
    fn index(&self, at: Nanos) -> Option<usize> {
        let index = at.checked_sub(self.began)? / self.length;
        usize::try_from(index).ok().filter(|index| *index < self.count)
    }

    fn rate(&self, moments: impl Iterator<Item = Nanos>) -> Vec<f64> {
        let mut counts = vec![0_u64; self.count];
        for index in moments.filter_map(|at| self.index(at)) {
            counts[index] += 1;
        }
        let seconds = self.length as f64 / SECOND as f64;
        counts.into_iter().map(|count| count as f64 / seconds).collect()
    }

    fn latency(&self, accepts: &[Accept], call: Call) -> Vec<Option<Latency>> {
        let mut took = vec![Vec::new(); self.count];
        for accept in accepts.iter().filter(|accept| accept.call == call) {
            if let Some(index) = self.index(accept.at) {
                took[index].push(accept.took);
            }
        }
        took.into_iter().map(Latency::of).collect()
    }

    fn highest<T: Copy + Ord>(&self, column: &mut [Option<T>], at: Nanos, value: T) {
        if let Some(index) = self.index(at) {
            column[index] = column[index].max(Some(value));
        }
    }
}
