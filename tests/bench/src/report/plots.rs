//! The plots of the page, as SVG.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Error;

const SIZE: (u32, u32) = (600, 280);
const FONT: (&str, u32) = ("sans-serif", 13);
const TITLE: (&str, u32) = ("sans-serif", 15);

pub(super) type Point = (f64, f64);

/// Lines over a range of numbers.
pub(super) struct Lines<'a> {
    pub(super) title: &'a str,
    /// Whether the scale of the values is logarithmic, for values above 0.
    pub(super) log: bool,
    pub(super) x_label: fn(f64) -> String,
    /// The points of each line, with its name.
    pub(super) lines: Vec<(String, Vec<Point>)>,
}

/// Bars, each of the parts that it sums up.
pub(super) struct Bars<'a> {
    pub(super) title: &'a str,
    /// The parts of each bar, with their names.
    pub(super) bars: Vec<(String, Vec<(String, f64)>)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Lines<'_> {
    pub(super) fn draw(&self) -> Result<String, Error> {
        svg(SIZE, |area| {
            let height = |value: f64| if self.log { value.max(1e-6).log10() } else { value };
            let value = |height: f64| if self.log { 10_f64.powf(height) } else { height };
            let points = || self.lines.iter().flat_map(|(_, points)| points);
            let (left, right) = range(points().map(|(x, _)| *x));
            let (low, high) = range(points().map(|(_, y)| height(*y)));
            let low = if self.log { low.floor() } else { 0.0 };
            let mut chart = ChartBuilder::on(area)
                .caption(self.title, TITLE)
                .margin(8)
                .x_label_area_size(24)
                .y_label_area_size(56)
                .build_cartesian_2d(left..right, low..high)?;
            chart
                .configure_mesh()
                .label_style(FONT)
                .light_line_style(TRANSPARENT)
                .x_label_formatter(&|x| (self.x_label)(*x))
                .y_label_formatter(&|y| short(value(*y)))
                .draw()?;
            for (index, (name, points)) in self.lines.iter().enumerate() {
                let color = Palette99::pick(index).stroke_width(2);
                let points = points.iter().map(|(x, y)| (*x, height(*y)));
                let line = chart.draw_series(LineSeries::new(points, color).point_size(3))?;
                line.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color));
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .label_font(FONT)
                .background_style(WHITE.mix(0.8))
                .draw()?;
            Ok(())
        })
    }
}

impl Bars<'_> {
    pub(super) fn draw(&self) -> Result<String, Error> {
        let count = self.bars.len();
        let rows = u32::try_from(count)?;
        svg((SIZE.0, 84 + 26 * rows), |area| {
            let sums = self.bars.iter().map(|(_, parts)| parts.iter().map(|(_, value)| value).sum::<f64>());
            let (_, right) = range(sums);
            let mut chart = ChartBuilder::on(area)
                .caption(self.title, TITLE)
                .margin(8)
                .x_label_area_size(24)
                .build_cartesian_2d(0.0..right, 0.0..count as f64 + 1.0)?;
            chart
                .configure_mesh()
                .disable_y_mesh()
                .disable_y_axis()
                .label_style(FONT)
                .light_line_style(TRANSPARENT)
                .draw()?;
            let mut names: Vec<&str> = Vec::new();
            for (row, (bar, parts)) in self.bars.iter().rev().enumerate() {
                let (bottom, top) = (row as f64 + 0.15, row as f64 + 0.85);
                let mut start = 0.0;
                for (name, value) in parts {
                    let index = names.iter().position(|known| known == name).unwrap_or(names.len());
                    let color = Palette99::pick(index).filled();
                    let part = Rectangle::new([(start, bottom), (start + value, top)], color);
                    let drawn = chart.draw_series([part])?;
                    if index == names.len() {
                        names.push(name);
                        drawn.label(name).legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color));
                    }
                    start += value;
                }
                let label = format!("{bar}: {}", short(start));
                chart.draw_series([Text::new(label, (right * 0.01, top - 0.12), FONT)])?;
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .label_font(FONT)
                .background_style(WHITE.mix(0.8))
                .draw()?;
            Ok(())
        })
    }
}

fn svg(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Result<(), Error>) -> Result<String, Error> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        draw(&area)?;
        area.present()?;
    }
    Ok(svg)
}

/// Returns the lowest and the highest value, with some space above; they differ even if there is one value.
fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return (0.0, 1.0);
    }
    let space = if high > low { (high - low) * 0.1 } else { high.abs().max(1.0) * 0.1 };
    (low, high + space)
}

/// Formats a value for the labels, with as many digits as its size needs.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        ..0.1 => format!("{value:.3}"),
        ..1.0 => format!("{value:.2}"),
        ..10.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
