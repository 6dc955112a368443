//! Reads the identity and the state of a connection's server, and decides whether the server fits a purpose.

use tokio_postgres::{Client, Error, SimpleQueryMessage, SimpleQueryRow};

/// Reads the state of the server, on every new connection. It selects integers, because other texts depend on settings such
/// as the time zone and the number of digits.
const PLAIN: &str = "SELECT pg_is_in_recovery()::int, current_setting('transaction_read_only'), \
     current_setting('server_encoding'), pg_backend_pid(), \
     (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint";

/// Reads the system identifier and the timeline. Every role may read them unless an operator revoked the right, as some hosted
/// servers do. `pg_control_checkpoint()` would return the timeline of the last checkpoint, which is too old for a while
/// after a promotion.
const IDENTITY: &str = ", (SELECT system_identifier FROM pg_control_system()), \
     CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END";

/// The same columns if the identity cannot be read.
const NO_IDENTITY: &str = ", NULL, NULL";

/// Reads which table `messages` the session uses: the search path decides. Every role may read it.
const TABLE: &str = ", current_database(), to_regclass('messages')::oid";

/// Reads whether the server is a standby, and whether a new session would be read-only: our own sessions may be set to it.
const STATE: &str = "SELECT pg_is_in_recovery()::int, coalesce(
    (SELECT split_part(setting, '=', 2)::boolean FROM pg_db_role_setting s, unnest(s.setconfig) setting
     WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
       AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
       AND setting LIKE 'default_transaction_read_only=%'
     ORDER BY s.setrole <> 0 AND s.setdatabase <> 0 DESC, s.setrole <> 0 DESC, s.setdatabase <> 0 DESC LIMIT 1),
    (SELECT reset_val::boolean FROM pg_settings WHERE name = 'default_transaction_read_only'))::int";

/// The identity of a server. A promotion changes the timeline, a restart changes the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The system identifier; `None` if it could not be read, for example because this role may not read it.
    pub system: Option<String>,
    /// The timeline; `None` on a standby, or if it could not be read.
    pub timeline: Option<String>,
    /// When the server was started, in microseconds since 1970. Every role may read it.
    pub started: Option<String>,
}

/// The identity of the table `messages` of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableIdentity {
    /// The identity of the server.
    pub server: Identity,
    /// The name of the database.
    pub database: String,
    /// The OID of the table in the database.
    pub table: u32,
}

impl TableIdentity {
    /// Returns whether both are certainly one table.
    pub fn is(&self, other: &TableIdentity) -> bool {
        self.server.compare(&other.server) == Comparison::Same
            && (&self.database, self.table) == (&other.database, other.table)
    }
}

/// Whether two identities belong to one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Both were started at the same microsecond, and no part that is known of both differs.
    Same,
    /// A part that is known of both differs.
    Different,
    /// It is not known of both when they were started. A primary and its promoted standby have the same system identifier,
    /// and many servers have the same timeline, so these parts alone identify no server.
    Unknown,
}

impl Identity {
    /// Compares the parts that are known of both. A part may be unknown of one of them, because a right was granted or revoked
    /// in between, or because its query failed.
    pub fn compare(&self, other: &Identity) -> Comparison {
        let equal = |one: &Option<String>, other: &Option<String>| Some(one.as_ref()? == other.as_ref()?);
        let started = equal(&self.started, &other.started);
        let others = [equal(&self.system, &other.system), equal(&self.timeline, &other.timeline)];
        match started {
            _ if started == Some(false) || others.contains(&Some(false)) => Comparison::Different,
            Some(_) => Comparison::Same,
            None => Comparison::Unknown,
        }
    }

    /// Returns whether a part is unknown here that is known of `other`.
    pub fn knows_less_than(&self, other: &Identity) -> bool {
        let parts =
            |identity: &Identity| [&identity.system, &identity.timeline, &identity.started].map(Option::is_some);
        parts(self).into_iter().zip(parts(other)).any(|(known, other_known)| !known && other_known)
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unknown = "unknown";
        let [system, timeline, started] =
            [&self.system, &self.timeline, &self.started].map(|part| part.as_deref().unwrap_or(unknown));
        write!(f, "system {system}, timeline {timeline}, started {started}")
    }
}

