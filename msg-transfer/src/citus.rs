//! The other nodes of a Citus: the response of each to a command, and whether its workers are still the known servers.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use msg_common::postgres::Object;
use msg_common::repeat::Repeats;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::db_error;

static NOT_KNOWN: Repeats = Repeats::new();

/// By default Citus tries to connect to a node for 30 s, as long as a statement may run: then the error would not name
/// the node.
const BEGIN: &str = "BEGIN; SELECT set_config('citus.node_connection_timeout', '3000', true), \
     set_config('statement_timeout', '5000', true)";

/// The known primaries except this server. A disabled node does not run the command.
const OTHER_NODES: &str = "
    SELECT n.nodeid, n.nodename || ':' || n.nodeport, n.isactive, coalesce(r.success, false), coalesce(r.result, '')
    FROM pg_dist_node n LEFT JOIN run_command_on_all_nodes($1) r USING (nodeid)
    WHERE n.noderole = 'primary' AND n.groupid <> (SELECT groupid FROM pg_dist_local_group)
    ORDER BY n.nodeid";

/// The timeline is that of the current WAL, as for the server itself (`src/postgres/server.rs`). A standby has none.
const IDENTITY: &str = "SELECT format('%s %s', (SELECT system_identifier FROM pg_control_system()), \
     CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END)";

/// Reads whether this role may read the identity on the node.
pub(crate) const MAY_READ_IDENTITY: &str = "SELECT has_function_privilege('pg_control_system()', 'EXECUTE') \
     AND has_function_privilege('pg_walfile_name(pg_lsn)', 'EXECUTE') \
     AND has_function_privilege('pg_current_wal_lsn()', 'EXECUTE')";

/// The start of the text that Citus returns instead of a result. It is not translated.
const NOT_CONNECTED: &str = "failed to connect to";

/// A node other than the one that we are connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its `nodeid`, which stays when the node gets another address.
    pub id: i32,
    pub name: String,
    /// Whether the node runs commands; false after `citus_disable_node`.
    pub active: bool,
    /// The result that it returned, or the error.
    pub result: Result<String, String>,
}

/// Runs a query that returns one text on each other node, within 5 s. After an error of the connection, or if the
/// future is dropped before it ends, a transaction may be open.
pub(crate) async fn run_on_other_nodes(client: &Object, command: &str) -> Result<Vec<Node>, Error> {
    client.batch_execute(BEGIN).await?;
    let rows = client.query(OTHER_NODES, &[&command]).await;
    client.batch_execute("ROLLBACK").await?;
    let node = |row: &tokio_postgres::Row| {
        let text = row.get(4);
        let result = if row.get(3) { Ok(text) } else { Err(text) };
        Node { id: row.get(0), name: row.get(1), active: row.get(2), result }
    };
    Ok(rows?.iter().map(node).collect())
}

/// The identity of a worker's server. A restart does not change it; a promoted standby has another timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkerIdentity {
    system: String,
    timeline: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Worker {
    id: i32,
    name: String,
    /// `None` if this role may not read the identity; an error if the worker did not respond or is read-only.
    identity: Result<Option<WorkerIdentity>, WorkerError>,
}

/// Why a worker cannot store rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum WorkerError {
    #[error("the worker {worker} did not respond: {text}")]
    NoResponse { worker: String, text: String },
    #[error("the worker {0} is a standby, which stores nothing: promote it")]
    Standby(String),
    #[error("the worker {worker} returned no identity: {text:?}")]
    NoIdentity { worker: String, text: String },
}

/// Reads the identities of the workers.
async fn workers(client: &Object) -> Result<Vec<Worker>, Error> {
    let nodes = run_on_other_nodes(client, IDENTITY).await?;
    let failed_there = |node: &Node| node.result.as_ref().is_err_and(|error| !error.starts_with(NOT_CONNECTED));
    let rights = match nodes.iter().any(|node| node.active && failed_there(node)) {
        true => run_on_other_nodes(client, MAY_READ_IDENTITY).await?,
        false => Vec::new(),
    };
    Ok(nodes.into_iter().filter(|node| node.active).map(|node| worker(node, &rights)).collect())
}

/// As [`workers`]. Logs those that cannot be compared. Returns none if this role may not run a command on them.
pub(crate) async fn permitted_workers(client: &Object) -> Result<Vec<Worker>, Error> {
    match workers(client).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            warn_not_known(&db_error::describe(&error));
            Ok(Vec::new())
        }
        read => read.map(reported),
    }
}

/// As [`workers`] over the reference connection, which stays open even if they cannot be read: an unavailable worker is
/// reported when a lane connects to store in it.
pub(crate) async fn readable_workers(client: &Object) -> Result<Vec<Worker>, Error> {
    match workers(client).await {
        Err(error) if error.as_db_error().is_some() => {
            warn_not_known(&db_error::describe(&error));
            Ok(Vec::new())
        }
        read => read.map(reported),
    }
}

/// Logs the workers that cannot be compared, because this role may not read their identity.
fn reported(workers: Vec<Worker>) -> Vec<Worker> {
    if let Some(names) = unreadable(&workers) {
        warn_not_known(&format!("this role may not read the identity of {names}"));
    }
    workers
}

fn warn_not_known(error: &str) {
    if let Some(repeated) = NOT_KNOWN.occurred(error) {
        tracing::warn!(error, repeated, "cannot detect that a worker was replaced; see docs/rights.md");
    }
}

