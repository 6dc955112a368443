//! Owns P7: whether each process stayed within its limits, and had nothing in flight at the end.

use std::collections::BTreeMap;

use super::super::evidence::{Evidence, Limit, Measure, Sample};
use super::super::history::Nanos;
use super::Finding;

/// A process whose last sample is this much older than the last sample of all has ended.
const ENDED_AFTER: Nanos = 5_000_000_000;

/// Checks P7: one finding for each limit, and one for what is in flight at the end.
pub(super) fn check(evidence: &Evidence) -> Vec<Finding> {
    let mut findings: Vec<Finding> = evidence.limits.iter().map(|limit| within(limit, &evidence.samples)).collect();
    findings.push(at_rest(&evidence.samples));
    findings
}

fn within(limit: &Limit, samples: &[Sample]) -> Finding {
    let most = amount(limit.what, limit.most);
    let mut finding = Finding::new("P7", format!("{}: {} at most {most}", limit.process, name(limit.what)));
    let mut highest: Option<(f64, &Sample)> = None;
    for sample in samples.iter().filter(|sample| sample.process.starts_with(&limit.process)) {
        let Some(value) = value(limit.what, sample) else { continue };
        finding.check(value <= limit.most, || format!("{} had {}", sample.process, amount(limit.what, value)));
        if highest.is_none_or(|(highest, _)| highest < value) {
            highest = Some((value, sample));
        }
    }
    if let Some((value, sample)) = highest {
        finding.note = format!("{} had the most: {}", sample.process, amount(limit.what, value));
    }
    finding
}

fn at_rest(samples: &[Sample]) -> Finding {
    let mut finding = Finding::new("P7", "at rest nothing is in flight in any process");
    let end = samples.iter().map(|sample| sample.at).max().unwrap_or(0);
    let mut last: BTreeMap<&str, &Sample> = BTreeMap::new();
    for sample in
        samples.iter().filter(|sample| sample.inflight.is_some() && sample.at.saturating_add(ENDED_AFTER) >= end)
    {
        let known = last.entry(&sample.process).or_insert(sample);
        if known.at <= sample.at {
            *known = sample;
        }
    }
    for sample in last.values() {
        let (count, bytes) = sample.inflight.unwrap_or_default();
        let problem = || format!("{} has {count} in flight, {bytes} bytes", sample.process);
        finding.check(count == 0.0 && bytes == 0.0, problem);
    }
    finding
}

fn value(what: Measure, sample: &Sample) -> Option<f64> {
    match what {
        // `f64` is exact up to 8 PiB.
        Measure::Rss => Some(sample.rss as f64),
        Measure::Fds => Some(sample.fds.into()),
        Measure::Sockets => Some(sample.sockets.into()),
        Measure::Threads => Some(sample.threads.into()),
        Measure::Inflight => sample.inflight.map(|(count, _)| count),
        Measure::InflightBytes => sample.inflight.map(|(_, bytes)| bytes),
    }
}

fn name(what: Measure) -> &'static str {
    match what {
        Measure::Rss => "resident memory",
        Measure::Fds => "open files",
        Measure::Sockets => "sockets",
        Measure::Threads => "threads",
        Measure::Inflight => "in flight",
        Measure::InflightBytes => "bytes in flight",
    }
}

fn amount(what: Measure, value: f64) -> String {
    match what {
        Measure::Rss | Measure::InflightBytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        Measure::Fds | Measure::Sockets | Measure::Threads | Measure::Inflight => format!("{value}"),
    }
}
