//! `msg-bench report`: one page with the figures of several runs, as tables and plots.

mod plots;

use std::path::PathBuf;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::plots::{Bars, Lines, Point};
use super::Error;
use super::figure::{Figure, hundredths, micros, percent, whole};
use super::results::{self, Run};

const STYLE: &str = include_str!("style.css");

#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    /// Files that `--json` has written
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Write the page to this file
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
}

/// Writes the page, and returns the runs of all files.
pub(crate) fn run(options: &Report) -> Result<Vec<Run>, Error> {
    let mut runs = Vec::new();
    for file in &options.files {
        runs.extend(results::load(file)?);
    }
    results::write(&options.html, &page(&runs)?.into_string())?;
    Ok(runs)
}

fn page(runs: &[Run]) -> Result<Markup, Error> {
    let sections = runs.iter().map(section).collect::<Result<Vec<_>, _>>()?;
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { "msg-bench" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "msg-bench" }
                p {
                    "A figure is the median of the rounds, with the lowest and the highest value. Limits (in italics) and "
                    "systems were measured in turns, and a ratio is the median of the rounds' ratios. CPU time and "
                    "wake-ups are for one message. While nothing is sent they are for one second."
                }
                @for section in sections { (section) }
            }
        }
    })
}

fn section(run: &Run) -> Result<Markup, Error> {
    // The figures of one measurement follow each other.
    let groups: Vec<&[Figure]> = run.figures.chunk_by(|one, next| one.what == next.what).collect();
    let groups = groups.into_iter().map(group).collect::<Result<Vec<_>, _>>()?;
    Ok(html! {
        h2 { "msg-bench " (run.command) }
        p.on {
            (run.ended)
            @for (name, value) in &run.on { " · " (name) " " (value) }
        }
        @for group in groups { (group) }
    })
}

fn group(figures: &[Figure]) -> Result<Markup, Error> {
    let mut plots = Vec::new();
    if figures.iter().any(|figure| figure.offered != figures[0].offered) {
        plots.push(by_load("messages/s against offered messages/s", false, figures, |figure| {
            figure.rate.map(|rate| rate.median)
        })?);
        plots.push(by_load("p99 in ms against offered messages/s", true, figures, |figure| quantile(figure, 0.99))?);
    }
    for same in figures.chunk_by(|one, next| one.offered == next.offered) {
        if same.iter().any(|figure| !figure.latencies.is_empty()) {
            plots.push(percentiles(same)?);
        }
    }
    if figures.iter().any(|figure| !figure.costs.is_empty()) {
        plots.push(match figures[0].rate {
            Some(_) => costs("CPU time a message, µs", figures, |cost| cost.cpu_micros.median)?,
            None => costs("CPU, % of a core", figures, |cost| percent(cost.cpu_micros.median))?,
        });
        plots.push(costs("memory, MB", figures, |cost| cost.memory_bytes.median / 1e6)?);
    }
    Ok(html! {
        h3 { (figures[0].what) }
        (table(figures))
        div.plots { @for plot in plots { (PreEscaped(plot)) } }
    })
}

fn quantile(figure: &Figure, quantile: f64) -> Option<f64> {
    let found = figure.latencies.iter().find(|one| one.quantile.total_cmp(&quantile).is_eq());
    found.map(|one| one.micros.median / 1000.0)
}

/// Plots a value of each side against the offered load.
fn by_load(
    title: &str,
    log: bool,
    figures: &[Figure],
    value: impl Fn(&Figure) -> Option<f64>,
) -> Result<String, Error> {
    let mut sides: Vec<&str> = figures.iter().map(|figure| figure.side.as_str()).collect();
    sides.sort_unstable();
    sides.dedup();
    let line = |side: &str| -> Vec<Point> {
        let own = figures.iter().filter(|figure| figure.side == side);
        own.filter_map(|figure| Some((figure.offered?, value(figure)?))).collect()
    };
    let lines = sides.into_iter().map(|side| (side.to_owned(), line(side))).collect();
    Lines { title, log, x_label: whole, lines }.draw()
}

/// Plots the latencies of each side by percentile, with as much space for 90 to 99 % as for 99 to 99.9 %.
fn percentiles(figures: &[Figure]) -> Result<String, Error> {
    let line = |figure: &Figure| {
        let points = figure.latencies.iter().filter(|latency| latency.quantile < 1.0);
        let points = points.map(|latency| (-(1.0 - latency.quantile).log10(), latency.micros.median / 1000.0));
        (figure.side.clone(), points.collect())
    };
    let offered = figures[0].offered.map_or(String::new(), |rate| format!(", {rate:.0} messages/s offered"));
    let lines = figures.iter().filter(|figure| !figure.latencies.is_empty()).map(line).collect();
    let label = |x: f64| format!("{} %", ((1.0 - 10_f64.powf(-x)) * 1e4).round() / 100.0);
    let title = format!("latency in ms by percentile{offered}");
    Lines { title: &title, log: true, x_label: label, lines }.draw()
}

