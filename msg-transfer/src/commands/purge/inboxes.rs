//! The walk over the inboxes: one query of the primary key for each. From inboxes with old rows it deletes a prefix, in
//! small transactions. No row is read twice. Every statement names one inbox, so a distributed database runs it on one
//! node.

use std::time::SystemTime;

use futures_util::future::try_join_all;
use tokio_postgres::{Error, Statement};

use super::Purge;

/// The next inbox, and whether its oldest row is old.
const NEXT_INBOX: &str =
    "SELECT recv_id, stored_time < $2 FROM messages WHERE recv_id > $1 ORDER BY recv_id, seq LIMIT 1";

/// The rows of an inbox after this one, and whether they are old.
const ROWS: &str = "SELECT seq, stored_time < $3 FROM messages WHERE recv_id = $1 AND seq > $2 ORDER BY seq LIMIT $4";

/// Deletes all rows of the range, whether the walk read them or not. Rows below it are deleted already; without the
/// lower bound each statement would scan the dead rows that the statements before it left.
const DELETE: &str = "DELETE FROM messages WHERE recv_id = $1 AND seq > $2 AND seq <= $3";

#[derive(Debug)]
struct Prefix {
    recv_id: String,
    after: i64,
    up_to: i64,
    rows: usize,
}

/// Returns how many of these rows, which are in the order of `seq`, can be deleted: the old rows before the first
/// younger one, except the last row. The newest row of an inbox stays, otherwise `seq` would start at 1 again.
fn deletable(old: &[bool]) -> usize {
    let below_the_last = &old[..old.len().saturating_sub(1)];
    below_the_last.iter().take_while(|old| **old).count()
}

impl Purge {
    /// Walks over all inboxes, and deletes their old messages.
    pub(super) async fn messages(&mut self) -> Result<(), Error> {
        let next_inbox = self.client.prepare(NEXT_INBOX).await?;
        let rows = self.client.prepare(ROWS).await?;
        let delete = self.client.prepare(DELETE).await?;
        let mut gathered: Vec<Prefix> = Vec::new();
        let mut capacity = self.batch_rows;
        let mut cursor = String::new();
        while !self.stopped() {
            let Some(found) = self.client.query_opt(&next_inbox, &[&cursor, &self.horizon]).await? else { break };
            cursor = found.get(0);
            self.report.inboxes_seen += 1;
            if !found.get::<_, bool>(1) {
                continue;
            }
            let mut after = 0;
            let mut purged = false;
            while !self.stopped() {
                let Some((prefix, more)) = self.prefix(&rows, &cursor, after, capacity).await? else { break };
                after = prefix.up_to;
                capacity -= prefix.rows;
                gathered.push(prefix);
                purged = true;
                if capacity == 0 {
                    self.delete(&delete, &mut gathered).await?;
                    capacity = self.batch_rows;
                }
                if !more {
                    break;
                }
            }
            self.report.inboxes_purged += u64::from(purged);
        }
        // Also after a signal: the gathered rows need only one small transaction.
        self.delete(&delete, &mut gathered).await
    }

    /// Returns the next rows of an inbox that can be deleted, up to `capacity`, and whether there may be more.
    async fn prefix(
        &self,
        rows: &Statement,
        recv_id: &str,
        after: i64,
        capacity: usize,
    ) -> Result<Option<(Prefix, bool)>, Error> {
        // One more than can be deleted: the row after them.
        let limit = i64::try_from(capacity + 1).expect("at most 100001");
        let horizon: &SystemTime = &self.horizon;
        let found = self.client.query(rows, &[&recv_id, &after, horizon, &limit]).await?;
        let old: Vec<bool> = found.iter().map(|row| row.get(1)).collect();
        let count = deletable(&old);
        let Some(last) = count.checked_sub(1) else { return Ok(None) };
        let prefix = Prefix { recv_id: recv_id.to_owned(), after, up_to: found[last].get(0), rows: count };
        Ok(Some((prefix, count == capacity)))
    }

    async fn delete(&mut self, delete: &Statement, gathered: &mut Vec<Prefix>) -> Result<(), Error> {
        if gathered.is_empty() {
            return Ok(());
        }
        let mut deleted: u64 = gathered.iter().map(|prefix| prefix.rows as u64).sum();
        if !self.report.dry_run {
            let transaction = self.client.transaction().await?;
            let (on, statement) = (&transaction, delete);
            // All statements are sent before the first result is awaited.
            let sent = gathered.iter().map(|prefix| async move {
                on.execute(statement, &[&prefix.recv_id, &prefix.after, &prefix.up_to]).await
            });
            deleted = try_join_all(sent).await?.iter().sum();
            transaction.commit().await?;
            self.report.transactions += 1;
        }
        self.report.messages_deleted += deleted;
        gathered.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purge_deletes_a_prefix_and_never_the_newest_row() {
        assert_eq!(deletable(&[]), 0);
        assert_eq!(deletable(&[true]), 0);
        assert_eq!(deletable(&[true, true, true]), 2);
        assert_eq!(deletable(&[true, false]), 1);
        assert_eq!(deletable(&[false, true, true]), 0);
        assert_eq!(deletable(&[true, false, true, true]), 1);
    }
}
