//! Owns the page: one file without external parts, light or dark as the reader's browser is set.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::plots::{Axis, Line, Plot, Scale};
use super::recovery::{Drained, Recovery, Stall};
use super::summary::{accepted_per_second, stall};
use super::timeline::{Latency, Timeline};
use super::{Report, Run};
use crate::text::{self, clock, duration, grouped, latency, rough};

const STYLE: &str = include_str!("style.css");

pub(super) fn page(report: &Report<'_>) -> Markup {
    let Run { title, command, seed, version, revision } = report.run;
    let verdict = if report.holds { "HOLDS" } else { "BROKEN" };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { (verdict) ": " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    span.verdict.bad[!report.holds] { (verdict) }
                    h1 { (title) }
                }
                p.run { "version " (version) " · revision " code { (revision) } " · seed " (seed) " · load " (clock(report.totals.seconds)) }
                p.command { span.about { "To repeat the run: " } code { (command) } }
                (tiles(report))
                h2 { "What must hold" }
                (findings(report))
                @if !report.faults.is_empty() {
                    h2 { "What each fault did" }
                    (faults(&report.faults))
                }
                h2 { "Over time" }
                @for plot in plots(report) { (plot) }
                h2 { "Outcomes reported to callers" }
                (sends(report))
            }
        }
    }
}

fn tiles(report: &Report<'_>) -> Markup {
    let totals = &report.totals;
    let [accepted, not_sent, unknown] = totals.outcomes().map(number);
    let rate = accepted_per_second(report).map_or("-".to_owned(), rough);
    let tiles = [
        ("messages", number(totals.messages)),
        ("rows", number(totals.rows)),
        ("dead letters", number(totals.dead_letters)),
        ("accepted", accepted),
        ("accepted/s", rate),
        ("not sent", not_sent),
        ("unknown", unknown),
        ("pages read", number(totals.pages)),
        ("watch events", number(totals.watch_events)),
        ("failed reads", number(totals.failed_reads)),
        ("faults", number(totals.faults)),
        ("SIGKILLs", number(totals.kills as usize)),
    ];
    html! {
        div.tiles {
            @for (name, value) in tiles { div { b { (value) } span { (name) } } }
        }
    }
}

fn findings(report: &Report<'_>) -> Markup {
    html! {
        div.wide { table {
            thead { tr { th {} th.text { "promise" } th { "checked" } th { "broken" } th.text { "verdict" } } }
            tbody {
                @for finding in &report.findings {
                    tr.broken[!finding.holds()] {
                        th scope="row" { (finding.promise) }
                        td.text {
                            (finding.what)
                            @if !finding.note.is_empty() { span.about { " " (finding.note) } }
                            @if !finding.examples.is_empty() {
                                ul { @for example in &finding.examples { li { code { (example) } } } }
                            }
                        }
                        td { (number(finding.checked)) }
                        td { (number(finding.broken)) }
                        td.text {
                            @if !finding.holds() { span.bad { "BROKEN" } }
                            @else if finding.checked == 0 { "no case" }
                            @else { span.good { "holds" } }
                        }
                    }
                }
            }
        } }
    }
}

fn faults(faults: &[Recovery]) -> Markup {
    let stalls = || faults.iter().flat_map(|fault| [fault.no_accept, fault.no_row]).flatten();
    let longest = stalls().map(|stall| stall.seconds).fold(0.0, f64::max);
    html! {
        div.wide { table.faults {
            thead {
                tr {
                    th colspan="4" {}
                    th.group colspan="3" { "stalls, worst partition" }
                    th.group colspan="3" { "failed during the fault" }
                    th.group colspan="3" { "accepted/s" }
                    th.group colspan="2" { "SendMsg" }
                    th.group colspan="3" { "backlog" }
                }
                tr {
                    th { "#" } th.text { "fault" } th { "at" } th { "lasted" }
                    th.group { "no accept" } th { "no row" } th { "back after" }
                    th.group { "not sent" } th { "unknown" } th { "reads" }
                    th.group { "before" } th { "during" } th { "after" }
                    th.group { "p99" } th { "max" }
                    th.group { "peak" } th { "drained" } th { "× rate" }
                }
            }
            tbody { @for fault in faults { (row(fault, longest)) } }
        } }
        (meaning())
    }
}

