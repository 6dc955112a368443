//! Owns the figures of each fault: how long no message was accepted or stored, how soon everything worked again, and
//! the errors of callers.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use super::super::evidence::{Evidence, Fault};
use super::super::history::Nanos;
use super::moments::{Call, Moments, SECOND, between, seconds};
use super::timeline::Latency;

/// The length of the time before a fault, and of the time after its end.
const AROUND: Nanos = 10 * SECOND;
/// How long after its end an event still counts for a fault.
const AFTER: Nanos = 30 * SECOND;

/// The effect of one fault.
///
/// *Before* is the 10 seconds before its start. Its *window* is from `began` until 30 seconds after `healed`, or until
/// the next fault starts or the load ends, if that is sooner; a fault that starts while this one lasts does not end the
/// window. *Its partitions* are those with an accepted message before. All times are in seconds.
#[derive(Debug, Serialize)]
pub(crate) struct Recovery {
    /// The number in the plots, from 1.
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) target: String,
    /// Processes that were killed with SIGKILL.
    pub(crate) kills: u32,
    /// `began`, `broken`, `over` and `healed`, from the start of the load.
    pub(crate) began: f64,
    pub(crate) broken: f64,
    pub(crate) over: f64,
    pub(crate) healed: f64,
    /// The longest time in the window without a response that accepted a message of one partition: the maximum over its
    /// partitions. None if it has no partitions or no window.
    pub(crate) no_accept: Option<Stall>,
    /// The longest time in the window without a row (by `stored_time`) from one partition: the maximum over its
    /// partitions.
    pub(crate) no_row: Option<Stall>,
    /// From `healed` until a message was accepted and a row was stored in each of its partitions. None if the window
    /// ended before, or if it has no partitions.
    pub(crate) back_after: Option<f64>,
    /// The failed attempts and reads from `began` to `healed`.
    pub(crate) errors: Errors,
    /// Accepted attempts a second, around the fault.
    pub(crate) accepted: Around,
    /// The latency of accepted SendMsg without `wait_for: STORED` that were in flight at some time from `began` to
    /// `healed`.
    pub(crate) latency: Option<Latency>,
    pub(crate) backlog: Backlog,
}

/// The longest time without an event.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Stall {
    /// Only the part within the window.
    pub(crate) seconds: f64,
    pub(crate) partition: i32,
    /// Whether the stall lasted until the end of the window, and may have continued.
    pub(crate) open: bool,
    /// The same value of the time before the fault, for comparison.
    pub(crate) before: f64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Errors {
    /// Attempts that were accepted in the same time.
    pub(crate) accepted: usize,
    pub(crate) not_sent: usize,
    /// An attempt without a response counts at the time when it was sent.
    pub(crate) unknown: usize,
    pub(crate) failed_reads: usize,
    /// Attempts that were not sent or unknown, per second.
    pub(crate) per_second: Option<f64>,
    /// The number of failed attempts by reason.
    pub(crate) reasons: BTreeMap<String, usize>,
}

/// A rate before a fault (10 seconds), from `began` to `healed`, and after it (10 seconds from `healed`, or to the end
/// of the window).
#[derive(Debug, Serialize)]
pub(crate) struct Around {
    pub(crate) before: Option<f64>,
    pub(crate) during: Option<f64>,
    pub(crate) after: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Backlog {
    /// The highest lag before the fault.
    pub(crate) before: Option<i64>,
    /// The highest lag in the window.
    pub(crate) peak: Option<i64>,
    pub(crate) drained: Drained,
}

/// How a backlog was drained. There is a backlog while the lag is above twice the highest lag before, or above the
/// number of messages accepted in a second if that is more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Drained {
    /// There was no backlog, or the lag before is unknown.
    None,
    /// There was still a backlog when the next fault started or the samples ended.
    No,
    /// From `healed` (or from the peak, if that was later) to the first sample without a backlog. The error is the time
    /// between two samples, about a second.
    Yes {
        /// Seconds from `healed`; 0 if the backlog was drained by then.
        after: f64,
        /// Rows a second in that time while the load ran, as a multiple of the attempts accepted a second. None if the
        /// time is less than a second.
        times: Option<f64>,
    },
}

