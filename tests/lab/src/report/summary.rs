//! Owns the lines that the terminal shows at the end of a run.

use std::fmt;

use super::Report;
use super::recovery::{Recovery, Stall};
use crate::check::Finding;
use crate::text::{clock, duration, grouped};

/// The verdict, the promises, and a line for each fault.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) holds: bool,
    lines: Vec<String>,
}

impl Summary {
    pub(super) fn of(report: &Report<'_>) -> Summary {
        let mut lines = totals(report);
        lines.push(String::new());
        lines.extend(verdict(&report.findings));
        if !report.faults.is_empty() {
            lines.push(String::new());
            lines.extend(faults(&report.faults));
        }
        Summary { holds: report.holds, lines }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(formatter, "{line}")?;
        }
        formatter.write_str(if self.holds { "every promise holds" } else { "BROKEN" })
    }
}

fn totals(report: &Report<'_>) -> Vec<String> {
    let totals = &report.totals;
    let number = |count: usize| grouped(count as u64);
    let [accepted, not_sent, unknown] = totals.outcomes().map(number);
    let per_second = accepted_per_second(report).map_or(String::new(), |rate| format!(", {}/s", grouped(rate as u64)));
    vec![
        format!(
            "messages  {} in {}; {} rows, {} dead letters",
            number(totals.messages),
            clock(totals.seconds),
            number(totals.rows),
            number(totals.dead_letters)
        ),
        format!("attempts  {accepted} accepted{per_second}; {not_sent} not sent, {unknown} unknown"),
        format!(
            "reads     {} pages, {} watch events; {} failed",
            number(totals.pages),
            number(totals.watch_events),
            number(totals.failed_reads)
        ),
        format!("faults    {}; {} processes killed with SIGKILL", totals.faults, totals.kills),
    ]
}

/// The accepted attempts a second over the whole load.
pub(super) fn accepted_per_second(report: &Report<'_>) -> Option<f64> {
    let [accepted, ..] = report.totals.outcomes();
    (report.totals.seconds > 0.0).then(|| accepted as f64 / report.totals.seconds)
}

/// Returns a line for each finding, and the violations below it.
pub fn verdict(findings: &[&Finding]) -> Vec<String> {
    let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    let mut lines = vec![format!("{:<width$} {:>13}", "what must hold", "checked", width = width + 4)];
    for finding in findings {
        let result = match finding.broken {
            0 if finding.checked == 0 => "no case".to_owned(),
            0 => "holds".to_owned(),
            broken => format!("BROKEN: {}", grouped(broken as u64)),
        };
        let note = if finding.note.is_empty() { String::new() } else { format!(" ({})", finding.note) };
        let (promise, checked) = (finding.promise, grouped(finding.checked as u64));
        lines.push(format!("{promise:<3} {:<width$} {checked:>13}  {result}{note}", finding.what));
        lines.extend(finding.examples.iter().map(|example| format!("      e.g. {example}")));
    }
    lines
}

fn faults(faults: &[Recovery]) -> Vec<String> {
    let width = |of: fn(&Recovery) -> &str| faults.iter().map(|fault| of(fault).chars().count()).max().unwrap_or(0);
    let (name, target) = (width(|fault| &fault.name).max("fault".len()), width(|fault| &fault.target));
    let line = |number: &str, fault: &str, to: &str, [at, lasted, accept, row, back, not_sent, unknown]: [&str; 7]| {
        format!(
            "{number:>3} {fault:<name$} {to:<target$} {at:>7} {lasted:>7} {accept:>9} {row:>9} {back:>9} {not_sent:>9} {unknown:>9}"
        )
    };
    let head = ["at", "lasted", "no accept", "no row", "back", "not sent", "unknown"];
    let mut lines = vec![line("", "fault", "", head).trim_end().to_owned()];
    for fault in faults {
        let (at, lasted) = (clock(fault.began), duration(fault.healed - fault.began));
        let (accept, row) = (stall(fault.no_accept), stall(fault.no_row));
        let back = fault.back_after.map_or("-".to_owned(), duration);
        let errors = [fault.errors.not_sent, fault.errors.unknown].map(|count| grouped(count as u64));
        let figures = [&at, &lasted, &accept, &row, &back, &errors[0], &errors[1]].map(String::as_str);
        lines.push(line(&fault.number.to_string(), &fault.name, &fault.target, figures));
    }
    lines
}

/// Formats a stall, with ≥ if its end is unknown.
pub(super) fn stall(stall: Option<Stall>) -> String {
    match stall {
        Some(Stall { seconds, open: true, .. }) => format!("≥ {}", duration(seconds)),
        Some(Stall { seconds, .. }) => duration(seconds),
        None => "-".to_owned(),
    }
}
