//! P2 to P5 when the database confirms a COMMIT with a warning, because the wait for a synchronous standby was
//! cancelled: only one server has the rows, so no hint is sent for them, no `seq` is cached from them, and no offset
//! is committed.

use msg_stack::Stack;
use tokio_postgres::Client;

use super::hints::Hints;
use crate::support::kafka::{msg, record_of};
use crate::support::stack::own_postgres;
use crate::support::transfer::metric;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// Conditions for statements of the transfer that wait for the standby.
const COMMIT: &str = "application_name = 'msg-transfer' AND query = 'COMMIT'";
const PROGRESS: &str = "application_name = 'msg-transfer' AND query LIKE '%INTO progress%'";

const WARNED_BATCHES: &str = "msg_transfer_commit_warnings_total{what=\"batch\"}";
const WARNED_PROGRESS: &str = "msg_transfer_commit_warnings_total{what=\"progress\"}";

/// A world on a server of its own, whose settings the test changes.
struct Server {
    world: World,
    /// A session that does not wait for a standby itself.
    operator: Client,
    stack: Stack,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start(name: &str) -> Server {
        let (stack, folder) = own_postgres(name).await;
        let world = World::on(&stack, name, 4);
        world.create(&stack).await;
        let operator = world.database().await;
        operator.batch_execute("SET synchronous_commit = off").await.unwrap();
        // With this default, a session that does not change it gets no warning.
        operator.batch_execute("ALTER ROLE postgres SET client_min_messages = error").await.unwrap();
        Server { world, operator, stack, _folder: folder }
    }

    fn put(&self, recv_id: &str, client_msg_id: &str) {
        let writer = self.world.writer();
        writer.put(&record_of(&msg("a", recv_id, client_msg_id, "hello")));
        writer.flush();
    }

    /// Makes every later COMMIT wait for a standby that does not exist.
    async fn require_standby(&self) {
        self.set("synchronous_standby_names = 'missing'").await;
        let probe = self.world.database().await;
        let pid: i32 = probe.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let commits = tokio::spawn(async move {
            // The server has not read its settings yet as long as these do not wait.
            while probe.batch_execute("SELECT pg_logical_emit_message(true, 'probe', '')").await.is_ok() {}
        });
        self.wait_for_session(&format!("pid = {pid}")).await;
        commits.abort();
        self.operator.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    }

    async fn stop_requiring_standby(&self) {
        self.set("synchronous_standby_names = ''").await;
    }

    async fn set(&self, setting: &str) {
        self.operator.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
        self.operator.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    }

    /// Waits until a session with this condition waits for the standby; returns its process ID.
    async fn wait_for_session(&self, condition: &str) -> i32 {
        let query = format!("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND {condition} LIMIT 1");
        eventually(condition, async || {
            let found = self.operator.query_opt(&query, &[]).await?;
            found.map(|row| row.get(0)).ok_or_else(|| "no session waits".into())
        })
        .await
    }

    /// Cancels the wait of such a session, whose COMMIT then succeeds with a warning.
    async fn cancel_wait(&self, condition: &str) {
        let pid = self.wait_for_session(condition).await;
        self.operator.execute("SELECT pg_cancel_backend($1)", &[&pid]).await.unwrap();
    }

    /// `seq` and `client_msg_id` of the rows of an inbox.
    async fn rows(&self, recv_id: &str) -> Vec<(i64, String)> {
        let rows = self.world.rows().await.into_iter().filter(|row| row.recv_id == recv_id);
        rows.map(|row| (row.seq, row.client_msg_id)).collect()
    }
}

fn expected_rows<const N: usize>(rows: [(i64, &str); N]) -> Vec<(i64, String)> {
    rows.map(|(seq, id)| (seq, id.to_owned())).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_with_a_warning_sends_no_hint_and_caches_no_seq() {
    let server = Server::start("warned").await;
    let world = &server.world;
    // No progress row waits at the same time as the lane's COMMIT.
    let transfer = world.transfer("transfer", |spec| spec.env("LANES", 1).env("COMMIT_INTERVAL", "1h"));
    transfer.start().await.unwrap();
    let hints = Hints::of(world);
    server.put("bob", "1");
    hints.expect(&[("bob", 1)]).await;
    server.require_standby().await;
    for (id, warned) in [("2", 1.0), ("3", 2.0)] {
        server.put("bob", id);
        server.cancel_wait(COMMIT).await;
        eventually("the warning is counted", async || {
            let count = metric(&transfer, WARNED_BATCHES).await;
            ensure(count == warned, count)
        })
        .await;
    }
    assert_eq!(server.rows("bob").await, expected_rows([(1, "1"), (2, "2"), (3, "3")]));
    // As on a standby that has taken over: the lane has to read the last `seq` from the table again.
    server.operator.batch_execute("DELETE FROM messages WHERE recv_id = 'bob' AND seq = 3").await.unwrap();
    server.stop_requiring_standby().await;
    server.put("bob", "4");
    hints.expect(&[("bob", 3)]).await;
    // A repeat makes no second row.
    server.put("bob", "2");
    hints.expect(&[("bob", 0)]).await;
    assert_eq!(server.rows("bob").await, expected_rows([(1, "1"), (2, "2"), (3, "4")]));
    assert_eq!(metric(&transfer, WARNED_BATCHES).await, 2.0);
    let log = std::fs::read_to_string(transfer.log()).unwrap();
    assert!(log.contains("canceling wait for synchronous replication due to user request (01000)"), "not logged");
    assert!(transfer.stop().await.unwrap().success());
    server.stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_with_a_warning_commits_no_offset() {
    let server = Server::start("warned_progress").await;
    let world = &server.world;
    let transfer = world.running_transfer().await;
    server.put("bob", "1");
    world.wait_for_all_committed().await;
    let before = world.committed_offsets().await;
    server.require_standby().await;
    server.put("bob", "2");
    server.cancel_wait(COMMIT).await;
    // The second progress row is written after the first warning was handled.
    for warned in [1.0, 2.0] {
        server.cancel_wait(PROGRESS).await;
        eventually("the warning is counted", async || {
            let count = metric(&transfer, WARNED_PROGRESS).await;
            ensure(count == warned, count)
        })
        .await;
    }
    assert_eq!(world.committed_offsets().await, before, "P5: an offset of rows that only one server has was committed");
    server.stop_requiring_standby().await;
    world.wait_for_all_committed().await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert_eq!(server.rows("bob").await, expected_rows([(1, "1"), (2, "2")]));
    // The progress row was only written again: no record was consumed twice.
    assert_eq!(metric(&transfer, "msg_transfer_consumed_records_total").await, 2.0);
    assert!(transfer.stop().await.unwrap().success());
    server.stack.stop().await;
}
