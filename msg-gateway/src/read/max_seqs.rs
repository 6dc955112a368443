//! GetMaxSeqs: the first and last `seq` of many inboxes, by probes of one key each, sent without waiting for one
//! another.

use futures_util::future::{try_join, try_join_all};
use msg_common::limits::check_id;
use msg_common::proto::{GetMaxSeqsResponse, InboxSeqs};
use msg_common::table::LAST_SEQ;
use tokio_postgres::Statement;

use crate::read::database::{Connection, Database, failure};
use crate::read::invalid;
use crate::status::Failure;

/// Maximum number of inboxes of one request.
const MAX_INBOXES: usize = 1000;

/// The first `seq` of an inbox, read like `LAST_SEQ`.
const FIRST: &str = "SELECT seq FROM messages WHERE recv_id = $1 ORDER BY seq LIMIT 1";

/// Checks the request. Returns `Invalid` with every violation.
pub fn check(recv_ids: &[String], max_id_bytes: usize) -> Result<(), Failure> {
    if !(1..=MAX_INBOXES).contains(&recv_ids.len()) {
        let description = format!("has {} entries; 1 to {MAX_INBOXES} are allowed", recv_ids.len());
        return Err(Failure::Invalid(vec![invalid("recv_ids", description)]));
    }
    let check = |(i, id): (usize, &String)| check_id(&format!("recv_ids[{i}]"), id, max_id_bytes);
    let violations: Vec<_> = recv_ids.iter().enumerate().filter_map(check).collect();
    if violations.is_empty() { Ok(()) } else { Err(Failure::Invalid(violations)) }
}

pub(crate) fn response_bytes(recv_ids: &[String]) -> usize {
    // Two numbers and their tags; twice, for the buffer that it is encoded into.
    const NUMBERS: usize = 32;
    2 * recv_ids.iter().map(|recv_id| recv_id.len() + NUMBERS).sum::<usize>()
}

/// Reads the first and last `seq` of all of these inboxes over one connection.
pub(crate) async fn read(database: &Database, recv_ids: Vec<String>) -> Result<GetMaxSeqsResponse, Failure> {
    let connection = database.connection().await?;
    let inboxes = probe_all(&connection, recv_ids).await.map_err(|error| failure(&error))?;
    connection.done();
    Ok(GetMaxSeqsResponse { inboxes })
}

async fn probe_all(connection: &Connection, recv_ids: Vec<String>) -> Result<Vec<InboxSeqs>, tokio_postgres::Error> {
    let (first, last) = try_join(connection.prepare_cached(FIRST), connection.prepare_cached(LAST_SEQ)).await?;
    let (first, last) = (&first, &last);
    let probes = recv_ids.into_iter().map(|recv_id| async move {
        let (first_seq, max_seq) =
            try_join(probe(connection, first, &recv_id), probe(connection, last, &recv_id)).await?;
        Ok(InboxSeqs { recv_id, first_seq, max_seq })
    });
    try_join_all(probes).await
}

/// Returns the `seq` that the statement finds, or 0 if the inbox is empty.
pub(crate) async fn probe(
    connection: &Connection,
    statement: &Statement,
    recv_id: &str,
) -> Result<i64, tokio_postgres::Error> {
    connection.query_opt(statement, &[&recv_id]).await?.map_or(Ok(0), |row| row.try_get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_inbox_is_checked() {
        let ids = |count: usize| vec!["bob".to_owned(); count];
        assert!(check(&ids(1), 8).is_ok() && check(&ids(1000), 8).is_ok());
        assert!(check(&[], 8).is_err() && check(&ids(1001), 8).is_err());
        let bad = ["bob".to_owned(), String::new(), "a\0".to_owned(), "123456789".to_owned()];
        let Err(Failure::Invalid(violations)) = check(&bad, 8) else { panic!("three are bad") };
        let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["recv_ids[1]", "recv_ids[2]", "recv_ids[3]"]);
    }
}