/// Returns the effect of each fault, in the order of the faults.
pub(crate) fn recoveries(moments: &Moments<'_>, evidence: &Evidence) -> Vec<Recovery> {
    let faults = evidence.faults.iter().enumerate();
    faults.map(|(index, fault)| Scene::of(moments, evidence, fault).recovery(index + 1)).collect()
}

/// A fault and the time around it.
struct Scene<'a> {
    moments: &'a Moments<'a>,
    evidence: &'a Evidence,
    fault: &'a Fault,
    before: Nanos,
    end: Nanos,
    next: Nanos,
    partitions: HashSet<i32>,
}

impl<'a> Scene<'a> {
    fn of(moments: &'a Moments<'a>, evidence: &'a Evidence, fault: &'a Fault) -> Scene<'a> {
        let before = fault.began.saturating_sub(AROUND).max(evidence.began);
        let later = evidence.faults.iter().map(|other| other.began).filter(|began| *began >= fault.healed);
        let next = later.min().unwrap_or(Nanos::MAX);
        let end = (fault.healed + AFTER).min(next).min(evidence.ended);
        Scene { moments, evidence, fault, before, end, next, partitions: moments.partitions(before, fault.began) }
    }

    fn recovery(&self, number: usize) -> Recovery {
        let Fault { name, target, kills, .. } = self.fault;
        let since = |at| seconds(self.evidence.began, at);
        let accepts = |from, to| self.moments.accepts(from, to).iter().map(|accept| (accept.at, accept.partition));
        let rows = |from, to| self.moments.rows(from, to).iter().map(|row| (row.at, row.partition));
        Recovery {
            number,
            name: name.clone(),
            target: target.clone(),
            kills: *kills,
            began: since(self.fault.began),
            broken: since(self.fault.broken),
            over: since(self.fault.over),
            healed: since(self.fault.healed),
            no_accept: self.stall(accepts),
            no_row: self.stall(rows),
            back_after: self.back_after(),
            errors: self.errors(),
            accepted: Around {
                before: self.accept_rate(self.before, self.fault.began),
                during: self.accept_rate(self.fault.began, self.fault.healed),
                after: self.accept_rate(self.fault.healed, self.end.min(self.fault.healed + AROUND)),
            },
            latency: self.latency(),
            backlog: self.backlog(),
        }
    }

    fn stall<I: Iterator<Item = (Nanos, i32)>>(&self, events: impl Fn(Nanos, Nanos) -> I) -> Option<Stall> {
        let (began, end) = (self.fault.began, self.end);
        if end <= began {
            return None;
        }
        let longest = longest_gap(events(began, end), &self.partitions, began, end)?;
        let usual = longest_gap(events(self.before, began), &self.partitions, self.before, began);
        let before = usual.map_or(0.0, |stall| stall.seconds);
        Some(Stall { before, ..longest })
    }

    fn back_after(&self) -> Option<f64> {
        let healed = self.fault.healed;
        let accepts = self.moments.accepts(healed, self.end).iter().map(|accept| (accept.at, accept.partition));
        let rows = self.moments.rows(healed, self.end).iter().map(|row| (row.at, row.partition));
        let back = all_seen(accepts, &self.partitions)?.max(all_seen(rows, &self.partitions)?);
        Some(seconds(healed, back))
    }

    fn errors(&self) -> Errors {
        let Fault { began, healed, .. } = *self.fault;
        let mut errors = Errors {
            accepted: self.moments.accepts(began, healed).len(),
            failed_reads: self.moments.failed_reads(began, healed).len(),
            ..Errors::default()
        };
        let failures = self.moments.errors(began, healed);
        for failure in failures {
            *errors.reasons.entry(failure.reason.to_owned()).or_default() += 1;
        }
        errors.unknown = failures.iter().filter(|failure| failure.unknown).count();
        errors.not_sent = failures.len() - errors.unknown;
        errors.per_second = rate(failures.len(), began, healed);
        errors
    }

    fn latency(&self) -> Option<Latency> {
        let Fault { began, healed, .. } = *self.fault;
        let accepts = self.moments.accepts(began, healed.saturating_add(self.moments.slowest));
        let under_way =
            accepts.iter().filter(|accept| accept.call == Call::Unary && accept.at - accept.duration < healed);
        Latency::of(under_way.map(|accept| accept.duration).collect())
    }

    fn backlog(&self) -> Backlog {
        let Fault { began, healed, .. } = *self.fault;
        let seen = |from, to| {
            let samples = between(&self.evidence.lag, |(at, _)| *at, from, to);
            samples.iter().filter_map(|(at, lag)| Some((*at, (*lag)?)))
        };
        let before = seen(self.before, began).map(|(_, lag)| lag).max();
        // Of equal samples the first one counts.
        let peak = seen(began, self.end).max_by_key(|(at, lag)| (*lag, std::cmp::Reverse(*at)));
        let drained = match (before, peak) {
            (Some(before), Some((peak_at, peak))) => {
                let second = self.accept_rate(self.before, began).unwrap_or_default() as i64;
                let bound = (2 * before).max(second);
                let within = seen(peak_at, self.next).find(|(_, lag)| *lag <= bound);
                match within {
                    _ if peak <= bound => Drained::None,
                    None => Drained::No,
                    Some((at, _)) => Drained::Yes { after: seconds(healed, at), times: self.times(healed, at) },
                }
            }
            _ => Drained::None,
        };
        Backlog { before, peak: peak.map(|(_, lag)| lag), drained }
    }

    /// Returns the rows as a multiple of the accepted attempts.
    fn times(&self, from: Nanos, to: Nanos) -> Option<f64> {
        let to = to.min(self.evidence.ended);
        if to < from + SECOND {
            return None;
        }
        let (rows, accepts) = (self.moments.rows(from, to).len(), self.moments.accepts(from, to).len());
        (accepts > 0).then(|| rows as f64 / accepts as f64)
    }

    fn accept_rate(&self, from: Nanos, to: Nanos) -> Option<f64> {
        rate(self.moments.accepts(from, to).len(), from, to)
    }
}

