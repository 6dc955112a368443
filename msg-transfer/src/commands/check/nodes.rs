//! Checks the other nodes of a Citus: they have to meet the requirements for the server of the URL, and only `messages`
//! may be distributed.

use msg_common::postgres::Object;
use serde::Deserialize;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use super::Findings;
use super::connections::FREE_CONNECTIONS;
use super::settings::{self, Settings};
use crate::citus::{self, Node};
use crate::config::Config;

const CHECK: &str = "citus nodes";

/// Reads how many connections to each worker one lane's connection may keep open.
const CACHED: &str = "SELECT coalesce(current_setting('citus.max_cached_conns_per_worker', true), '1')::bigint";

/// Reads how tables are distributed. The columns are NULL if Citus does not manage the table, the last one if the table
/// has no distribution column.
const TABLES: &str = "
    SELECT t.name, p.logicalrelid IS NOT NULL,
           coalesce(p.partkey IS NULL AND p.repmodel <> 't' AND p.colocationid = 0, true),
           column_to_column_name(p.logicalrelid, p.partkey)
    FROM unnest(ARRAY['messages', 'dead_letters', 'progress']) AS t (name)
    LEFT JOIN pg_dist_partition p ON p.logicalrelid = to_regclass(t.name)";

#[derive(Deserialize)]
struct NodeState {
    settings: Settings,
    free_connections: i64,
    may_read_identity: bool,
}

