//! Finds a connection pooler that gives a client another server process in each transaction.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::error::describe;

/// How long one client waits for a server process while the other holds its own.
const PATIENCE: Duration = Duration::from_secs(2);
/// A pooler may hand out its server processes in turn.
const ROUNDS: usize = 3;

/// Says what shows that a pooler changes server processes between transactions, if it does.
///
/// One client alone may get the same process again and again. So `other`, a second client of the same address, holds a
/// transaction open meanwhile: in it, it must not have the first one's process, and the first one must keep its own.
pub(super) async fn find(client: &Client, other: &Client) -> Result<Option<String>, Error> {
    let mut waited = 0;
    for _ in 0..ROUNDS {
        let before = backend(client, "SELECT pg_backend_pid()").await?;
        let others = match backend(other, "BEGIN; SELECT pg_backend_pid()").await {
            Ok(others) => others,
            // PgBouncer in statement mode. A server takes a BEGIN from everybody.
            Err(error) if error.code() == Some(&SqlState::PROTOCOL_VIOLATION) => return Ok(Some(describe(&error))),
            Err(error) => return Err(error),
        };
        let during = tokio::time::timeout(PATIENCE, backend(client, "SELECT pg_backend_pid()")).await;
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
            // Its own process would have answered. A slow machine is no pooler, unless it is slow each time.
            Err(_) => waited += 1,
        }
    }
    Ok((waited == ROUNDS).then(|| "a session had to wait for the server process of another one".to_owned()))
}

/// What a change of the server process within one session means.
pub(super) fn changed(before: &str, after: &str) -> String {
    format!("the server process changed from {before} to {after} between two transactions of one session")
}

/// The server process, by a query whose only row is that.
pub(super) async fn backend(client: &Client, query: &str) -> Result<String, Error> {
    let answer = client.simple_query(query).await?;
    let pid = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(pid.unwrap_or_default())
}
