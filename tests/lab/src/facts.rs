//! Reads what the database holds when all is at rest.

use futures_util::TryStreamExt;
use msg_common::record;
use tokio_postgres::Client;

use super::error::LabError;
use super::evidence::{DeadLetter, Evidence, Row};
use super::message::number;

/// Reads both tables into the evidence.
pub(crate) async fn read(database: &Client, evidence: &mut Evidence) -> Result<(), LabError> {
    read_rows(database, evidence).await?;
    read_dead_letters(database, evidence).await
}

async fn read_rows(database: &Client, evidence: &mut Evidence) -> Result<(), LabError> {
    const ALL: &str = "
        SELECT recv_id, seq, send_id, client_msg_id, kafka_partition, kafka_offset,
               (extract(epoch FROM stored_time) * 1000000)::bigint,
               ('x' || left(encode(sha256(content), 'hex'), 16))::bit(64)::bigint,
               session_type = 1 AND content_type = 'text/plain' AND attributes = jsonb_build_object('n', client_msg_id),
               (extract(epoch FROM send_time) * 1000000)::bigint
        FROM messages ORDER BY recv_id, seq";
    let mut answer = std::pin::pin!(database.query_raw(ALL, [] as [i32; 0]).await?);
    while let Some(row) = answer.try_next().await? {
        let (inbox, sender, n): (&str, &str, &str) = (row.get(0), row.get(2), row.get(3));
        let (Some(inbox), Some(sender), Some(n)) = (number(inbox), number(sender), number(n)) else {
            evidence.foreign.push(format!("a row of {sender:?} to {inbox:?} with id {n:?}"));
            continue;
        };
        evidence.rows.push(Row {
            inbox,
            seq: row.get(1),
            sender,
            n,
            partition: row.get(4),
            offset: row.get(5),
            sent: row.get(9),
            stored: row.get(6),
            fingerprint: row.get::<_, i64>(7).cast_unsigned(),
            same: row.get::<_, Option<bool>>(8).unwrap_or(false),
        });
    }
    evidence.rows.sort_unstable_by_key(|row| (row.inbox, row.seq));
    Ok(())
}

async fn read_dead_letters(database: &Client, evidence: &mut Evidence) -> Result<(), LabError> {
    const ALL: &str = "
        SELECT kafka_partition, kafka_offset, key, value, reason, (extract(epoch FROM first_seen) * 1000000)::bigint
        FROM dead_letters ORDER BY 1, 2";
    for row in database.query(ALL, &[]).await? {
        let (key, value): (Option<&[u8]>, Option<Vec<u8>>) = (row.get(2), row.get(3));
        let version = record::VERSION.to_string();
        let record = record::decode(key, Some(version.as_bytes()), value.map(Into::into)).ok();
        let message =
            record.and_then(|record| Some((number(&record.msg.send_id)?, number(&record.msg.client_msg_id)?)));
        evidence.dead_letters.push(DeadLetter {
            partition: row.get(0),
            offset: row.get(1),
            message,
            reason: row.get(4),
            seen: row.get(5),
        });
    }
    Ok(())
}