pub(super) async fn check(
    config: &Config,
    client: &Object,
    allow_unsafe: bool,
    findings: &mut Findings,
) -> Result<(), Error> {
    for row in client.query(TABLES, &[]).await? {
        let (table, known, local, column): (String, bool, bool, Option<String>) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        distribution(&table, known && !local, column.as_deref(), findings);
    }
    let cached: i64 = client.query_one(CACHED, &[]).await?.get(0);
    let needed = i64::try_from(config.lanes.lanes).unwrap_or(i64::MAX).saturating_mul(cached.max(1));
    let command = format!(
        "SELECT json_build_object('settings', ({}), 'free_connections', ({FREE_CONNECTIONS}), 'may_read_identity', \
         ({}))",
        settings::SETTINGS,
        citus::MAY_READ_IDENTITY
    );
    match citus::run_on_other_nodes(client, &command).await {
        Ok(nodes) => nodes.iter().for_each(|node| judge(node, needed, allow_unsafe, findings)),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => findings.failed(
            CHECK,
            format!(
                "cannot be read: {}; GRANT EXECUTE ON FUNCTION run_command_on_all_nodes, and SELECT ON pg_dist_node, \
                 to this role",
                crate::db_error::describe(&error)
            ),
        ),
        Err(error) if error.as_db_error().is_some() => {
            findings.failed(CHECK, format!("cannot be read: {}", crate::db_error::describe(&error)));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Adds each problem of a node with the node's name, and one finding that is ok if none of them is a failure.
fn judge(node: &Node, needed: i64, allow_unsafe: bool, findings: &mut Findings) {
    let name = &node.name;
    if !node.active {
        return findings.failed(CHECK, format!("{name} is disabled: citus_activate_node, or citus_remove_node"));
    }
    let state: NodeState = match &node.result {
        Ok(text) => match serde_json::from_str(text) {
            Ok(state) => state,
            Err(error) => return findings.failed(CHECK, format!("{name} returned no settings: {error}")),
        },
        Err(error) => return findings.failed(CHECK, format!("{name} did not respond: {error}")),
    };
    let mut of_node = Findings::default();
    state.settings.judge("promote it, or citus_update_node to the primary", allow_unsafe, &mut of_node);
    settings::synchronous_on_node(&state.settings, &mut of_node);
    if state.free_connections < needed {
        of_node.warning(
            "connections",
            format!(
                "{} connections are free, and one process may need {needed} (--lanes × \
                 citus.max_cached_conns_per_worker): raise max_connections there, or lower the other settings",
                state.free_connections
            ),
        );
    }
    if !state.may_read_identity {
        of_node.warning(
            "rights",
            "this role may not run pg_control_system, pg_walfile_name or pg_current_wal_lsn, so the transfer does not \
             detect that this worker was replaced or promoted: GRANT EXECUTE on them there",
        );
    }
    if of_node.0.iter().all(|finding| finding.status != super::Status::Failed) {
        findings.ok(CHECK, format!("{name} responds, and its settings are safe"));
    }
    for finding in of_node.0.into_iter().filter(|finding| finding.status != super::Status::Ok) {
        findings.add(finding.check, finding.status, format!("on {name}: {}", finding.detail));
    }
}

/// Checks how a table is distributed. `column` is its distribution column, `None` for a reference table.
fn distribution(table: &str, distributed: bool, column: Option<&str>, findings: &mut Findings) {
    const CHECK: &str = "citus tables";
    match (table, distributed, column) {
        ("messages", true, Some("recv_id")) => findings.ok(CHECK, "messages is distributed by recv_id"),
        ("messages", true, _) => findings.failed(
            CHECK,
            format!(
                "messages is distributed by {}, but only recv_id keeps its keys unique; undistribute_table, then \
                 create_distributed_table('messages', 'recv_id')",
                column.unwrap_or("no column")
            ),
        ),
        ("messages", false, _) => findings.warning(
            CHECK,
            "messages is only on this server: create_distributed_table('messages', 'recv_id') spreads it",
        ),
        (_, true, _) => findings.failed(
            CHECK,
            format!("{table} is distributed or a reference table: it has to be local; undistribute_table('{table}')"),
        ),
        (_, false, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    const GOOD: &str = r#"{"settings": {"number": 150008, "version": "15.8", "in_recovery": false, "read_only": false,
        "fsync": true, "full_page_writes": true, "synchronous_commit": "on", "synchronous_commit_source": "default",
        "standbys": "s1", "encoding": "UTF8", "citus": "13.2-1"}, "free_connections": 90, "may_read_identity": true}"#;

    fn findings_of(active: bool, result: Result<String, String>) -> Vec<(Status, String)> {
        let mut findings = Findings::default();
        let node = Node { id: 2, name: "w1:5432".to_owned(), active, result };
        judge(&node, 32, false, &mut findings);
        findings
            .0
            .into_iter()
            .map(|finding| (finding.status, format!("{}: {}", finding.check, finding.detail)))
            .collect()
    }

    #[test]
    fn good_node_has_one_finding() {
        let found = findings_of(true, Ok(GOOD.to_owned()));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0 == Status::Ok && found[0].1.contains("w1:5432"), "{found:?}");
    }

    #[test]
    fn bad_setting_of_a_node_is_reported_with_its_name() {
        for (good, bad, check, status) in [
            (r#""fsync": true"#, r#""fsync": false"#, "fsync", Status::Failed),
            (r#""full_page_writes": true"#, r#""full_page_writes": false"#, "full_page_writes", Status::Failed),
            (r#""synchronous_commit": "on""#, r#""synchronous_commit": "local""#, "synchronous_commit", Status::Failed),
            (r#""standbys": "s1""#, r#""standbys": """#, "synchronous_standby_names", Status::Warning),
            (r#""encoding": "UTF8""#, r#""encoding": "LATIN1""#, "encoding", Status::Failed),
            (r#""in_recovery": false"#, r#""in_recovery": true"#, "writable", Status::Failed),
            (r#""read_only": false"#, r#""read_only": true"#, "writable", Status::Failed),
            (r#""number": 150008"#, r#""number": 120008"#, "server version", Status::Failed),
            (r#""free_connections": 90"#, r#""free_connections": 31"#, "connections", Status::Warning),
            (r#""may_read_identity": true"#, r#""may_read_identity": false"#, "rights", Status::Warning),
        ] {
            let found = findings_of(true, Ok(GOOD.replace(good, bad)));
            let expected = format!("{check}: on w1:5432: ");
            let named = |(s, text): &(Status, String)| *s == status && text.starts_with(&expected);
            assert!(found.iter().any(named), "{expected}{status:?}, found {found:?}");
            let is_ok = found.iter().any(|(status, _)| *status == Status::Ok);
            assert_eq!(is_ok, status == Status::Warning, "a node with a failure is not ok: {found:?}");
        }
    }

    #[test]
    fn node_without_response_fails_with_its_name() {
        for (active, result) in [
            (true, Err("failed to connect to w1:5432".to_owned())),
            (true, Ok("not json".to_owned())),
            (false, Err(String::new())),
        ] {
            let found = findings_of(active, result);
            assert!(found[0].0 == Status::Failed && found[0].1.contains("w1:5432"), "{found:?}");
        }
    }

    #[test]
    fn only_messages_by_recv_id_may_be_distributed() {
        for (table, distributed, column, expected) in [
            ("messages", true, Some("recv_id"), Some(Status::Ok)),
            ("messages", true, Some("msg_id"), Some(Status::Failed)),
            ("messages", true, None, Some(Status::Failed)),
            ("messages", false, None, Some(Status::Warning)),
            ("progress", true, Some("partition"), Some(Status::Failed)),
            ("dead_letters", true, None, Some(Status::Failed)),
            ("progress", false, None, None),
        ] {
            let mut findings = Findings::default();
            distribution(table, distributed, column, &mut findings);
            assert_eq!(findings.0.first().map(|finding| finding.status), expected, "{table} by {column:?}");
        }
    }
}
