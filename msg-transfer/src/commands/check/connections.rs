//! How many connections the server still accepts, and how many a process needs.

use std::cmp::Ordering;

use msg_common::postgres::Object;

use super::Findings;
use crate::config::Config;

/// How many more connections this role can open: the least of what all may have, without what is kept for superusers, and
/// what this role and this database may have (-1: no limit), without those that exist. An ordinary role is not told the type of
/// others' connections. Ours goes with this command.
pub(super) const ROOM: &str = "
    SELECT 1 + least(
        current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
            - coalesce(current_setting('reserved_connections', true)::bigint, 0) - count(*),
        (SELECT rolconnlimit::bigint FROM pg_roles WHERE rolname = current_user AND rolconnlimit >= 0)
            - count(*) FILTER (WHERE usename = current_user),
        (SELECT datconnlimit::bigint FROM pg_database WHERE datname = current_database() AND datconnlimit >= 0)
            - count(*) FILTER (WHERE datname = current_database()))
    FROM pg_stat_activity WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'";

/// Compares what is free with what a process needs.
pub(super) async fn check(
    config: &Config,
    client: &Object,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    let left: i64 = client.query_one(ROOM, &[]).await?.get(0);
    let needed = i64::try_from(config.pool_size()).unwrap_or(i64::MAX);
    match left.cmp(&needed) {
        Ordering::Less => findings.warning(
            "connections",
            format!(
                "room is left for {left}, and one process takes {needed} (--lanes and two more): a further transfer may \
                 find none; raise max_connections, or the limit of the role or the database"
            ),
        ),
        _ => findings.ok("connections", format!("room is left for {left}, and one process takes {needed}")),
    }
    Ok(())
}