fn row(fault: &Recovery, longest: f64) -> Markup {
    let reasons = fault.errors.reasons.iter().map(|(reason, count)| format!("{reason}: {count}"));
    let reasons = reasons.collect::<Vec<_>>().join("\n");
    let errors = &fault.errors;
    let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), rough);
    let called = |of: fn(Latency) -> f64| fault.latency.map_or("-".to_owned(), |all| latency(of(all)));
    let (drained, times) = match fault.backlog.drained {
        Drained::None => ("none".to_owned(), None),
        Drained::No => ("not yet".to_owned(), None),
        Drained::Yes { after, times } => (duration(after), times),
    };
    html! {
        tr id={ "fault-" (fault.number) } {
            th scope="row" { (fault.number) }
            td.text { b { (fault.name) } span.target { (fault.target) } }
            td { (clock(fault.began)) }
            td { (duration(fault.healed - fault.began)) }
            (bar(fault.no_accept, longest, "group"))
            (bar(fault.no_row, longest, ""))
            td.bad[fault.back_after.is_none() && fault.no_accept.is_some()] { (fault.back_after.map_or("-".to_owned(), duration)) }
            td.group title=(reasons) { (number(errors.not_sent)) }
            td title=(reasons) { (number(errors.unknown)) }
            td { (number(errors.failed_reads)) }
            td.group { (rate(fault.accepted.before)) }
            td { (rate(fault.accepted.during)) }
            td { (rate(fault.accepted.after)) }
            td.group { (called(|all| all.p99)) }
            td { (called(|all| all.max)) }
            td.group { (fault.backlog.peak.map_or("-".to_owned(), |peak| grouped(peak.unsigned_abs()))) }
            td { (drained) }
            td { (times.map_or("-".to_owned(), |times| format!("{times:.1}"))) }
        }
    }
}

/// Renders a stall, with a bar whose length is relative to the longest stall.
fn bar(of: Option<Stall>, longest: f64, class: &str) -> Markup {
    let Some(known) = of else { return html! { td class=(class) { "-" } } };
    let share = 100.0 * known.seconds / longest.max(f64::MIN_POSITIVE);
    let about = format!("partition {}; the same value before the fault: {}", known.partition, duration(known.before));
    html! {
        td class={ "bar " (class) } style={ "--share:" (format!("{share:.0}")) "%" } title=(about) { (stall(of)) }
    }
}

fn meaning() -> Markup {
    html! {
        details {
            summary { "What the columns mean" }
            dl {
                dt { "window" } dd { "From the start of a fault until 30 s after its end, or until the next fault starts or the load ends, if that is sooner. Only partitions with an accepted message in the 10 s before the fault count." }
                dt { "lasted" } dd { "From the start of the fault until it was undone and all processes ran again. In the plots, the fault was in force during the darker part." }
                dt { "no accept, no row" } dd { "The longest time in the window in which one partition had no accepted message, or no stored row: the worst partition. ≥: it lasted until the end of the window. The tooltip shows the partition, and the same value before the fault." }
                dt { "back after" } dd { "From the end of the fault until every partition has had an accepted message and a row; - if the window ended before." }
                dt { "failed during the fault" } dd { "Attempts that were reported as not sent or as unknown between the start and the end of the fault (the tooltip shows the reasons), and reads that failed." }
                dt { "accepted/s" } dd { "Attempts accepted a second: in the 10 s before the fault, from its start to its end, and in the 10 s after, within the window. If faults follow each other closely, the time before overlaps the previous fault." }
                dt { "SendMsg" } dd { "Latency of accepted calls without wait_for: STORED that were in flight during the fault." }
                dt { "backlog" } dd { "The highest lag in the window; the time from the end of the fault until the lag was no more than twice the highest lag before (or a second's worth of messages, if that is more), to about a second; and the rows stored in that time, as a multiple of the messages accepted." }
            }
        }
    }
}

