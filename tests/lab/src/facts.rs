//! Reads the database after everything is stored.

use futures_util::TryStreamExt;
use msg_common::proto::Msg;
use msg_common::{record, table};
use tokio_postgres::Client;

use super::error::LabError;
use super::evidence::{DeadLetter, Evidence, Row};
use super::message::{Messages, altered, is_as_sent};

/// Reads both tables into the evidence.
pub(crate) async fn read(database: &Client, messages: &dyn Messages, evidence: &mut Evidence) -> Result<(), LabError> {
    read_rows(database, messages, evidence).await?;
    read_dead_letters(database, messages, evidence).await
}

async fn read_rows(database: &Client, messages: &dyn Messages, evidence: &mut Evidence) -> Result<(), LabError> {
    let all = format!(
        "SELECT m.recv_id, m.msg_id, m.seq, m.kafka_partition, m.kafka_offset, \
                (extract(epoch FROM m.send_time) * 1000000)::bigint, \
                (extract(epoch FROM m.stored_time) * 1000000)::bigint, {} \
         FROM messages m",
        table::select_msg("m.content")
    );
    let mut rows = std::pin::pin!(database.query_raw(&all, [] as [i32; 0]).await?);
    while let Some(row) = rows.try_next().await? {
        let (recv_id, msg_id): (&str, _) = (row.get(0), row.get(1));
        let msg = match table::read_msg(&row, recv_id) {
            Ok(msg) => msg,
            Err(error) => {
                evidence.foreign.push(format!("unreadable row of {recv_id:?}: {error}"));
                continue;
            }
        };
        let Some(numbers) = messages.numbers(&msg, msg_id) else {
            let Msg { send_id, client_msg_id, .. } = msg;
            evidence.foreign.push(format!("row of {send_id:?} to {recv_id:?} with client_msg_id {client_msg_id:?}"));
            continue;
        };
        evidence.rows.push(Row {
            inbox: numbers.inbox,
            seq: row.get(2),
            sender: numbers.sender,
            n: numbers.n,
            partition: row.get(3),
            offset: row.get(4),
            sent: row.get(5),
            stored: row.get(6),
            same: is_as_sent(messages, numbers, &msg, msg_id),
        });
    }
    evidence.rows.sort_unstable_by_key(|row| (row.inbox, row.seq));
    Ok(())
}

async fn read_dead_letters(
    database: &Client,
    messages: &dyn Messages,
    evidence: &mut Evidence,
) -> Result<(), LabError> {
    const ALL: &str = "
        SELECT kafka_partition, kafka_offset, key, value, reason, (extract(epoch FROM first_seen) * 1000000)::bigint
        FROM dead_letters ORDER BY 1, 2";
    for row in database.query(ALL, &[]).await? {
        let (key, value): (Option<&[u8]>, Option<Vec<u8>>) = (row.get(2), row.get(3));
        let version = record::VERSION.to_string();
        let record = record::decode(key, Some(version.as_bytes()), value.map(Into::into)).ok();
        let message = record.and_then(|record| Some((messages.numbers(&record.msg, record.msg_id)?, record.msg)));
        evidence.dead_letters.push(DeadLetter {
            partition: row.get(0),
            offset: row.get(1),
            message: message.as_ref().map(|(numbers, _)| (numbers.sender, numbers.n)),
            altered: message.is_some_and(|(numbers, msg)| msg == altered(messages.message(numbers))),
            reason: row.get(4),
            seen: row.get(5),
        });
    }
    Ok(())
}
