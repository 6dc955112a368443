//! The figures of a run: what was measured of each side, for the terminal and for a file.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cost::Cost;
use super::rounds::{Round, Series, Spread};

/// What was measured of one side, over all rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// The measurement, which its limits and systems share.
    pub(crate) what: String,
    /// The limit or the system.
    pub(crate) side: String,
    /// Messages that were offered in one second, if that was a choice.
    pub(crate) offered: Option<f64>,
    /// Messages in one second; none if nothing was sent. Then the costs are for one second.
    pub(crate) rate: Option<Spread>,
    /// The rate divided by that of each limit or, if the rate was a choice, the p99.
    pub(crate) ratios: Vec<Ratio>,
    /// Microseconds of each call, by quantile.
    pub(crate) latencies: Vec<Quantile>,
    pub(crate) costs: Vec<ProcessCost>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ratio {
    pub(crate) limit: String,
    pub(crate) ratio: Spread,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Quantile {
    pub(crate) quantile: f64,
    pub(crate) micros: Spread,
}

/// What a process used for one message (or in one second), and its memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessCost {
    pub(crate) process: String,
    pub(crate) cpu_micros: Spread,
    pub(crate) wakeups: Spread,
    pub(crate) memory_bytes: Spread,
}

/// The quantiles of a latency that are kept.
const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 1.0];

/// The figures of this run. Each is printed when it is added.
#[derive(Default)]
pub(crate) struct Output {
    pub(crate) figures: Vec<Figure>,
}

impl Output {
    /// Adds a measurement: series that were measured in turns, at this rate if it was a choice.
    pub(crate) fn add(&mut self, what: &str, offered: Option<f64>, series: &[Series]) {
        println!("{what}{}", offered.map_or(String::new(), |rate| format!(", {rate:.0}/s offered")));
        for figure in Figure::all(what, offered, series) {
            println!("{figure}");
            self.figures.push(figure);
        }
    }

    /// Adds what the processes used in one second without a message.
    pub(crate) fn add_idle(&mut self, what: &str, costs: Vec<Cost>) {
        let idle = Series::system("idle", vec![Round::new(0.0, costs)]);
        for figure in Figure::all(what, None, &[idle]) {
            let figure = Figure { rate: None, ..figure };
            println!("{what}\n{figure}");
            self.figures.push(figure);
        }
    }
}

impl Figure {
    /// Summarizes each of these series, which were measured in turns.
    pub(crate) fn all(what: &str, offered: Option<f64>, series: &[Series]) -> Vec<Figure> {
        series.iter().map(|side| Figure::new(what, offered, side, series)).collect()
    }

    fn new(what: &str, offered: Option<f64>, side: &Series, series: &[Series]) -> Figure {
        let limits = series.iter().filter(|limit| limit.is_limit && !side.is_limit);
        let compared = |round: &Round| match offered {
            Some(_) => round.latencies.value_at_quantile(0.99) as f64,
            None => round.rate,
        };
        let ratio = |limit: &Series| Ratio { limit: limit.side.clone(), ratio: side.ratio(limit, compared) };
        let measured = side.rounds.iter().all(|round| !round.latencies.is_empty());
        let quantile = |quantile: f64| Quantile {
            quantile,
            micros: side.spread(|round| round.latencies.value_at_quantile(quantile) as f64),
        };
        let processes = side.rounds.first().map_or(0, |round| round.costs.len());
        let cost = |at: usize| ProcessCost {
            process: side.rounds[0].costs[at].process.clone(),
            cpu_micros: side.spread(|round| round.costs[at].cpu),
            wakeups: side.spread(|round| round.costs[at].wakeups),
            memory_bytes: side.spread(|round| round.costs[at].memory),
        };
        Figure {
            what: what.to_owned(),
            side: side.side.clone(),
            offered,
            rate: Some(side.spread(|round| round.rate)),
            ratios: limits.map(ratio).collect(),
            latencies: if measured { QUANTILES.map(quantile).to_vec() } else { Vec::new() },
            costs: (0..processes).map(cost).collect(),
        }
    }
}