fn plots(report: &Report<'_>) -> Vec<Markup> {
    let Timeline { accepted, rows, not_sent, unknown, failed_reads, unary, stored, lag, rss, .. } = &report.timeline;
    let axis =
        Axis { step_seconds: report.timeline.step_seconds, seconds: report.timeline.seconds(), faults: &report.faults };
    let rates = |name, rates: &[f64]| Line { name, values: rates.iter().copied().map(Some).collect() };
    let memory = |ours: bool| {
        let of_kind = rss.iter().filter(move |(process, _)| is_ours(process) == ours);
        of_kind.map(|(name, bytes)| Line {
            name,
            values: bytes.iter().map(|bytes| Some((*bytes)? as f64 / f64::from(1 << 20))).collect(),
        })
    };
    let all = [
        Plot {
            title: "Throughput",
            about: "attempts accepted and rows stored a second",
            scale: Scale::Linear,
            unit: rough,
            lines: vec![rates("accepted", accepted), rates("rows", rows)],
        },
        Plot {
            title: "Latency of SendMsg",
            about: "accepted calls, by the time of the response",
            scale: Scale::Log,
            unit: text::latency_label,
            lines: latencies(unary),
        },
        Plot {
            title: "Latency of SendMsg, STORED",
            about: "until the message is stored",
            scale: Scale::Log,
            unit: text::latency_label,
            lines: latencies(stored),
        },
        Plot {
            title: "Lag",
            about: "records in Kafka that are not completed",
            scale: Scale::Linear,
            unit: rough,
            lines: vec![Line { name: "records", values: lag.iter().map(|lag| Some((*lag)? as f64)).collect() }],
        },
        Plot {
            title: "Errors",
            about: "per second",
            scale: Scale::Linear,
            unit: rough,
            lines: vec![rates("not sent", not_sent), rates("unknown", unknown), rates("failed reads", failed_reads)],
        },
        Plot {
            title: "Memory of the two services",
            about: "resident",
            scale: Scale::Linear,
            unit: text::mib,
            lines: memory(true).collect(),
        },
        Plot {
            title: "Memory of Kafka, PostgreSQL and the load",
            about: "resident",
            scale: Scale::Linear,
            unit: text::mib,
            lines: memory(false).collect(),
        },
    ];
    all.iter().map(|plot| axis.plot(plot)).collect()
}

fn latencies(all: &[Option<Latency>]) -> Vec<Line<'static>> {
    let line = |name, of: fn(Latency) -> f64| Line { name, values: all.iter().map(|some| some.map(of)).collect() };
    vec![line("p50", |all| all.p50), line("p99", |all| all.p99), line("max", |all| all.max)]
}

/// Whether the process is a gateway or a transfer.
fn is_ours(process: &str) -> bool {
    process.starts_with("gateway") || process.starts_with("transfer")
}

fn sends(report: &Report<'_>) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th.text { "attempts" } th { "all" } th { "accepted" } th { "stored" } th { "not stored yet" } th { "dead-lettered" }
                th { "not sent" } th { "unknown" }
            } }
            tbody {
                @for sends in &report.totals.ways {
                    tr {
                        th.text scope="row" { (sends.way) }
                        @for count in [sends.attempts, sends.accepted, sends.stored, sends.not_stored_yet, sends.dead_lettered, sends.not_sent, sends.unknown] {
                            td { (number(count)) }
                        }
                    }
                }
            }
        } }
        @if !report.totals.reasons.is_empty() {
            div.wide { table {
                thead { tr { th.text { "not sent or unknown, by reason" } th { "attempts" } } }
                tbody { @for (reason, count) in &report.totals.reasons { tr { td.text { code { (reason) } } td { (number(*count)) } } } }
            } }
        }
    }
}

fn number(count: usize) -> String {
    grouped(count as u64)
}