/// Returns events per second; none if the time is 0.
fn rate(count: usize, from: Nanos, to: Nanos) -> Option<f64> {
    (to > from).then(|| count as f64 / seconds(from, to))
}

/// Returns the longest time without an event in one of the partitions. `events` are those from `from` to `to`, in
/// order.
fn longest_gap(
    events: impl Iterator<Item = (Nanos, i32)>,
    partitions: &HashSet<i32>,
    from: Nanos,
    to: Nanos,
) -> Option<Stall> {
    let mut last: HashMap<i32, Nanos> = partitions.iter().map(|partition| (*partition, from)).collect();
    let mut longest: Option<Stall> = None;
    let mut gap = |partition, since, until, open| {
        let seconds = seconds(since, until);
        if longest.is_none_or(|longest| longest.seconds < seconds) {
            longest = Some(Stall { seconds, partition, open, before: 0.0 });
        }
    };
    for (at, partition) in events {
        if let Some(last) = last.get_mut(&partition) {
            gap(partition, *last, at, false);
            *last = at;
        }
    }
    for (partition, last) in last {
        gap(partition, last, to, true);
    }
    longest
}

/// Returns when every partition has had an event.
fn all_seen(events: impl Iterator<Item = (Nanos, i32)>, partitions: &HashSet<i32>) -> Option<Nanos> {
    let mut missing = partitions.clone();
    for (at, partition) in events {
        if missing.remove(&partition) && missing.is_empty() {
            return Some(at);
        }
    }
    None
}