/// The state of a server when a connection was opened.
#[derive(Clone, Debug)]
pub struct Server {
    /// The identity of the server.
    pub identity: Identity,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Whether its transactions are read-only.
    pub read_only: bool,
    /// The encoding of the database, such as `UTF8`.
    pub encoding: String,
    pub(super) backend: String,
    /// The name of the database, and the OID of its table `messages`, if it has one.
    messages: Option<(String, u32)>,
}

/// The purpose of a pool's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Storing: the server must be a primary that is not read-only.
    Write,
    /// Reading rows that were just stored: the server must be a primary. If the URL leads to several servers, it must not be
    /// read-only, because a read-only one may be the previous primary.
    ReadPrimary,
    /// Reading rows from a server that may be behind.
    ReadReplica,
    /// Inspecting any server, even one that fits no other purpose.
    Inspect,
}

/// Why a server that responds is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is read-only, and its rows may be behind.
    #[error("the server is a standby; the primary is needed: wait for its promotion, or name the primary in the URL")]
    Standby,
    /// Its transactions are read-only, so it cannot store messages.
    #[error(
        "the server is read-only (default_transaction_read_only): turn that off for the server, the database and the role, \
         or name a writable server in the URL"
    )]
    ReadOnly,
    /// The URL requires a read-only server.
    #[error("the server is writable, but the URL has target_session_attrs=read-only")]
    Writable,
    /// It cannot store every message.
    #[error(
        "the database's encoding is {0}, which cannot hold every message: create one with \
         CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and name it in the URL"
    )]
    Encoding(String),
    /// The settings, locks and prepared statements of a session would move to another client.
    #[error(
        "a connection pooler in transaction (or statement) mode is between us and the server: {0}; connect to the server \
         itself, or set the pooler to session mode (pool_mode = session)"
    )]
    Pooler(String),
}

impl Refusal {
    /// Returns whether only an operator can change it. Otherwise the cause may be a failover in progress.
    pub fn needs_operator(&self) -> bool {
        matches!(self, Refusal::Encoding(_) | Refusal::Pooler(_))
    }
}

