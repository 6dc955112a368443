//! Promotes a standby while the old primary stays up, read-only or frozen. Later the roles change back.

use std::time::Duration;

use msg_stack::Postgres;
use tokio_postgres::Client;

use super::injection::{FaultInjection, all_ready};
use crate::error::LabError;
use crate::topology::DATABASE;

/// How long a standby may need until it has every row of the primary.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Old {
    ReadOnly,
    Frozen,
}

/// Promotes the standby and, later, the first server again. At the end only the first server runs.
pub(super) async fn replace(injection: &mut FaultInjection<'_>, old: Old) -> Result<(), LabError> {
    let (first, second) = (injection.world.stack.postgres(), injection.world.standby.as_ref());
    let second = second.ok_or_else(|| LabError::Setting("the stack was started without a standby".into()))?;
    injection.target(match old {
        Old::ReadOnly => "postgresql, read-only",
        Old::Frozen => "postgresql, frozen",
    });
    switch(first, second, old).await?;
    injection.hold().await;
    all_ready(injection.world).await?;
    first.kill().await;
    switch(second, first, Old::ReadOnly).await?;
    second.kill().await;
    all_ready(injection.world).await
}

/// Makes `to` a standby of `from`, and then the primary. No row is lost: from before the switch on, the primary waits
/// for its standby, so no COMMIT succeeds, and no session sees a row, that the standby does not have.
async fn switch(from: &Postgres, to: &Postgres, old: Old) -> Result<(), LabError> {
    let primary = from.connect(&from.url(DATABASE)).await?;
    set(&primary, "wal_keep_size", "'2GB'").await?;
    to.become_standby(from).await?;
    to.start().await?;
    set(&primary, "synchronous_standby_names", "'*'").await?;
    const FOLLOWS: &str = "SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'";
    until(&primary, FOLLOWS, &[], "the standby follows").await?;
    match old {
        Old::ReadOnly => {
            set(&primary, "default_transaction_read_only", "on").await?;
            // Wait for sessions that have started to write: they may finish.
            const WRITES: &str = "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_xid IS NOT NULL";
            until(&primary, WRITES, &[], "no session writes").await?;
            let written: String = primary.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?.get(0);
            let standby = to.connect(&to.url(DATABASE)).await?;
            const HAS: &str = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
            until(&standby, HAS, &[&written], "the standby has everything").await?;
        }
        Old::Frozen => {
            from.freeze();
        }
    }
    let standby = to.connect(&to.url(DATABASE)).await?;
    match standby.query_one("SELECT pg_promote()", &[]).await?.get(0) {
        true => Ok(()),
        false => Err(LabError::Stuck("the standby is not promoted".into())),
    }
}

/// Changes a setting of the server. This session stays writable.
async fn set(database: &Client, name: &str, value: &str) -> Result<(), LabError> {
    database.batch_execute("SET default_transaction_read_only = off").await?;
    database.batch_execute(&format!("ALTER SYSTEM SET {name} = {value}")).await?;
    Ok(database.batch_execute("SELECT pg_reload_conf()").await?)
}

async fn until(
    database: &Client,
    query: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    what: &str,
) -> Result<(), LabError> {
    let waiting = async {
        while !database.query_one(query, parameters).await?.get::<_, bool>(0) {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    };
    let late = |_| LabError::Stuck(format!("not within {} s: {what}", FOLLOWS_WITHIN.as_secs()));
    tokio::time::timeout(FOLLOWS_WITHIN, waiting).await.map_err(late)?
}