impl Figure {
    /// Returns what the ratios compare.
    pub(crate) fn compared(&self) -> &'static str {
        if self.offered.is_some() { "p99" } else { "rate" }
    }
}

impl Display for Figure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<String> = self.rate.iter().map(|rate| format!("{}/s", rate.show(whole))).collect();
        let ratio = |of: &Ratio| format!("{} {} of: {}", self.compared(), of.ratio.show(hundredths), of.limit);
        lines.extend(self.ratios.iter().map(ratio));
        if !self.latencies.is_empty() {
            let latencies: Vec<String> = self.latencies.iter().map(ToString::to_string).collect();
            lines.push(latencies.join(", "));
        }
        lines.extend(self.costs.iter().map(|cost| cost.show(self.rate.is_none())));
        write!(f, "  {:<32} {}", self.side, lines.join(&format!("\n  {:32} ", "")))
    }
}

impl Display for Quantile {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.micros.show(micros))
    }
}

impl Quantile {
    /// Returns `p99.9`, or `max` for the last one.
    pub(crate) fn name(&self) -> String {
        if self.quantile < 1.0 { format!("p{}", (self.quantile * 1000.0).round() / 10.0) } else { "max".to_owned() }
    }
}

impl ProcessCost {
    fn show(&self, idle: bool) -> String {
        let (cpu, wakeups) = (self.cpu(idle), self.wakeups.show(hundredths));
        let memory = self.memory_bytes.median / 1e6;
        let (unit, per) = if idle { ("% of a core", "second") } else { ("µs of CPU", "message") };
        format!("{}: {cpu} {unit}, {wakeups} wake-ups a {per}, {memory:.0} MB", self.process)
    }

    /// Returns the CPU time for one message in microseconds or, of an idle process, in percent of a core.
    pub(crate) fn cpu(&self, idle: bool) -> String {
        if idle { self.cpu_micros.show(|micros| hundredths(percent(micros))) } else { self.cpu_micros.show(tenths) }
    }
}

/// Converts the microseconds that were used in one second.
pub(crate) fn percent(micros: f64) -> f64 {
    micros / 1e4
}

fn tenths(value: f64) -> String {
    format!("{value:.1}")
}

pub(crate) fn hundredths(value: f64) -> String {
    format!("{value:.2}")
}

pub(crate) fn whole(value: f64) -> String {
    format!("{value:.0}")
}

/// Formats microseconds.
pub(crate) fn micros(value: f64) -> String {
    format!("{:.1?}", Duration::from_secs_f64(value / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callers::histogram;

    fn series(side: &str, is_limit: bool, rates: &[f64]) -> Series {
        let round = |rate: &f64| {
            let mut latencies = histogram();
            latencies.saturating_record(1000);
            let cost = Cost { process: "p".to_owned(), cpu: 1.5, wakeups: 0.25, memory: 2e6 };
            Round { rate: *rate, latencies, costs: vec![cost] }
        };
        Series { side: side.to_owned(), is_limit, rounds: rates.iter().map(round).collect() }
    }

    #[test]
    fn system_is_compared_with_each_limit_and_limits_are_not() {
        let all = [series("a", true, &[10.0, 20.0]), series("b", true, &[4.0, 4.0]), series("s", false, &[5.0, 5.0])];
        let figures = Figure::all("x", None, &all);
        assert!(figures[0].ratios.is_empty() && figures[1].ratios.is_empty());
        let ratios: Vec<_> = figures[2].ratios.iter().map(|to| (to.limit.as_str(), to.ratio.median)).collect();
        assert_eq!(ratios, [("a", 0.375), ("b", 1.25)]);
        let shown = figures[2].to_string();
        assert!(
            shown.contains("rate 0.38 (0.25 to 0.50) of: a") && shown.contains("p99.9 1.0ms, max 1.0ms"),
            "{shown}"
        );
        let figures = Figure::all("x", Some(5.0), &all);
        assert_eq!((figures[2].compared(), figures[2].ratios[0].ratio.median), ("p99", 1.0));
        assert!(shown.contains("p: 1.5 µs of CPU, 0.25 wake-ups a message, 2 MB"), "{shown}");
    }
}
