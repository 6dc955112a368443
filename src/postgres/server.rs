//! What a new connection finds out about its server: which one it is, and whether it may be used.

use tokio_postgres::{Client, Error, SimpleQueryMessage, SimpleQueryRow};

/// Of every connection, in one statement. Numbers, since texts depend on settings such as the time zone.
const PLAIN: &str = "SELECT pg_is_in_recovery()::int, current_setting('transaction_read_only'), \
     current_setting('server_encoding'), pg_backend_pid(), extract(epoch FROM pg_postmaster_start_time())";

/// What says most about which server it is. A role may read it unless somebody has revoked that; some hosted servers do.
/// The timeline of `pg_control_checkpoint()` is that of the last checkpoint: behind, for a while after a promotion.
const IDENTITY: &str = ", (SELECT system_identifier FROM pg_control_system()), \
     CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END";

/// Whether a server that was good still is. Our own sessions may be read-only, so this asks what a new session would find.
const STATE: &str = "SELECT pg_is_in_recovery()::int, coalesce(
    (SELECT split_part(setting, '=', 2)::boolean FROM pg_db_role_setting s, unnest(s.setconfig) setting
     WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
       AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
       AND setting LIKE 'default_transaction_read_only=%'
     ORDER BY s.setrole <> 0 AND s.setdatabase <> 0 DESC, s.setrole <> 0 DESC, s.setdatabase <> 0 DESC LIMIT 1),
    (SELECT reset_val::boolean FROM pg_settings WHERE name = 'default_transaction_read_only'))::int";

/// Which server a connection leads to. A promoted standby differs in the timeline, a restart in the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Where this role may not read it: none.
    pub system: Option<String>,
    /// Likewise, and none on a standby.
    pub timeline: Option<String>,
    /// When its first process was started, in seconds since 1970.
    pub started: String,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unknown = "unknown";
        let (system, timeline) = (self.system.as_deref(), self.timeline.as_deref());
        let (system, timeline) = (system.unwrap_or(unknown), timeline.unwrap_or(unknown));
        write!(f, "system {system}, timeline {timeline}, started {}", self.started)
    }
}

/// A server, as it was when the connection was made.
#[derive(Clone, Debug)]
pub struct Server {
    /// Which one it is.
    pub identity: Identity,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Whether transactions are read-only there.
    pub read_only: bool,
    /// The database's encoding.
    pub encoding: String,
    pub(super) backend: String,
}

/// What a pool's connections are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Storing: the server must be a primary that takes writes.
    Write,
    /// Reading what was just stored: the server must be a primary. Of several hosts, the one that takes writes.
    ReadPrimary,
    /// Reading what may be behind.
    ReadReplica,
    /// Looking at any server, whatever is wrong with it.
    Inspect,
}

/// Why a server that answers is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its data may be behind, and it takes no writes.
    #[error("the server is a standby; the primary is needed: wait for its promotion, or name the primary in the URL")]
    Standby,
    /// Nothing can be stored.
    #[error(
        "the server is read-only (default_transaction_read_only): turn that off for the server, the database and the role, \
         or name the server that takes writes in the URL"
    )]
    ReadOnly,
    /// The URL asks for a server that takes no writes.
    #[error("the server takes writes, and the URL has target_session_attrs=read-only")]
    Writable,
    /// Not every message can be stored in it.
    #[error(
        "the database's encoding is {0}, which cannot hold every message: create one with \
         CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and name it in the URL"
    )]
    Encoding(String),
    /// What a session has set, locked and prepared is another client's a moment later.
    #[error(
        "a connection pooler in transaction (or statement) mode is between us and the server: {0}; connect to the server \
         itself, or set the pooler to session mode (pool_mode = session)"
    )]
    Pooler(String),
}

impl Refusal {
    /// Whether only an operator can change it. Otherwise a failover may be under way.
    pub fn needs_operator(&self) -> bool {
        matches!(self, Refusal::Encoding(_) | Refusal::Pooler(_))
    }
}

