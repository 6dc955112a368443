//! The server's settings, and what each means for a message not to be lost.

use msg_common::postgres::{Object, Refusal};

use super::Findings;

/// The oldest version that is supported.
const OLDEST: i32 = 130_000;

const SETTINGS: &str = "
    SELECT current_setting('server_version_num')::integer, current_setting('server_version'), pg_is_in_recovery(),
           current_setting('transaction_read_only') = 'on', current_setting('fsync') = 'on',
           current_setting('full_page_writes') = 'on', current_setting('synchronous_commit'),
           current_setting('synchronous_standby_names'),
           (SELECT extversion FROM pg_extension WHERE extname = 'citus'), current_setting('server_encoding'),
           (SELECT source FROM pg_settings WHERE name = 'synchronous_commit')";

/// Looks at them.
pub(super) async fn check(
    client: &Object,
    allow_unsafe: bool,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    let row = client.query_one(SETTINGS, &[]).await?;
    let (number, version): (i32, String) = (row.get(0), row.get(1));
    if number < OLDEST {
        findings.failed("server version", format!("{version} is older than 13: upgrade the server"));
    } else {
        findings.ok("server version", version);
    }
    writable(row.get(2), row.get(3), findings);
    encoding(row.get(9), findings);
    let means_fsync = "commits reach the disk";
    let without_fsync = "a crash of the server's machine can lose or break everything";
    durable("fsync", row.get(4), means_fsync, without_fsync, allow_unsafe, findings);
    let means_pages = "pages that were half written in a crash are repaired";
    let without_pages = "a crash of the server's machine can break pages, and what is stored on them";
    durable("full_page_writes", row.get(5), means_pages, without_pages, allow_unsafe, findings);
    synchronous(row.get(6), row.get(10), row.get(7), findings);
    let citus: Option<String> = row.get(8);
    let says = citus.map_or_else(|| "not installed: one server".to_owned(), |version| format!("version {version}"));
    findings.ok("citus", says);
    Ok(())
}

fn writable(in_recovery: bool, read_only: bool, findings: &mut Findings) {
    if in_recovery {
        findings.failed("writable", "the server is a standby: point --database-url to the primary");
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
fn synchronous(commit: &str, source: &str, standbys: &str, findings: &mut Findings) {
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
    if standbys.is_empty() {
        findings.warning(
            "synchronous_standby_names",
            "empty: a failover to a standby can lose the last commits; the transfer reads those records again, as long as \
             Kafka keeps them",
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
        synchronous(commit, source, "standby", &mut findings);
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