/// Decides whether a server fits a purpose. `read_write` is what the URL's `target_session_attrs` require, if anything, and
/// `servers` the number of servers that the URL may lead to.
pub(super) fn judge(
    purpose: Purpose,
    in_recovery: bool,
    read_only: bool,
    read_write: Option<bool>,
    servers: usize,
) -> Result<(), Refusal> {
    let must_write = match purpose {
        Purpose::Inspect => return Ok(()),
        Purpose::Write => true,
        // One of several servers may be a previous primary.
        Purpose::ReadPrimary => read_write.unwrap_or(servers > 1),
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
    /// Reads the identity and the state of a server. It uses the simple protocol, because the extended one would fail behind a
    /// pooler in transaction mode before the connector can report the pooler.
    pub(super) async fn read(client: &Client) -> Result<Server, Error> {
        let row = match row(client, &format!("{PLAIN}{IDENTITY}{TABLE}")).await {
            Err(error) if error.as_db_error().is_some() => row(client, &format!("{PLAIN}{NO_IDENTITY}{TABLE}")).await?,
            row => row?,
        };
        let text = |column| row.try_get(column).ok().flatten().map(str::to_owned);
        let identity = Identity { system: text(5), timeline: text(6), started: text(4) };
        Ok(Server {
            identity,
            in_recovery: text(0).as_deref() == Some("1"),
            read_only: text(1).as_deref() == Some("on"),
            encoding: text(2).unwrap_or_default(),
            backend: text(3).unwrap_or_default(),
            messages: text(7).zip(text(8).and_then(|oid| oid.parse().ok())),
        })
    }

    /// Returns the identity of the table `messages` that the connection uses; `None` if it had none when it was opened.
    pub fn table(&self) -> Option<TableIdentity> {
        let (database, table) = self.messages.clone()?;
        Some(TableIdentity { server: self.identity.clone(), database, table })
    }
}

/// Reads whether the server is a standby, and whether a new session would be read-only.
pub(super) async fn state(client: &Client) -> Result<(bool, bool), Error> {
    let row = row(client, STATE).await?;
    let is = |column| row.try_get(column).ok().flatten() == Some("1");
    // A standby is read-only, whatever its settings are.
    Ok((is(0), is(0) || is(1)))
}

/// Runs a query that returns one row, and returns the row with all columns as text.
pub(super) async fn row(client: &Client, query: &str) -> Result<SimpleQueryRow, Error> {
    let result = client.simple_query(query).await?;
    let row = result.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row.expect("a query without a condition has a row"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_judged_by_the_purpose() {
        let (standby, read_only, primary) = ((true, true), (false, true), (false, false));
        for (purpose, server, read_write, servers, expected) in [
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
            let found = judge(purpose, in_recovery, is_read_only, read_write, servers);
            assert_eq!(found, expected, "{purpose:?} {server:?} {read_write:?} {servers}");
        }
    }

    /// Each part is unknown, or has one of two values.
    fn identities() -> impl Iterator<Item = Identity> {
        const VALUES: [Option<&str>; 3] = [None, Some("1"), Some("2")];
        (0..27).map(|i| {
            let [system, timeline, started] = [i / 9, i / 3 % 3, i % 3].map(|i| VALUES[i].map(str::to_owned));
            Identity { system, timeline, started }
        })
    }

    #[test]
    fn servers_with_a_different_known_part_are_never_the_same() {
        for one in identities() {
            for other in identities() {
                let parts =
                    [(&one.system, &other.system), (&one.timeline, &other.timeline), (&one.started, &other.started)];
                let differs = parts.iter().any(|(one, other)| one.is_some() && other.is_some() && one != other);
                let both_started = one.started.is_some() && other.started.is_some();
                let expected = match (differs, both_started) {
                    (true, _) => Comparison::Different,
                    (false, true) => Comparison::Same,
                    (false, false) => Comparison::Unknown,
                };
                assert_eq!(one.compare(&other), expected, "{one} and {other}");
                let lacks = parts.iter().any(|(one, other)| one.is_none() && other.is_some());
                assert_eq!(one.knows_less_than(&other), lacks, "{one} and {other}");
            }
        }
    }

    #[test]
    fn table_is_the_same_only_on_one_server_and_in_one_database() {
        let server = |started: Option<&str>| Identity {
            system: Some("7".into()),
            timeline: Some("00000001".into()),
            started: started.map(str::to_owned),
        };
        let table = |server, database: &str, table| TableIdentity { server, database: database.into(), table };
        let one = table(server(Some("42")), "app", 16_385);
        assert!(one.is(&one.clone()));
        for other in [
            table(server(Some("43")), "app", 16_385),
            table(server(None), "app", 16_385),
            table(server(Some("42")), "other", 16_385),
            table(server(Some("42")), "app", 16_386),
        ] {
            assert!(!one.is(&other) && !other.is(&one), "{other:?}");
        }
    }

    #[test]
    fn changed_rights_do_not_make_another_server() {
        let identity = |system: Option<&str>, timeline: Option<&str>, started: &str| Identity {
            system: system.map(str::to_owned),
            timeline: timeline.map(str::to_owned),
            started: Some(started.to_owned()),
        };
        let (known, without_rights) = (identity(Some("7"), Some("1"), "42"), identity(None, None, "42"));
        assert_eq!(known.compare(&without_rights), Comparison::Same);
        assert_eq!(without_rights.compare(&known), Comparison::Same);
        for other in [
            identity(Some("8"), Some("1"), "42"),
            identity(Some("7"), Some("2"), "42"),
            identity(Some("7"), Some("1"), "43"),
        ] {
            assert_eq!(known.compare(&other), Comparison::Different, "{other}");
        }
        assert_eq!(without_rights.compare(&identity(Some("7"), Some("1"), "43")), Comparison::Different);
    }
}