fn costs(title: &str, figures: &[Figure], value: fn(&super::figure::ProcessCost) -> f64) -> Result<String, Error> {
    let bar = |figure: &Figure| {
        let offered = figure.offered.map_or(String::new(), |rate| format!(", {rate:.0}/s"));
        let parts = figure.costs.iter().map(|cost| (cost.process.clone(), value(cost)));
        (format!("{}{offered}", figure.side), parts.collect())
    };
    Bars { title, bars: figures.iter().map(bar).collect() }.draw()
}

fn table(figures: &[Figure]) -> Markup {
    let has_offered = figures.iter().any(|figure| figure.offered.is_some());
    let has_latencies = figures.iter().any(|figure| !figure.latencies.is_empty());
    let limits = figures.iter().max_by_key(|figure| figure.ratios.len()).map_or(&[][..], |figure| &figure.ratios);
    let names = figures.iter().find(|figure| !figure.latencies.is_empty()).map_or(&[][..], |figure| &figure.latencies);
    let is_limit = |figure: &Figure| limits.iter().any(|limit| limit.limit == figure.side);
    let idle = figures[0].rate.is_none();
    let costs = match idle {
        true => "CPU % of a core, wake-ups a second, MB",
        false => "CPU µs a message, wake-ups a message, MB",
    };
    html! {
        div.wide { table {
            thead { tr {
                th {}
                @if has_offered { th { "offered/s" } }
                th { "messages/s" }
                @for limit in limits { th { (figures[0].compared()) " of: " (limit.limit) } }
                @if has_latencies { @for latency in names { th { (latency.name()) } } }
                th { (costs) }
            } }
            tbody { @for figure in figures { tr.limit[is_limit(figure)] {
                th { (figure.side) }
                @if has_offered { td { (figure.offered.map_or("-".to_owned(), whole)) } }
                td { (figure.rate.map_or("-".to_owned(), |rate| rate.show(whole))) }
                @for limit in limits {
                    @let own = figure.ratios.iter().find(|own| own.limit == limit.limit);
                    td { (own.map_or("-".to_owned(), |own| own.ratio.show(hundredths))) }
                }
                @if has_latencies { @for latency in names {
                    @let own = figure.latencies.iter().find(|own| own.quantile.total_cmp(&latency.quantile).is_eq());
                    td { (own.map_or("-".to_owned(), |own| own.micros.show(micros))) }
                } }
                td.text { @for cost in &figure.costs {
                    div {
                        (cost.process) ": " (cost.cpu(idle)) ", "
                        (cost.wakeups.show(hundredths)) ", " (whole(cost.memory_bytes.median / 1e6))
                    }
                } }
            } } }
        } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::{ProcessCost, Quantile, Ratio};
    use crate::rounds::Spread;

    fn figure(side: &str, offered: Option<f64>) -> Figure {
        let spread = Spread { median: 2000.0, min: 1000.0, max: 3000.0 };
        let quantile = |quantile| Quantile { quantile, micros: spread };
        Figure {
            what: "SendMsg".to_owned(),
            side: side.to_owned(),
            offered,
            rate: Some(spread),
            ratios: vec![Ratio { limit: "limit <a>".to_owned(), ratio: spread }],
            latencies: [0.5, 0.9, 0.99, 0.999, 1.0].map(quantile).to_vec(),
            costs: vec![ProcessCost {
                process: "Kafka".to_owned(),
                cpu_micros: spread,
                wakeups: spread,
                memory_bytes: spread,
            }],
        }
    }

    #[test]
    fn page_has_tables_and_plots_and_no_scripts() {
        let figures = vec![
            figure("limit <a>", Some(100.0)),
            figure("gateway", Some(100.0)),
            figure("limit <a>", Some(200.0)),
            figure("gateway", Some(200.0)),
        ];
        let run = Run { command: "latency".to_owned(), ended: String::new(), on: Vec::new(), figures };
        let html = page(&[run]).expect("drawn").into_string();
        // Load, p99, the percentiles of two rates, CPU and memory.
        assert_eq!(html.matches("<svg").count(), 6, "{html}");
        assert!(html.contains("2000 (1000 to 3000)") && html.contains("2.0ms (1.0ms to 3.0ms)"), "{html}");
        assert!(html.contains("limit &lt;a&gt;") && !html.contains("<a>") && !html.contains("<script"), "{html}");
    }

    #[test]
    fn page_of_an_idle_run_has_costs_for_a_second() {
        let idle = Figure { rate: None, ratios: Vec::new(), latencies: Vec::new(), ..figure("idle", None) };
        let run = Run { command: "idle".to_owned(), ended: String::new(), on: Vec::new(), figures: vec![idle] };
        let html = page(&[run]).expect("drawn").into_string();
        assert!(html.contains("CPU, % of a core") && html.matches("<svg").count() == 2, "{html}");
    }
}
