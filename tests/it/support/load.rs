//! Load on a world's topic while a test does something to the services, and what has to be there of it at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_postgres::Client;

use super::kafka::{Writer, good, msg};
use super::world::{World, count_rows};
use super::{ensure, eventually};

/// Writes until it is stopped: message `i` goes to `inbox-{i % inboxes}`, so its place in the inbox is known.
pub(crate) struct Load {
    inboxes: i64,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<i64>>,
}

impl Load {
    /// About 1,500 a second: no machine is too slow to store them.
    pub(crate) fn start(writer: Writer, inboxes: i64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let write = move || {
            let mut sent = 0;
            while !told.load(Ordering::Relaxed) {
                // The flush takes the client 100 ms.
                write(&writer, sent, sent + 150, inboxes);
                sent += 150;
            }
            sent
        };
        Load { inboxes, stop, thread: Some(std::thread::spawn(write)) }
    }

    /// Stops, waits until the group has committed all of it, and checks P1 to P5. Tells how many were sent.
    pub(crate) async fn finish(mut self, world: &World) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap();
        let sent = tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
        world.all_committed().await;
        assert_stored(world, sent, self.inboxes).await;
        sent
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Messages `from` to `to` of a load, and waits until the broker has them.
pub(crate) fn write(writer: &Writer, from: i64, to: i64, inboxes: i64) {
    for i in from..to {
        writer.put(&good(&msg("a", &format!("inbox-{}", i % inboxes), &i.to_string(), "some body")));
    }
    writer.flush();
}

/// P1 to P4 of the first `sent` messages of a load, with nothing else in the tables.
pub(crate) async fn assert_stored(world: &World, sent: i64, inboxes: i64) {
    let database = world.database().await;
    assert_eq!(count_rows(&database, "messages").await.unwrap(), sent, "P1, P2");
    assert_eq!(count_rows(&database, "dead_letters").await.unwrap(), 0, "P1");
    assert_in_place(&database, inboxes).await;
}

/// P3 and P4 of a load: each message is where its number says.
pub(crate) async fn assert_in_place(database: &Client, inboxes: i64) {
    let query = "SELECT recv_id, seq, client_msg_id FROM messages
                 WHERE recv_id <> 'inbox-' || client_msg_id::bigint % $1 OR seq <> client_msg_id::bigint / $1 + 1
                 ORDER BY recv_id, seq LIMIT 5";
    let wrong = database.query(query, &[&inboxes]).await.unwrap();
    let wrong: Vec<(String, i64, String)> = wrong.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert!(wrong.is_empty(), "P3, P4: these are not in their places: {wrong:?}");
}

impl World {
    /// Waits until there are so many rows more than now: it goes on.
    pub(crate) async fn goes_on_by(&self, count: i64) {
        let database = self.database().await;
        let before = count_rows(&database, "messages").await.unwrap();
        eventually("more is stored", async || {
            let found = count_rows(&database, "messages").await?;
            ensure(found >= before + count, format!("{before} rows before, {found} now"))
        })
        .await;
    }
}

/// P5, looked at again and again while a test runs. For topics without holes in their offsets, and without repeats.
pub(crate) struct OffsetWatch {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u32>,
}

impl OffsetWatch {
    pub(crate) fn start(world: &Arc<World>) -> OffsetWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let (world, told) = (Arc::clone(world), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut looks = 0;
            while !told.load(Ordering::Relaxed) {
                // First what is claimed, then what is there.
                let committed = world.committed().await;
                looks += u32::from(look(&world, &committed).await.is_ok());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            looks
        });
        OffsetWatch { stop, task }
    }

    /// Ends, and fails if an offset has led.
    pub(crate) async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let looks = self.task.await.unwrap();
        assert!(looks > 0, "nobody has looked");
    }
}

/// An error when the database does not answer.
async fn look(world: &World, committed: &[i64]) -> Result<(), tokio_postgres::Error> {
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
