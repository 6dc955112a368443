//! Owns the plots: lines over the time of the run, and the faults as numbered spans.

use maud::{Markup, html};

use super::recovery::Recovery;
use crate::text;

const WIDTH: f64 = 1180.0;
const HEIGHT: f64 = 230.0;
/// The edges of the lines' area: it is between the value labels on the left, the faults' numbers above and the times
/// below.
const LEFT: f64 = 66.0;
const RIGHT: f64 = WIDTH - 14.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = HEIGHT - 24.0;
/// Numbers that are closer than this are in two rows; a number that does not fit in either row is left out.
const NUMBER: f64 = 17.0;
/// The minimum distance between two labels of the time.
const TIME: f64 = 80.0;
/// A line bridges up to this many steps without a value: samples are about a second apart, and steps are too.
const BRIDGED: usize = 2;
const COLOURS: usize = 10;

pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    /// A sentence about the lines.
    pub(crate) about: &'a str,
    pub(crate) scale: Scale,
    /// Formats a value for the labels of the axis.
    pub(crate) unit: fn(f64) -> String,
    pub(crate) lines: Vec<Line<'a>>,
}

/// How a value becomes a height.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// The scale is logarithmic, for values above 0.
    Log,
}

/// One line, with a value for each step.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) values: Vec<Option<f64>>,
}

/// The time axis that all plots share, and the faults on it.
pub(crate) struct Axis<'a> {
    pub(crate) step_seconds: f64,
    pub(crate) seconds: f64,
    pub(crate) faults: &'a [Recovery],
}

impl Axis<'_> {
    /// Renders the plot with its legend, or a sentence if there are no values.
    pub(crate) fn plot(&self, plot: &Plot<'_>) -> Markup {
        let shown = plot.lines.iter().any(|line| line.values.iter().any(Option::is_some));
        html! {
            figure {
                figcaption {
                    strong { (plot.title) }
                    @if shown {
                        @for (index, line) in plot.lines.iter().enumerate() {
                            span.key {
                                svg width="16" height="8" { path class=(colour(index)) d="M0 4H16" {} }
                                (line.name)
                            }
                        }
                    }
                    span.about { (plot.about) }
                }
                @if shown { (self.svg(plot)) } @else { p.about { "no values" } }
            }
        }
    }

    fn svg(&self, plot: &Plot<'_>) -> Markup {
        let ticks = plot.ticks();
        let (low, high) = (plot.scale.height(ticks[0]), plot.scale.height(ticks[ticks.len() - 1]));
        let y = |value| px(BOTTOM - (BOTTOM - TOP) * ((plot.scale.height(value) - low) / (high - low)).clamp(0.0, 1.0));
        html! {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(plot.title) {
                @for tick in &ticks {
                    path.grid d={ "M" (LEFT) " " (y(*tick)) "H" (RIGHT) } {}
                    text.label x=(LEFT - 8.0) y=(y(*tick)) dy=".35em" text-anchor="end" { ((plot.unit)(*tick)) }
                }
                @for time in self.times() {
                    path.grid d={ "M" (px(self.x(time))) " " (BOTTOM) "v5" } {}
                    text.label x=(px(self.x(time))) y=(BOTTOM + 18.0) text-anchor="middle" { (text::clock(time)) }
                }
                @for (index, line) in plot.lines.iter().enumerate() {
                    @for run in runs(&line.values) {
                        polyline class=(colour(index)) points=(self.points(&run, y)) {}
                    }
                }
                // Draw the faults over the lines, so that they get the mouse events.
                (self.spans())
            }
        }
    }

    /// Returns the path of a run. A run of a single step is a dot: a line without length and with round ends.
    fn points(&self, run: &[(usize, f64)], y: impl Fn(f64) -> String) -> String {
        let points = run.iter().map(|(step, value)| {
            let middle = (*step as f64 + 0.5) * self.step_seconds;
            format!("{},{}", px(self.x(middle)), y(*value))
        });
        let mut points: Vec<String> = points.collect();
        if let [point] = &points[..] {
            points.push(point.clone());
        }
        points.join(" ")
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (seconds / self.seconds).clamp(0.0, 1.0)
    }

    fn times(&self) -> Vec<f64> {
        let steps = [5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
        let most = (RIGHT - LEFT) / TIME;
        let step = steps.into_iter().find(|step| self.seconds / step <= most).unwrap_or(7200.0);
        (0..).map(|count| f64::from(count) * step).take_while(|at| *at <= self.seconds).collect()
    }

    fn spans(&self) -> Markup {
        let rect = |from: f64, to: f64| {
            let (from, to) = (self.x(from), self.x(to));
            html! { rect.span x=(px(from)) y=(TOP) width=(px((to - from).max(1.5))) height=(BOTTOM - TOP) {} }
        };
        let mut last = [f64::MIN; 2];
        html! {
            @for fault in self.faults {
                @let Recovery { number, name, target, .. } = fault;
                @let middle = f64::midpoint(self.x(fault.began), self.x(fault.healed));
                a href={ "#fault-" (number) } {
                    title { (number) " " (name) ": " (target) ", " (text::clock(fault.began)) " to " (text::clock(fault.healed)) }
                    (rect(fault.began, fault.healed))
                    (rect(fault.broken, fault.over))
                    @if let Some(row) = reserve_row(&mut last, middle) {
                        text.number x=(px(middle)) y=(TOP - 5.0 - 12.0 * row as f64) text-anchor="middle" { (number) }
                    }
                }
            }
        }
    }
}

