//! Owns the report of a run: as HTML and as text for people, and as JSON for programs.

mod html;
mod moments;
mod plots;
mod recovery;
mod summary;
#[cfg(test)]
mod tests;
mod timeline;
mod totals;

use std::io;
use std::path::Path;

use serde::Serialize;

use super::check::Finding;
use super::evidence::Evidence;
use super::history::Book;
use moments::Moments;
use recovery::Recovery;
pub(crate) use summary::Summary;
pub use summary::verdict;
use timeline::Timeline;
use totals::Totals;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// The plan, in a few words.
    pub(crate) title: String,
    /// The command line that repeats the run, with its seed.
    pub(crate) command: String,
    pub(crate) seed: u64,
    /// The version of the two services.
    pub(crate) version: String,
    /// The commit that the services were built from.
    pub(crate) revision: String,
}

/// The content of report.json, and of report.html.
#[derive(Serialize)]
struct Report<'a> {
    holds: bool,
    #[serde(flatten)]
    run: &'a Run,
    totals: Totals,
    findings: Vec<&'a Finding>,
    faults: Vec<Recovery>,
    timeline: Timeline,
}

/// Writes report.html and report.json, and returns the summary for the terminal.
pub(crate) fn write(
    folder: &Path,
    run: &Run,
    book: &Book,
    evidence: &Evidence,
    findings: &[Finding],
) -> io::Result<Summary> {
    let report = Report::of(run, book, evidence, findings);
    std::fs::write(folder.join("report.html"), html::page(&report).into_string())?;
    std::fs::write(folder.join("report.json"), serde_json::to_vec_pretty(&report)?)?;
    Ok(Summary::of(&report))
}

impl<'a> Report<'a> {
    fn of(run: &'a Run, book: &Book, evidence: &Evidence, findings: &'a [Finding]) -> Report<'a> {
        let moments = Moments::of(book, evidence);
        let mut findings: Vec<&Finding> = findings.iter().collect();
        // Broken findings first; otherwise keep the order.
        findings.sort_by_key(|finding| finding.holds());
        Report {
            holds: findings.iter().all(|finding| finding.holds()),
            run,
            totals: Totals::of(book, evidence),
            findings,
            faults: recovery::recoveries(&moments, evidence),
            timeline: Timeline::of(&moments, evidence),
        }
    }
}
