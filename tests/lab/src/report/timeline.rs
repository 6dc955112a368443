//! Owns the course of the run: rates, latency, lag and memory in equal steps.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::evidence::Evidence;
use super::super::history::Nanos;
use super::moments::{Accept, Call, Moments, SECOND, millis, quantile};

/// Maximum number of steps; a short run has a step for each second.
const MAX_STEPS: u64 = 600;

/// Columns with one value for each step. The first step starts with the load, the last one ends when everything was
/// stored.
#[derive(Debug, Serialize)]
pub(crate) struct Timeline {
    pub(crate) step_seconds: f64,
    /// Accepted attempts a second, by the time of the response.
    pub(crate) accepted: Vec<f64>,
    /// New rows a second, by `stored_time`.
    pub(crate) rows: Vec<f64>,
    /// Attempts a second that were not sent, by the time of the response.
    pub(crate) not_sent: Vec<f64>,
    /// Attempts a second with an unknown outcome, by the time of the response or, without one, of the send.
    pub(crate) unknown: Vec<f64>,
    /// Failed reads a second, by the time of the response.
    pub(crate) failed_reads: Vec<f64>,
    /// Latency of accepted SendMsg, by the time of the response; none if the step has no such call.
    pub(crate) unary: Vec<Option<Latency>>,
    /// Latency of accepted SendMsg with `wait_for: STORED`.
    pub(crate) stored: Vec<Option<Latency>>,
    /// The highest lag in the step; none if it is unknown.
    pub(crate) lag: Vec<Option<i64>>,
    /// The highest resident memory in the step in bytes, by process.
    pub(crate) rss: BTreeMap<String, Vec<Option<u64>>>,
}

/// Milliseconds from the send to the response.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

#[derive(Clone, Copy)]
struct Steps {
    began: Nanos,
    length: Nanos,
    count: usize,
}

impl Timeline {
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

    /// The time from the start of the first step to the end of the last one.
    pub(crate) fn seconds(&self) -> f64 {
        self.accepted.len() as f64 * self.step_seconds
    }
}

impl Latency {
    /// Returns the quantiles; none if there are no calls.
    pub(crate) fn of(mut durations: Vec<Nanos>) -> Option<Latency> {
        durations.sort_unstable();
        let at = |share| quantile(&durations, share).map(millis);
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
        let length = seconds.div_ceil(MAX_STEPS);
        let count = usize::try_from(seconds.div_ceil(length)).expect("at most MAX_STEPS");
        Steps { began: evidence.began, length: length * SECOND, count }
    }

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
        let mut durations = vec![Vec::new(); self.count];
        for accept in accepts.iter().filter(|accept| accept.call == call) {
            if let Some(index) = self.index(accept.at) {
                durations[index].push(accept.duration);
            }
        }
        durations.into_iter().map(Latency::of).collect()
    }

    fn highest<T: Copy + Ord>(&self, column: &mut [Option<T>], at: Nanos, value: T) {
        if let Some(index) = self.index(at) {
            column[index] = column[index].max(Some(value));
        }
    }
}