impl Scale {
    fn height(self, value: f64) -> f64 {
        if self == Scale::Log { value.max(f64::MIN_POSITIVE).log10() } else { value }
    }
}

/// Returns the first row with space for a number, and reserves the space.
fn reserve_row(last: &mut [f64], middle: f64) -> Option<usize> {
    let row = last.iter().position(|last| middle - last >= NUMBER)?;
    last[row] = middle;
    Some(row)
}

/// Formats a length in the SVG's units.
fn px(length: f64) -> String {
    format!("{length:.1}")
}

fn colour(line: usize) -> String {
    format!("line c{}", line % COLOURS)
}

impl Plot<'_> {
    /// Returns the values with a label, from the bottom to the top of the plot.
    fn ticks(&self) -> Vec<f64> {
        let values = || self.lines.iter().flat_map(|line| line.values.iter().flatten().copied());
        let highest = values().fold(0.0, f64::max);
        match self.scale {
            Scale::Linear => {
                let step = 10_f64.powf((highest.max(4.0) / 4.0).log10().floor());
                let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * step);
                let step = steps.into_iter().find(|step| highest <= 4.0 * step).unwrap_or(step * 10.0);
                (0..=4).map(|count| f64::from(count) * step).take_while(|at| at - step < highest.max(step)).collect()
            }
            Scale::Log => {
                // At least one label, even if all values are 0.
                let highest = if highest > 0.0 { highest } else { 1.0 };
                let lowest = values().filter(|value| *value > 0.0).fold(highest, f64::min);
                let (low, high) = (lowest.log10().floor() as i32, highest.log10().ceil() as i32);
                (low..=high.max(low + 1)).map(|exponent| 10_f64.powi(exponent)).collect()
            }
        }
    }
}

/// Splits values into runs, wherever more than [`BRIDGED`] steps have no value.
fn runs(values: &[Option<f64>]) -> Vec<Vec<(usize, f64)>> {
    let mut runs: Vec<Vec<(usize, f64)>> = Vec::new();
    for (step, value) in values.iter().enumerate() {
        let Some(value) = *value else { continue };
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|(last, _)| step - last <= BRIDGED + 1) => run.push((step, value)),
            _ => runs.push(vec![(step, value)]),
        }
    }
    runs
}
