//! Deletes old dead letters, only those that were replayed, and only with `--dead-letters`.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::Purge;
use msg_common::partition::Partition;

/// Deletes in the order of the primary key, from the last deleted row on.
const DELETE: &str = "
    DELETE FROM dead_letters d USING (
        SELECT topic_id, kafka_partition, kafka_offset, leader_epoch FROM dead_letters
        WHERE topic = $1 AND replayed_at IS NOT NULL AND first_seen < $2
          AND (topic_id, kafka_partition, kafka_offset, leader_epoch) > ($3, $4, $5, $6)
        ORDER BY topic_id, kafka_partition, kafka_offset, leader_epoch LIMIT $7
    ) old
    WHERE d.topic_id = old.topic_id AND d.kafka_partition = old.kafka_partition AND d.kafka_offset = old.kafka_offset
      AND d.leader_epoch = old.leader_epoch
    RETURNING d.topic_id, d.kafka_partition, d.kafka_offset, d.leader_epoch";

const COUNT: &str =
    "SELECT count(*) FROM dead_letters WHERE topic = $1 AND replayed_at IS NOT NULL AND first_seen < $2";

impl Purge {
    /// Deletes the replayed dead letters, in small transactions.
    pub(super) async fn dead_letters(&mut self, topic: &str) -> Result<(), Error> {
        if self.report.dry_run {
            let count: i64 = self.client.query_one(COUNT, &[&topic, &self.horizon]).await?.get(0);
            self.report.dead_letters_deleted = u64::try_from(count).unwrap_or(0);
            return Ok(());
        }
        let delete = self.client.prepare(DELETE).await?;
        let limit = i64::try_from(self.batch_rows).expect("at most 100000");
        let mut after: (Uuid, Partition, i64, i32) = (Uuid::nil(), -1, -1, -1);
        while !self.stopped() {
            let (topic_id, partition, offset, leader_epoch) = &after;
            let parameters: [&(dyn ToSql + Sync); 7] =
                [&topic, &self.horizon, topic_id, partition, offset, leader_epoch, &limit];
            let deleted = self.client.query(&delete, &parameters).await?;
            let position = |row: &Row| (row.get(0), row.get(1), row.get(2), row.get(3));
            let Some(last) = deleted.iter().map(position).max() else { break };
            after = last;
            self.report.dead_letters_deleted += deleted.len() as u64;
            self.report.transactions += 1;
        }
        Ok(())
    }
}
