//! Detects a connection pooler that gives a client a different server process in each transaction.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::error::describe;

/// How long the first client may wait for its server process while the other one has a transaction open.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// A pooler may assign its server processes in turn, so one round may not detect it.
const ROUNDS: usize = 3;

/// Returns the evidence that a pooler changes server processes between transactions, if it does.
///
/// A single client may always get the same process. So `other`, a second client of the same address, opens a transaction.
/// Without a pooler, its process differs from the first client's, and the first client keeps its own.
pub(super) async fn find(client: &Client, other: &Client) -> Result<Option<String>, Error> {
    let mut waited = 0;
    for _ in 0..ROUNDS {
        let before = backend(client, "SELECT pg_backend_pid()").await?;
        let others = match backend(other, "BEGIN; SELECT pg_backend_pid()").await {
            Ok(others) => others,
            // Only PgBouncer in statement mode rejects a BEGIN.
            Err(error) if error.code() == Some(&SqlState::PROTOCOL_VIOLATION) => return Ok(Some(describe(&error))),
            Err(error) => return Err(error),
        };
        let during = tokio::time::timeout(QUERY_TIMEOUT, backend(client, "SELECT pg_backend_pid()")).await;
        other.batch_execute("ROLLBACK").await?;
        if others == before {
            return Ok(Some(format!("two sessions had the same server process, {before}")));
        }
        match during {
            Ok(during) => {
                let during = during?;
                if during != before {
                    return Ok(Some(changed(&before, &during)));
                }
            }
            // A server process of its own would have responded. A single timeout may come from a slow machine, so only a
            // timeout in each round counts.
            Err(_) => waited += 1,
        }
    }
    Ok((waited == ROUNDS).then(|| "a session had to wait for the server process of another one".to_owned()))
}

/// Describes a change of the server process within one session.
pub(super) fn changed(before: &str, after: &str) -> String {
    format!("the server process changed from {before} to {after} between two transactions of one session")
}

/// Runs a query whose last row is the server process, and returns it.
pub(super) async fn backend(client: &Client, query: &str) -> Result<String, Error> {
    let result = client.simple_query(query).await?;
    let pid = result.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(pid.unwrap_or_default())
}
