//! The server's settings, and what each means for a message not to be lost.

use msg_common::postgres::{Object, Refusal};
use serde::Deserialize;

use super::Findings;

/// The oldest version that is supported.
const OLDEST: i32 = 130_000;

/// One JSON text, so that it can be asked of a Citus' other nodes too.
pub(super) const SETTINGS: &str = "
    SELECT json_build_object(
        'number', current_setting('server_version_num')::integer, 'version', current_setting('server_version'),
        'in_recovery', pg_is_in_recovery(), 'read_only', current_setting('transaction_read_only') = 'on',
        'fsync', current_setting('fsync') = 'on', 'full_page_writes', current_setting('full_page_writes') = 'on',
        'synchronous_commit', current_setting('synchronous_commit'),
        'synchronous_commit_source', (SELECT source FROM pg_settings WHERE name = 'synchronous_commit'),
        'standbys', current_setting('synchronous_standby_names'), 'encoding', current_setting('server_encoding'),
        'citus', (SELECT extversion FROM pg_extension WHERE extname = 'citus'))";

/// Those of one server.
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

/// Looks at those of the server that we are connected to. Whether it is a Citus.
pub(super) async fn check(
    client: &Object,
    allow_unsafe: bool,
    findings: &mut Findings,
) -> Result<bool, tokio_postgres::Error> {
    let text: String = client.query_one(&format!("SELECT ({SETTINGS})::text"), &[]).await?.get(0);
    let settings: Settings = serde_json::from_str(&text).expect("the query has these columns");
    settings.judge("point --database-url to the primary", allow_unsafe, findings);
    synchronous(&settings.synchronous_commit, &settings.synchronous_commit_source, findings);
    let lost = "the transfer reads those records again, as long as Kafka keeps them";
    standbys(&settings.standbys, lost, findings);
    let says = settings.citus.as_ref().map(|version| format!("version {version}"));
    findings.ok("citus", says.unwrap_or_else(|| "not installed: one server".to_owned()));
    Ok(settings.citus.is_some())
}

impl Settings {
    /// What holds for any server that messages are stored in.
    /// `primary` says what to do about a standby.
    pub(super) fn judge(&self, primary: &str, allow_unsafe: bool, findings: &mut Findings) {
        let version = &self.version;
        if self.number < OLDEST {
            findings.failed("server version", format!("{version} is older than 13: upgrade the server"));
        } else {
            findings.ok("server version", version.as_str());
        }
        writable(self.in_recovery, self.read_only, primary, findings);
        encoding(&self.encoding, findings);
        let means_fsync = "commits reach the disk";
        let without_fsync = "a crash of the server's machine can lose or break everything";
        durable("fsync", self.fsync, means_fsync, without_fsync, allow_unsafe, findings);
        let means_pages = "pages that were half written in a crash are repaired";
        let without_pages = "a crash of the server's machine can break pages, and what is stored on them";
        durable("full_page_writes", self.full_page_writes, means_pages, without_pages, allow_unsafe, findings);
    }
}

/// What our own sessions set does not reach another node of a Citus: its own value holds there.
pub(super) fn synchronous_on_node(settings: &Settings, findings: &mut Findings) {
    let (commit, source) = (&settings.synchronous_commit, &settings.synchronous_commit_source);
    if commit == "on" || commit == "remote_apply" {
        findings.ok("synchronous_commit", format!("{commit}: an answered commit is on the server's disk"));
    } else {
        findings.failed(
            "synchronous_commit",
            format!("{commit} (from: {source}): set it to on there, for the server, the database and the role"),
        );
    }
    // The progress rows are on the coordinator and stay as they are.
    standbys(&settings.standbys, "docs/citus.md says what to do then (A worker is lost)", findings);
}

fn writable(in_recovery: bool, read_only: bool, primary: &str, findings: &mut Findings) {
    if in_recovery {
        findings.failed("writable", format!("the server is a standby: {primary}"));
    } else if read_only {
        findings.failed(
            "writable",
            "transactions are read-only (default_transaction_read_only): nothing can be stored until that is off for the \
             server, the database and the role",
        );
    } else {
        findings.ok("writable", "the server is a primary and takes writes");
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

/// `source` is where the session has the value of `commit` from.
fn synchronous(commit: &str, source: &str, findings: &mut Findings) {
    if commit == "on" || commit == "remote_apply" {
        findings
            .ok("synchronous_commit", format!("{commit} in our sessions: an answered commit is on the server's disk"));
    } else if source == "session" {
        findings.failed(
            "synchronous_commit",
            format!("our own sessions set it to {commit}: this build is at fault, not the server; run another one"),
        );
    } else {
        findings.failed(
            "synchronous_commit",
            format!(
                "{commit} (from: {source}), although our session has set it to on: something between us and the server (a pooler?) \
                 drops the session's settings; connect to the server itself"
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
        findings.ok("synchronous_standby_names", format!("{standbys}: an answered commit is on a standby too"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(commit: &str, source: &str) -> String {
        let mut findings = Findings::default();
        synchronous(commit, source, &mut findings);
        findings.0[0].detail.clone()
    }

    #[test]
    fn blame_for_lost_commits_goes_where_the_setting_is_from() {
        assert!(says("on", "session").contains("in our sessions"));
        let ours = says("local", "session");
        assert!(ours.contains("this build") && !ours.contains("pooler"), "{ours}");
        let dropped = says("off", "database");
        assert!(dropped.contains("pooler") && !dropped.contains("this build"), "{dropped}");
    }
}
