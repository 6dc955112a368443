//! A process that is frozen inside an open transaction while another takes over: its locks are released in bounded
//! time, and nothing that it still writes does harm.

use std::time::Duration;

use msg_stack::{Service, Signal};
use tokio_postgres::Client;

use crate::support::load::{assert_stored, write_messages};
use crate::support::transfer::{lost_partitions, short_session};
use crate::support::world::{World, count_rows};
use crate::support::{ensure, eventually, within};

/// The advisory lock that the test holds. Each INSERT waits for it inside its transaction.
const GATE: i64 = 7;
const COUNT: i64 = 2000;
const INBOXES: i64 = 20;
/// The statement timeout. It is longer than a session, so the next owner starts while the transaction is open.
const IDLE: Duration = Duration::from_secs(10);

/// Waits for the gate after the INSERT, with the rows inserted.
const AFTER_THE_INSERT: &str = "CREATE TRIGGER gate AFTER INSERT ON messages
                                FOR EACH STATEMENT EXECUTE FUNCTION wait_for_gate()";
/// Waits for the gate inside the COMMIT.
const IN_THE_COMMIT: &str = "CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED
                             FOR EACH ROW EXECUTE FUNCTION wait_for_gate()";

struct Frozen {
    world: World,
    zombie: Service,
    next: Service,
    gate: Client,
}

/// A transfer that is frozen while the server executes its statement.
async fn frozen(name: &str, trigger: &str) -> Frozen {
    let world = World::new(name).await;
    let [zombie, next] = ["zombie", "next"].map(|name| {
        world.transfer(name, |spec| {
            short_session(spec).env("DATABASE_STATEMENT_TIMEOUT", format!("{}s", IDLE.as_secs())).env("LANES", 2)
        })
    });
    zombie.start().await.unwrap();
    let gate = world.database().await;
    let function = "CREATE FUNCTION wait_for_gate() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$";
    gate.batch_execute(&format!("{function}; {trigger}")).await.unwrap();
    gate.execute("SELECT pg_advisory_lock($1)", &[&GATE]).await.unwrap();
    write_messages(&world.writer(), 0, COUNT, INBOXES);
    wait_for_session(&gate, "wait_event = 'advisory'").await;
    assert!(zombie.signal(Signal::Stop));
    Frozen { world, zombie, next, gate }
}

async fn wait_for_session(database: &Client, state: &str) {
    let query = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'msg-transfer' AND {state}"
    );
    eventually(state, async || {
        let found: i64 = database.query_one(&query, &[]).await?.get(0);
        ensure(found > 0, found)
    })
    .await;
}

impl Frozen {
    async fn open_the_gate(&self) {
        self.gate.execute("SELECT pg_advisory_unlock($1)", &[&GATE]).await.unwrap();
    }

    /// Checks that the successor stores everything, and that nothing changes when the zombie wakes and more messages
    /// arrive.
    async fn assert_harmless(&self) {
        write_messages(&self.world.writer(), COUNT, 2 * COUNT, INBOXES);
        self.world.wait_for_all_committed().await;
        assert_stored(&self.world, 2 * COUNT, INBOXES).await;
        assert!(self.zombie.signal(Signal::Cont));
        eventually("the zombie detects that its partitions are lost", async || {
            let lost_partitions = lost_partitions(&self.zombie).await;
            ensure(lost_partitions > 0.0, lost_partitions)
        })
        .await;
        write_messages(&self.world.writer(), 2 * COUNT, 3 * COUNT, INBOXES);
        self.world.wait_for_all_committed().await;
        assert_stored(&self.world, 3 * COUNT, INBOXES).await;
        for transfer in [&self.zombie, &self.next] {
            assert!(transfer.stop().await.unwrap().success());
        }
    }
}

/// The rows of the frozen process are inserted and not committed: the next owner waits for them, for a bounded time.
#[tokio::test]
async fn open_transaction_of_a_frozen_process_ends_in_bounded_time() {
    let frozen = frozen("open", AFTER_THE_INSERT).await;
    frozen.open_the_gate().await;
    wait_for_session(&frozen.gate, "state = 'idle in transaction'").await;
    frozen.next.start().await.unwrap();
    // The group expels the member after 6 s, and the transaction ends after 10 s.
    let limit = Duration::from_secs(6) + IDLE + Duration::from_secs(10);
    within(limit, "the successor stores everything", async || {
        let rows = count_rows(&frozen.gate, "messages").await?;
        ensure(rows == COUNT, rows)
    })
    .await;
    frozen.assert_harmless().await;
}

/// The COMMIT of the frozen process succeeds and its response is never read: the next owner finds the rows and stores
/// none again.
#[tokio::test]
async fn commit_sent_by_a_frozen_process_counts_once() {
    let frozen = frozen("sent_commit", IN_THE_COMMIT).await;
    assert_eq!(count_rows(&frozen.gate, "messages").await.unwrap(), 0);
    frozen.open_the_gate().await;
    eventually("the rows are committed without their process", async || {
        let rows = count_rows(&frozen.gate, "messages").await?;
        ensure(rows > 0, rows)
    })
    .await;
    frozen.next.start().await.unwrap();
    frozen.world.wait_for_all_committed().await;
    assert_stored(&frozen.world, COUNT, INBOXES).await;
    frozen.assert_harmless().await;
}

/// The process is killed, and its next start is its own successor.
#[tokio::test]
async fn commit_sent_by_a_killed_process_counts_once() {
    let frozen = frozen("sent_and_killed", IN_THE_COMMIT).await;
    frozen.zombie.kill().await;
    frozen.next.launch().unwrap();
    // The server executes the statement to its end: it checks its client only when it sends something.
    frozen.open_the_gate().await;
    frozen.world.wait_for_all_committed().await;
    assert_stored(&frozen.world, COUNT, INBOXES).await;
    assert!(frozen.next.stop().await.unwrap().success());
}
