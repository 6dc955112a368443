//! `msg-transfer check`: checks everything that the promises depend on, and reports each problem with what to do. It
//! changes nothing and joins no group.

mod connections;
mod database;
mod kafka;
mod nodes;
mod settings;

use std::process::ExitCode;

use clap::Args;
use msg_common::kafka::topic::TopicRequirements;
use msg_common::postgres::Purpose;
use serde::Serialize;

use super::access::pool;
use super::error::CommandError;
use super::output::{OutputOptions, Table};
use crate::config::Config;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The required settings of the topic.
    #[command(flatten)]
    pub requirements: TopicRequirements,
    /// Accept a topic that may lose accepted messages, such as one on a single broker: a warning instead of a failed
    /// check
    #[arg(long, env = "ALLOW_UNSAFE_TOPIC")]
    pub allow_unsafe_topic: bool,
    /// Accept a database that may lose all messages in a crash (fsync or full_page_writes off): a warning instead of a
    /// failed check
    #[arg(long, env = "ALLOW_UNSAFE_DATABASE")]
    pub allow_unsafe_database: bool,
    /// The format of the result.
    #[command(flatten)]
    pub output: OutputOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    Failed,
}

#[derive(Clone, Debug, Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    /// The state that was found, and what to do.
    detail: String,
}

/// The checks that were made so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Status::Ok, detail.into());
    }

    fn warning(&mut self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Status::Warning, detail.into());
    }

    fn failed(&mut self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Status::Failed, detail.into());
    }

    fn add(&mut self, check: &'static str, status: Status, detail: String) {
        self.0.push(Finding { check, status, detail });
    }
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Finding>,
}

/// Makes all checks. Returns exit code 1 if a check failed.
pub(super) async fn run(config: &Config, options: &Options) -> Result<ExitCode, CommandError> {
    let mut findings = Findings::default();
    // A bad setting ends the process before the command runs.
    findings.ok("configuration", "every setting is valid");
    let pool = pool(config, Purpose::Inspect)?;
    kafka::check(config, options, &pool, &mut findings).await;
    database::check(config, options, &pool, &mut findings).await;
    let ok = findings.0.iter().all(|finding| finding.status != Status::Failed);
    let report = Report { ok, checks: findings.0 };
    options.output.print(&report, || table(&report))?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(report: &Report) -> String {
    let mut table = Table::new(&["result", "check", "details"]);
    for finding in &report.checks {
        let status = match finding.status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Failed => "FAILED",
        };
        table.row([status.to_owned(), finding.check.to_owned(), finding.detail.clone()]);
    }
    table.text()
}