fn worker(node: Node, rights: &[Node]) -> Worker {
    let Node { id, name, result, .. } = node;
    let may_not_read = rights.iter().any(|node| node.id == id && node.result.as_deref() == Ok("f"));
    let identity = match result {
        Err(_) if may_not_read => Ok(None),
        Err(text) => Err(WorkerError::NoResponse { worker: name.clone(), text }),
        Ok(text) => match text.split_once(' ') {
            Some((_, "")) => Err(WorkerError::Standby(name.clone())),
            Some((system, timeline)) => {
                Ok(Some(WorkerIdentity { system: system.to_owned(), timeline: timeline.to_owned() }))
            }
            None => Err(WorkerError::NoIdentity { worker: name.clone(), text }),
        },
    };
    Worker { id, name, identity }
}

/// Describes the workers that cannot store rows; `None` if there is none.
pub(crate) fn unavailable(workers: &[Worker]) -> Option<String> {
    let errors: Vec<String> =
        workers.iter().filter_map(|worker| worker.identity.as_ref().err()).map(ToString::to_string).collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}

/// Names the workers whose identity this role may not read, so that they cannot be compared; `None` if there is none.
fn unreadable(workers: &[Worker]) -> Option<String> {
    let names: Vec<&str> =
        workers.iter().filter(|worker| worker.identity == Ok(None)).map(|worker| worker.name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// The identities that the workers had when they last responded.
#[derive(Debug, Default)]
pub(crate) struct KnownWorkers(BTreeMap<i32, WorkerIdentity>);

/// A worker that is another server than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub worker: String,
    before: WorkerIdentity,
    now: WorkerIdentity,
}

impl KnownWorkers {
    /// Updates the identities, and returns the changed ones. The identity of a worker that does not respond stays as it
    /// was.
    pub(crate) fn update(&mut self, workers: &[Worker]) -> Vec<Change> {
        let mut changes = Vec::new();
        for worker in workers {
            let Ok(Some(now)) = &worker.identity else { continue };
            let before = self.0.insert(worker.id, now.clone());
            if let Some(before) = before.filter(|before| before != now) {
                changes.push(Change { worker: worker.name.clone(), before, now: now.clone() });
            }
        }
        changes
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { worker, before, now } = self;
        if before.system == now.system {
            write!(
                f,
                "the worker {worker} was promoted or restored: timeline {}, before {}",
                now.timeline, before.timeline
            )
        } else {
            write!(f, "the worker {worker} is another server: {now}, before {before}")
        }
    }
}

impl Display for WorkerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {}, timeline {}", self.system, self.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: i32, result: Result<&str, &str>) -> Node {
        let result = result.map(str::to_owned).map_err(str::to_owned);
        Node { id, name: format!("w{id}:5432"), active: true, result }
    }

    fn responded(id: i32, text: &str) -> Worker {
        worker(node(id, Ok(text)), &[])
    }

    fn changes(before: &[Worker], now: &[Worker]) -> Vec<String> {
        let mut known = KnownWorkers::default();
        assert_eq!(known.update(before), [], "no worker was known");
        let changes: Vec<String> = known.update(now).iter().map(Change::to_string).collect();
        assert_eq!(known.update(now), [], "a change is returned once");
        changes
    }

    #[test]
    fn promoted_worker_is_named_with_both_timelines() {
        let before = [responded(2, "71 00000001"), responded(3, "72 00000001")];
        let now = [responded(2, "71 00000001"), responded(3, "72 00000002")];
        let expected = "the worker w3:5432 was promoted or restored: timeline 00000002, before 00000001";
        assert_eq!(changes(&before, &now), [expected]);
        assert_eq!(changes(&before, &before), [""; 0]);
    }

    #[test]
    fn replaced_worker_is_named_with_both_systems() {
        let (before, now) = ([responded(2, "71 00000001")], [responded(2, "99 00000001")]);
        let expected =
            "the worker w2:5432 is another server: system 99, timeline 00000001, before system 71, timeline 00000001";
        assert_eq!(changes(&before, &now), [expected]);
    }

    #[test]
    fn unavailable_worker_is_compared_when_available_again() {
        let mut known = KnownWorkers::default();
        known.update(&[responded(2, "71 00000001")]);
        let unavailable = [worker(node(2, Err("failed to connect to w2:5432")), &[])];
        assert_eq!(known.update(&unavailable), [], "it may be the same server later");
        assert_eq!(known.update(&[]), [], "a disabled worker is no change");
        assert_eq!(known.update(&[responded(2, "71 00000002")]).len(), 1);
        assert_eq!(known.update(&[responded(4, "74 00000001")]), [], "a worker that was added is no change");
    }

    #[test]
    fn worker_without_response_or_in_recovery_is_unavailable() {
        let good = responded(2, "71 00000001");
        assert_eq!(unavailable(std::slice::from_ref(&good)), None);
        let no_response = worker(node(3, Err("failed to connect to w3:5432")), &[]);
        let standby = responded(4, "71 ");
        let expected = "the worker w3:5432 did not respond: failed to connect to w3:5432; \
                        the worker w4:5432 is a standby, which stores nothing: promote it";
        assert_eq!(unavailable(&[good, no_response, standby]).as_deref(), Some(expected));
    }

    #[test]
    fn worker_whose_identity_may_not_be_read_is_available() {
        let denied = node(2, Err("ERROR: permission denied for function pg_control_system"));
        let worker_of = |right| worker(denied.clone(), &[node(2, Ok(right)), node(3, Ok("f"))]);
        assert_eq!(unavailable(&[worker_of("f")]), None);
        assert_eq!(unreadable(&[worker_of("f")]).as_deref(), Some("w2:5432"));
        assert_eq!(unreadable(&[worker_of("t"), responded(3, "72 00000001")]), None);
        assert!(unavailable(&[worker_of("t")]).is_some(), "the role may read it, so the error has another cause");
    }
}
