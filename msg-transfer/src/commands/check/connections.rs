//! Compares the number of connections that the server still accepts with the number that a process needs.

use std::cmp::Ordering;

use msg_common::postgres::Object;

use super::Findings;
use crate::config::Config;

/// Reads how many more connections this role can open: the minimum of the limits of the server (without those reserved
/// for superusers), the role and the database (-1: no limit), each without the open connections. The type of other
/// roles' connections is NULL for an ordinary role. Our own connection is added, because it is closed with this
/// command.
pub(super) const FREE_CONNECTIONS: &str = "
    SELECT 1 + least(
        current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
            - coalesce(current_setting('reserved_connections', true)::bigint, 0) - count(*),
        (SELECT rolconnlimit::bigint FROM pg_roles WHERE rolname = current_user AND rolconnlimit >= 0)
            - count(*) FILTER (WHERE usename = current_user),
        (SELECT datconnlimit::bigint FROM pg_database WHERE datname = current_database() AND datconnlimit >= 0)
            - count(*) FILTER (WHERE datname = current_database()))
    FROM pg_stat_activity WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'";

/// Checks that another process could open its connections.
pub(super) async fn check(
    config: &Config,
    client: &Object,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    let free: i64 = client.query_one(FREE_CONNECTIONS, &[]).await?.get(0);
    let needed = i64::try_from(config.pool_size()).unwrap_or(i64::MAX);
    match free.cmp(&needed) {
        Ordering::Less => findings.warning(
            "connections",
            format!(
                "{free} connections are free, and one process needs {needed} (--lanes and three more), so another \
                 transfer may not connect; raise max_connections, or the limit of the role or the database"
            ),
        ),
        _ => findings.ok("connections", format!("{free} connections are free, and one process needs {needed}")),
    }
    Ok(())
}