/// Says why the server is not to be used for this. `read_write` is what the URL's `target_session_attrs` ask for.
pub(super) fn judge(
    purpose: Purpose,
    in_recovery: bool,
    read_only: bool,
    read_write: Option<bool>,
    hosts: usize,
) -> Result<(), Refusal> {
    let must_write = match purpose {
        Purpose::Inspect => return Ok(()),
        Purpose::Write => true,
        // The first of several hosts may be a former primary.
        Purpose::ReadPrimary => read_write.unwrap_or(hosts > 1),
        Purpose::ReadReplica => read_write == Some(true),
    };
    if in_recovery && (must_write || purpose == Purpose::ReadPrimary) {
        return Err(Refusal::Standby);
    }
    if read_only && must_write {
        return Err(Refusal::ReadOnly);
    }
    if read_write == Some(false) && !read_only && purpose == Purpose::ReadReplica {
        return Err(Refusal::Writable);
    }
    Ok(())
}

impl Server {
    /// Asks in the simple protocol: a pooler in transaction mode has to be told, not tripped over.
    pub(super) async fn read(client: &Client) -> Result<Server, Error> {
        let row = match row(client, &format!("{PLAIN}{IDENTITY}")).await {
            Err(error) if error.as_db_error().is_some() => row(client, PLAIN).await?,
            row => row?,
        };
        let text = |column| row.try_get(column).ok().flatten().map(str::to_owned);
        let identity = Identity {
            system: text(5).filter(|_| row.len() > 5),
            timeline: text(6).filter(|_| row.len() > 5),
            started: text(4).unwrap_or_default(),
        };
        Ok(Server {
            identity,
            in_recovery: text(0).as_deref() == Some("1"),
            read_only: text(1).as_deref() == Some("on"),
            encoding: text(2).unwrap_or_default(),
            backend: text(3).unwrap_or_default(),
        })
    }
}

/// Whether the server is a standby now, and whether a new session would be read-only.
pub(super) async fn state(client: &Client) -> Result<(bool, bool), Error> {
    let row = row(client, STATE).await?;
    let is = |column| row.try_get(column).ok().flatten() == Some("1");
    // A standby takes no writes, whatever its settings say.
    Ok((is(0), is(0) || is(1)))
}

/// The only row of a query's answer, all in text.
pub(super) async fn row(client: &Client, query: &str) -> Result<SimpleQueryRow, Error> {
    let answer = client.simple_query(query).await?;
    let row = answer.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row.expect("a query without a condition has a row"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_judged_by_what_it_is_for() {
        let (standby, read_only, primary) = ((true, true), (false, true), (false, false));
        for (purpose, server, read_write, hosts, expected) in [
            (Purpose::Write, primary, None, 1, Ok(())),
            (Purpose::Write, standby, None, 1, Err(Refusal::Standby)),
            (Purpose::Write, read_only, None, 1, Err(Refusal::ReadOnly)),
            (Purpose::Write, standby, Some(false), 2, Err(Refusal::Standby)),
            (Purpose::ReadPrimary, read_only, None, 1, Ok(())),
            (Purpose::ReadPrimary, read_only, None, 2, Err(Refusal::ReadOnly)),
            (Purpose::ReadPrimary, read_only, Some(true), 1, Err(Refusal::ReadOnly)),
            (Purpose::ReadPrimary, standby, None, 1, Err(Refusal::Standby)),
            (Purpose::ReadReplica, standby, None, 2, Ok(())),
            (Purpose::ReadReplica, primary, None, 1, Ok(())),
            (Purpose::ReadReplica, primary, Some(false), 1, Err(Refusal::Writable)),
            (Purpose::ReadReplica, standby, Some(true), 1, Err(Refusal::Standby)),
            (Purpose::Inspect, standby, Some(true), 2, Ok(())),
        ] {
            let (in_recovery, is_read_only) = server;
            let found = judge(purpose, in_recovery, is_read_only, read_write, hosts);
            assert_eq!(found, expected, "{purpose:?} {server:?} {read_write:?} {hosts}");
        }
    }
}
