//! Owns the report of a run: what it came to, as HTML for people, as JSON for programs, and as lines for the terminal.

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

/// What was run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// In a few words: the plan, and how many of what it ran on.
    pub(crate) title: String,
    /// The command that does the same again, seed and all.
    pub(crate) command: String,
    pub(crate) seed: u64,
    /// Of the two services.
    pub(crate) version: String,
    /// The commit they were built from.
    pub(crate) revision: String,
}

/// All that is in report.json, and all that report.html shows.
#[derive(Serialize)]
struct Report<'a> {
    /// Whether every promise does.
    holds: bool,
    #[serde(flatten)]
    run: &'a Run,
    totals: Totals,
    findings: Vec<&'a Finding>,
    faults: Vec<Recovery>,
    timeline: Timeline,
}

/// Writes report.html and report.json.
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
        // The broken ones first; else as they were.
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
