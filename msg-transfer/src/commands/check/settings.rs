//! The server's settings, and what each means for a message not to be lost.

use deadpool_postgres::Object;

use super::Findings;

/// The oldest version that is supported.
const OLDEST: i32 = 130_000;

const SETTINGS: &str = "
    SELECT current_setting('server_version_num')::integer, current_setting('server_version'), pg_is_in_recovery(),
           current_setting('transaction_read_only') = 'on', current_setting('fsync') = 'on',
           current_setting('full_page_writes') = 'on', current_setting('synchronous_commit'),
           current_setting('synchronous_standby_names'),
           (SELECT extversion FROM pg_extension WHERE extname = 'citus')";

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
    let means_fsync = "commits reach the disk";
    let without_fsync = "a crash of the server's machine can lose or break everything";
    durable("fsync", row.get(4), means_fsync, without_fsync, allow_unsafe, findings);
    let means_pages = "pages that were half written in a crash are repaired";
    let without_pages = "a crash of the server's machine can break pages, and what is stored on them";
    durable("full_page_writes", row.get(5), means_pages, without_pages, allow_unsafe, findings);
    synchronous(row.get(6), row.get(7), findings);
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

fn synchronous(commit: &str, standbys: &str, findings: &mut Findings) {
    // The session has set it, as each session of the service does.
    if commit == "on" || commit == "remote_apply" {
        findings
            .ok("synchronous_commit", format!("{commit} in our sessions: an answered commit is on the server's disk"));
    } else {
        findings.failed(
            "synchronous_commit",
            format!(
                "{commit}, although our session has set it to on: something between us and the server (a pooler?) \
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
