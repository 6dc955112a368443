//! Checks the server's settings, on which it depends whether messages are lost.

use msg_common::postgres::{Object, Refusal};
use serde::Deserialize;

use super::Findings;

const MIN_VERSION: i32 = 130_000;

/// Reads the settings as one JSON text, because a query to the other nodes of a Citus returns one text.
pub(super) const SETTINGS: &str = "
    SELECT json_build_object(
        'number', current_setting('server_version_num')::integer, 'version', current_setting('server_version'),
        'in_recovery', pg_is_in_recovery(), 'read_only', current_setting('transaction_read_only') = 'on',
        'fsync', current_setting('fsync') = 'on', 'full_page_writes', current_setting('full_page_writes') = 'on',
        'synchronous_commit', current_setting('synchronous_commit'),
        'synchronous_commit_source', (SELECT source FROM pg_settings WHERE name = 'synchronous_commit'),
        'standbys', current_setting('synchronous_standby_names'), 'encoding', current_setting('server_encoding'),
        'citus', (SELECT extversion FROM pg_extension WHERE extname = 'citus'))";

#[derive(Debug, Deserialize)]
pub(super) struct Settings {
    number: i32,
    version: String,
    in_recovery: bool,
    read_only: bool,
    fsync: bool,
    full_page_writes: bool,
    synchronous_commit: String,
    synchronous_commit_source: String,
    standbys: String,
    encoding: String,
    citus: Option<String>,
}

/// Checks the settings of the server that we are connected to. Returns whether Citus is installed.
pub(super) async fn check(
    client: &Object,
    allow_unsafe: bool,
    findings: &mut Findings,
) -> Result<bool, tokio_postgres::Error> {
    let text: String = client.query_one(&format!("SELECT ({SETTINGS})::text"), &[]).await?.get(0);
    let settings: Settings = serde_json::from_str(&text).expect("the query has these columns");
    settings.judge("point --database-url to the primary", allow_unsafe, findings);
    synchronous(&settings.synchronous_commit, &settings.synchronous_commit_source, findings);
    let then = "the transfer consumes those records again, if Kafka still has them";
    standbys(&settings.standbys, then, findings);
    let version = settings.citus.as_ref().map(|version| format!("version {version}"));
    findings.ok("citus", version.unwrap_or_else(|| "not installed: one server".to_owned()));
    Ok(settings.citus.is_some())
}

impl Settings {
    /// Checks the requirements for any server that stores messages. `primary` is the advice for a standby.
    pub(super) fn judge(&self, primary: &str, allow_unsafe: bool, findings: &mut Findings) {
        let version = &self.version;
        if self.number < MIN_VERSION {
            findings.failed("server version", format!("{version} is older than 13: upgrade the server"));
        } else {
            findings.ok("server version", version.as_str());
        }
        writable(self.in_recovery, self.read_only, primary, findings);
        encoding(&self.encoding, findings);
        let means_fsync = "commits reach the disk";
        let without_fsync = "a crash of the server's machine can lose or damage all data";
        durable("fsync", self.fsync, means_fsync, without_fsync, allow_unsafe, findings);
        let means_pages = "pages that were partly written in a crash are repaired";
        let without_pages = "a crash of the server's machine can damage pages and the rows on them";
        durable("full_page_writes", self.full_page_writes, means_pages, without_pages, allow_unsafe, findings);
    }
}

/// Checks another node of a Citus. The setting of our own sessions does not reach it, so its own value counts.
pub(super) fn synchronous_on_node(settings: &Settings, findings: &mut Findings) {
    let (commit, source) = (&settings.synchronous_commit, &settings.synchronous_commit_source);
    if commit == "on" || commit == "remote_apply" {
        findings.ok("synchronous_commit", format!("{commit}: a confirmed COMMIT is on the server's disk"));
    } else {
        findings.failed(
            "synchronous_commit",
            format!("{commit} (from: {source}): set it to on there, for the server, the database and the role"),
        );
    }
    // The progress rows are on the coordinator, so they do not show what a worker lost.
    standbys(&settings.standbys, "see docs/citus.md, A worker is lost", findings);
}

fn writable(in_recovery: bool, read_only: bool, primary: &str, findings: &mut Findings) {
    if in_recovery {
        findings.failed("writable", format!("the server is a standby: {primary}"));
    } else if read_only {
        findings.failed(
            "writable",
            "transactions are read-only (default_transaction_read_only): turn that off for the server, the database \
             and the role",
        );
    } else {
        findings.ok("writable", "the server is a primary and accepts writes");
    }
}

fn durable(name: &'static str, on: bool, good: &str, bad: &str, allow_unsafe: bool, findings: &mut Findings) {
    match (on, allow_unsafe) {
        (true, _) => findings.ok(name, format!("on: {good}")),
        (false, true) => findings.warning(name, format!("off: {bad} (accepted by --allow-unsafe-database)")),
        (false, false) => {
            findings.failed(name, format!("off: {bad}; turn it on, or accept it with --allow-unsafe-database"));
        }
    }
}

fn encoding(encoding: &str, findings: &mut Findings) {
    if encoding == "UTF8" {
        findings.ok("encoding", "UTF8: it can hold every message");
    } else {
        findings.failed("encoding", Refusal::Encoding(encoding.to_owned()).to_string());
    }
}

/// Checks `synchronous_commit` of our session. `source` is the origin of its value.
fn synchronous(commit: &str, source: &str, findings: &mut Findings) {
    if commit == "on" || commit == "remote_apply" {
        findings
            .ok("synchronous_commit", format!("{commit} in our sessions: a confirmed COMMIT is on the server's disk"));
    } else if source == "session" {
        findings.failed(
            "synchronous_commit",
            format!(
                "our own sessions set it to {commit}: this is a defect of this build, not of the server; run \
                 another build"
            ),
        );
    } else {
        findings.failed(
            "synchronous_commit",
            format!(
                "{commit} (from: {source}), although our session has set it to on: a proxy between us and the server, \
                 such as a pooler, drops the session's settings; connect to the server directly"
            ),
        );
    }
}

fn standbys(standbys: &str, then: &str, findings: &mut Findings) {
    if standbys.is_empty() {
        findings.warning(
            "synchronous_standby_names",
            format!("empty: a failover to a standby can lose the last commits; {then}"),
        );
    } else {
        findings.ok("synchronous_standby_names", format!("{standbys}: a confirmed COMMIT is on a standby too"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(commit: &str, source: &str) -> String {
        let mut findings = Findings::default();
        synchronous(commit, source, &mut findings);
        findings.0[0].detail.clone()
    }

    #[test]
    fn unsafe_synchronous_commit_names_the_cause() {
        assert!(detail("on", "session").contains("in our sessions"));
        let ours = detail("local", "session");
        assert!(ours.contains("this build") && !ours.contains("pooler"), "{ours}");
        let dropped = detail("off", "database");
        assert!(dropped.contains("pooler") && !dropped.contains("this build"), "{dropped}");
    }
}
