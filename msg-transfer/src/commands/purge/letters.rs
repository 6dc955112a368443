//! Old dead letters: only those that were replayed, and only when that is asked for.

use tokio_postgres::Error;
use uuid::Uuid;

use super::Purge;
use msg_common::partition::Partition;

/// In the order of the primary key, each time after the last one.
const DELETE: &str = "
    DELETE FROM dead_letters d USING (
        SELECT topic_id, kafka_partition, kafka_offset FROM dead_letters
        WHERE topic = $1 AND replayed_at IS NOT NULL AND first_seen < $2
          AND (topic_id, kafka_partition, kafka_offset) > ($3, $4, $5)
        ORDER BY topic_id, kafka_partition, kafka_offset LIMIT $6
    ) old
    WHERE d.topic_id = old.topic_id AND d.kafka_partition = old.kafka_partition AND d.kafka_offset = old.kafka_offset
    RETURNING d.topic_id, d.kafka_partition, d.kafka_offset";

const COUNT: &str =
    "SELECT count(*) FROM dead_letters WHERE topic = $1 AND replayed_at IS NOT NULL AND first_seen < $2";

impl Purge {
    /// Deletes them, in small transactions.
    pub(super) async fn dead_letters(&mut self, topic: &str) -> Result<(), Error> {
        if self.report.dry_run {
            let count: i64 = self.client.query_one(COUNT, &[&topic, &self.horizon]).await?.get(0);
            self.report.dead_letters_deleted = u64::try_from(count).unwrap_or(0);
            return Ok(());
        }
        let delete = self.client.prepare(DELETE).await?;
        let limit = i64::try_from(self.batch_rows).expect("at most 100000");
        let mut after: (Uuid, Partition, i64) = (Uuid::nil(), -1, -1);
        while !self.stopped() {
            let gone =
                self.client.query(&delete, &[&topic, &self.horizon, &after.0, &after.1, &after.2, &limit]).await?;
            let Some(last) = gone.iter().map(|row| (row.get(0), row.get(1), row.get(2))).max() else { break };
            after = last;
            self.report.dead_letters_deleted += gone.len() as u64;
            self.report.transactions += 1;
        }
        Ok(())
    }
}
