//! The limit of the transfer: its own INSERT statement with rows that are ready, from four connections, and nothing else.
//! Also in the form that Citus needs, which returns each row.

use std::time::{Duration, Instant, SystemTime};

use futures_util::future::try_join_all;
use msg_transfer::lane::sql::{INSERT_MESSAGES, INSERT_MESSAGES_RETURNING, ServerKind};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use super::{Error, Load};

const CONNECTIONS: usize = 4;
const BATCH: usize = 2000;

/// Inserts the load's rows into the `messages` of an empty schema. Returns how long it took.
pub(crate) async fn run(url: &str, load: &Load, kind: ServerKind) -> Result<Duration, Error> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        clients.push(client);
    }
    let begun = Instant::now();
    let each = clients.iter().enumerate().map(|(number, client)| insert(client, number, load, kind));
    try_join_all(each).await?;
    Ok(begun.elapsed())
}

/// The rows of the inboxes that are this connection's, so that no two meet in one inbox.
async fn insert(client: &Client, number: usize, load: &Load, kind: ServerKind) -> Result<(), Error> {
    let returning = kind == ServerKind::Citus;
    let statement = client.prepare(if returning { INSERT_MESSAGES_RETURNING } else { INSERT_MESSAGES }).await?;
    let mine = (0..load.messages).filter(|n| n.wrapping_mul(7919) % load.inboxes % CONNECTIONS == number);
    let mine: Vec<usize> = mine.collect();
    let body = load.random_body();
    let mut last = std::collections::HashMap::<String, i64>::new();
    for batch in mine.chunks(BATCH) {
        let mut inboxes: Vec<(String, usize)> = batch.iter().map(|n| (load.inbox(*n), *n)).collect();
        inboxes.sort();
        let seq: Vec<i64> = inboxes
            .iter()
            .map(|(inbox, _)| {
                let seq = last.entry(inbox.clone()).or_default();
                *seq += 1;
                *seq
            })
            .collect();
        let recv_id: Vec<&str> = inboxes.iter().map(|(inbox, _)| inbox.as_str()).collect();
        let msg_id: Vec<Uuid> = inboxes.iter().map(|_| Uuid::from_u128(rand::random())).collect();
        let send_id = vec!["sender"; batch.len()];
        let client_msg_id: Vec<String> = inboxes.iter().map(|(_, n)| n.to_string()).collect();
        let session_type = vec![1_i16; batch.len()];
        let content_type = vec!["text/plain"; batch.len()];
        let content = vec![body.as_slice(); batch.len()];
        let attributes = vec![None::<&str>; batch.len()];
        let send_time = vec![SystemTime::now(); batch.len()];
        let partition = vec![0_i32; batch.len()];
        let offset: Vec<i64> = inboxes.iter().map(|(_, n)| *n as i64).collect();
        let parameters: [&(dyn ToSql + Sync); 12] = [
            &recv_id,
            &seq,
            &msg_id,
            &send_id,
            &client_msg_id,
            &session_type,
            &content_type,
            &content,
            &attributes,
            &send_time,
            &partition,
            &offset,
        ];
        if returning {
            let returned = client.query(&statement, &parameters).await?;
            assert_eq!(returned.len(), batch.len(), "all of them are new");
        } else {
            client.execute(&statement, &parameters).await?;
        }
    }
    Ok(())
}
