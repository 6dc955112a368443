//! Measures limits and systems in turns, so that what changes on the machine meanwhile reaches both, and keeps the
//! median and the spread of the rounds.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::Error;
use super::callers::histogram;
use super::cost::Cost;

/// What one round measured.
pub(crate) struct Round {
    /// Messages in one second.
    pub(crate) rate: f64,
    /// Microseconds of each call; empty if calls are not measured.
    pub(crate) latencies: Histogram<u64>,
    pub(crate) costs: Vec<Cost>,
}

impl Round {
    /// Returns a round without latencies.
    pub(crate) fn new(rate: f64, costs: Vec<Cost>) -> Round {
        Round { rate, latencies: histogram(), costs }
    }
}

/// One of the things to measure in turns.
pub(crate) struct Side<W> {
    name: String,
    is_limit: bool,
    way: W,
}

impl<W> Side<W> {
    /// The systems are compared with it.
    pub(crate) fn limit(name: impl Into<String>, way: W) -> Side<W> {
        Side { name: name.into(), is_limit: true, way }
    }

    pub(crate) fn system(name: impl Into<String>, way: W) -> Side<W> {
        Side { name: name.into(), is_limit: false, way }
    }
}

/// The rounds of one side.
pub(crate) struct Series {
    pub(crate) side: String,
    pub(crate) is_limit: bool,
    pub(crate) rounds: Vec<Round>,
}

impl Series {
    /// Returns the series of a system.
    pub(crate) fn system(side: &str, rounds: Vec<Round>) -> Series {
        Series { side: side.to_owned(), is_limit: false, rounds }
    }

    /// Returns the median and the spread of a value of each round.
    pub(crate) fn spread(&self, value: impl Fn(&Round) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(value))
    }

    /// Returns the ratio of a value to the limit's, round by round.
    pub(crate) fn ratio(&self, limit: &Series, value: impl Fn(&Round) -> f64) -> Spread {
        Spread::of(self.rounds.iter().zip(&limit.rounds).map(|(own, limit)| value(own) / value(limit)))
    }
}

/// Measures every side once as a warm-up, which opens connections and fills caches, and then all sides in turns.
pub(crate) async fn measure<W>(
    rounds: usize,
    sides: &[Side<W>],
    mut run: impl AsyncFnMut(&W) -> Result<Round, Error>,
) -> Result<Vec<Series>, Error> {
    let series = |side: &Side<W>| Series { side: side.name.clone(), is_limit: side.is_limit, rounds: Vec::new() };
    let mut all: Vec<Series> = sides.iter().map(series).collect();
    for round in 0..=rounds {
        for (side, series) in sides.iter().zip(&mut all) {
            let measured = run(&side.way).await?;
            if round > 0 {
                series.rounds.push(measured);
            }
        }
    }
    Ok(all)
}

/// The median of the rounds, with the lowest and the highest value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Returns zeroes if there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Spread { median: 0.0, min: 0.0, max: 0.0 };
        };
        let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
        Spread { median, min, max }
    }

    /// Returns the median and, if there are several rounds, the spread, each formatted by `unit`.
    pub(crate) fn show(&self, unit: impl Fn(f64) -> String) -> String {
        let median = unit(self.median);
        if self.min.total_cmp(&self.max).is_eq() {
            return median;
        }
        format!("{median} ({} to {})", unit(self.min), unit(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn warm_up_is_dropped_and_sides_take_turns() {
        let mut order = Vec::new();
        let sides = [Side::limit("limit", 10.0), Side::system("system", 5.0)];
        let series = measure(2, &sides, async |rate| {
            order.push(*rate);
            Ok(Round::new(rate * order.len() as f64, Vec::new()))
        });
        let series = series.await.expect("no round fails");
        assert_eq!(order, [10.0, 5.0, 10.0, 5.0, 10.0, 5.0]);
        let rates = |series: &Series| series.rounds.iter().map(|round| round.rate).collect::<Vec<_>>();
        assert_eq!((rates(&series[0]), rates(&series[1])), (vec![30.0, 50.0], vec![20.0, 30.0]));
        let ratio = series[1].ratio(&series[0], |round| round.rate);
        assert!((ratio.min - 0.6).abs() < 1e-9 && (ratio.max - 2.0 / 3.0).abs() < 1e-9, "{ratio:?}");
    }

    #[test]
    fn median_is_the_middle_of_the_sorted_values() {
        assert_eq!(Spread::of([9.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]), Spread { median: 3.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of([]).median, 0.0);
        let whole = |value: f64| format!("{value:.0}");
        assert_eq!([Spread::of([9.0, 1.0]), Spread::of([7.0])].map(|spread| spread.show(whole)), ["5 (1 to 9)", "7"]);
    }
}
