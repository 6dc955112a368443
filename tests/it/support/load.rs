//! Load on a world's topic while a test changes the services, and checks of its rows at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_postgres::Client;

use super::kafka::{RecordWriter, msg, record_of};
use super::world::{World, count_rows};
use super::{ensure, eventually};

/// Writes messages until it is stopped. Message `i` goes to `inbox-{i % inboxes}`, so its `seq` is known.
pub(crate) struct Load {
    inboxes: i64,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<i64>>,
}

impl Load {
    /// Writes about 1,500 messages per second, so that every machine can store them.
    pub(crate) fn start(writer: RecordWriter, inboxes: i64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                // The flush needs up to 100 ms.
                write_messages(&writer, sent, sent + 150, inboxes);
                sent += 150;
            }
            sent
        };
        Load { inboxes, stop, thread: Some(std::thread::spawn(run)) }
    }

    /// Stops, waits until the group has committed all of it, and checks P1 to P4. Returns the number of messages.
    pub(crate) async fn finish(mut self, world: &World) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap();
        let sent = tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
        world.wait_for_all_committed().await;
        assert_stored(world, sent, self.inboxes).await;
        sent
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Writes the messages `from` to `to` of a load, and waits until the broker has them.
pub(crate) fn write_messages(writer: &RecordWriter, from: i64, to: i64, inboxes: i64) {
    for i in from..to {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % inboxes), &i.to_string(), "some body")));
    }
    writer.flush();
}

/// Checks P1 to P4 for the first `sent` messages of a load. The tables must have no other rows.
pub(crate) async fn assert_stored(world: &World, sent: i64, inboxes: i64) {
    let database = world.database().await;
    assert_eq!(count_rows(&database, "messages").await.unwrap(), sent, "P1, P2");
    assert_eq!(count_rows(&database, "dead_letters").await.unwrap(), 0, "P1");
    assert_in_order(&database, inboxes).await;
}

/// Checks P3 and P4 for a load: the `seq` of each message follows from its number.
pub(crate) async fn assert_in_order(database: &Client, inboxes: i64) {
    let query = "SELECT recv_id, seq, client_msg_id FROM messages
                 WHERE recv_id <> 'inbox-' || client_msg_id::bigint % $1 OR seq <> client_msg_id::bigint / $1 + 1
                 ORDER BY recv_id, seq LIMIT 5";
    let wrong = database.query(query, &[&inboxes]).await.unwrap();
    let wrong: Vec<(String, i64, String)> = wrong.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert!(wrong.is_empty(), "P3, P4: rows with a wrong seq: {wrong:?}");
}

impl World {
    /// Waits until the table has `count` rows more than now.
    pub(crate) async fn wait_for_more_rows(&self, count: i64) {
        let database = self.database().await;
        let before = count_rows(&database, "messages").await.unwrap();
        eventually("more messages are stored", async || {
            let found = count_rows(&database, "messages").await?;
            ensure(found >= before + count, format!("{before} rows before, {found} now"))
        })
        .await;
    }
}

/// Checks P5 every 100 ms while a test runs. For topics without holes in their offsets and without repeats.
pub(crate) struct OffsetWatch {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u32>,
}

impl OffsetWatch {
    pub(crate) fn start(world: &Arc<World>) -> OffsetWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let (world, stopped) = (Arc::clone(world), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut checks = 0;
            while !stopped.load(Ordering::Relaxed) {
                // The claim first and the rows second: rows that are inserted in between do no harm.
                let committed = world.committed_offsets().await;
                checks += u32::from(check_offsets(&world, &committed).await.is_ok());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            checks
        });
        OffsetWatch { stop, task }
    }

    /// Stops, and fails if there was no check or if an offset was ahead.
    pub(crate) async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let checks = self.task.await.unwrap();
        assert!(checks > 0, "P5 was never checked");
    }
}

/// Checks P5 once; returns an error if the database is unavailable.
async fn check_offsets(world: &World, committed: &[i64]) -> Result<(), tokio_postgres::Error> {
    let query = "WITH claimed AS (
                     SELECT p, max(next) AS next FROM (
                         SELECT p, next FROM unnest($1::integer[], $2::bigint[]) AS committed (p, next)
                         UNION ALL SELECT kafka_partition, next_offset FROM progress) AS any_claim GROUP BY p),
                 kept AS (SELECT kafka_partition AS p, kafka_offset AS o FROM messages
                          UNION SELECT kafka_partition, kafka_offset FROM dead_letters)
                 SELECT claimed.p, next, count(o) FROM claimed LEFT JOIN kept ON kept.p = claimed.p AND o < next
                 GROUP BY claimed.p, next HAVING count(o) <> next";
    let partitions: Vec<i32> = (0..).take(committed.len()).collect();
    let (client, connection) = tokio_postgres::connect(world.database_url(), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let leading = client.query(query, &[&partitions, &committed]).await?;
    let leading: Vec<(i32, i64, i64)> = leading.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert!(leading.is_empty(), "P5: partition, next offset, records kept below it: {leading:?}");
    Ok(())
}
