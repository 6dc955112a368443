//! P1, P3 and P8 while one inbox cannot be written and all others can: it waits by itself, readiness names it, and
//! its records are stored in order once it can be written again.

use msg_stack::Service;
use tokio_postgres::Client;

use crate::support::kafka::{RecordWriter, msg, record_of};
use crate::support::transfer::{metric, wait_not_ready};
use crate::support::world::{World, count_rows};
use crate::support::{WAIT_TIMEOUT, ensure, within};

const MESSAGES: usize = 20_000;
const INBOXES: usize = 500;

/// Writes this many messages to other inboxes, in all partitions, and in between `to_bad` messages to the inbox
/// `bad`.
fn write_others(writer: &RecordWriter, to_bad: usize) {
    let every = MESSAGES / to_bad.max(1);
    for i in 0..MESSAGES {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % INBOXES), &i.to_string(), "some body")));
        if to_bad > 0 && i % every == 0 {
            writer.put(&record_of(&msg("a", "bad", &format!("bad-{i}"), "some body")));
        }
    }
    writer.flush();
}

/// Waits until every other inbox is stored; checks that nothing is dead-lettered.
async fn assert_others_are_stored(database: &Client) {
    let query = "SELECT count(*) FROM messages WHERE recv_id <> 'bad'";
    within(WAIT_TIMEOUT * 2, "every other inbox is stored", async || {
        let stored: i64 = database.query_one(query, &[]).await?.get(0);
        ensure(stored == MESSAGES as i64, stored)
    })
    .await;
    assert_eq!(count_rows(database, "dead_letters").await.unwrap(), 0, "no record causes the error");
}

/// Waits until the blocked records are stored too and the transfer is ready; checks that they are in order.
async fn assert_all_is_stored(world: &World, transfer: &Service, bad: i64) {
    let database = world.database().await;
    world.wait_for_rows(MESSAGES as i64 + bad).await;
    world.wait_for_all_committed().await;
    assert_eq!(count_rows(&database, "messages").await.unwrap(), MESSAGES as i64 + bad, "P2");
    assert_eq!(count_rows(&database, "dead_letters").await.unwrap(), 0, "no record causes the error");
    world.assert_ordered_without_gaps().await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert_eq!(metric(transfer, "msg_transfer_blocked_inboxes").await, 0.0);
    assert_eq!(metric(transfer, "msg_transfer_blocked_records").await, 0.0);
}

#[tokio::test]
async fn foreign_unique_index_blocks_its_inbox_alone() {
    let world = World::new("foreign_index").await;
    let transfer = world.running_transfer().await;
    let database = world.database().await;
    database.batch_execute("CREATE UNIQUE INDEX u ON messages (send_id) WHERE recv_id = 'bad'").await.unwrap();
    let writer = world.writer();
    writer.put(&record_of(&msg("a", "bad", "1", "first")));
    writer.put(&record_of(&msg("a", "bad", "2", "second")));
    writer.flush();
    write_others(&writer, 10);
    assert_others_are_stored(&database).await;
    wait_not_ready(&transfer, &["inbox (lane ", "partition ", "offset ", "23505", "unique index"]).await;
    assert_eq!(metric(&transfer, "msg_transfer_blocked_inboxes").await, 1.0);
    assert_eq!(metric(&transfer, "msg_transfer_blocked_records").await, 11.0);
    let (_, reasons) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await.unwrap();
    assert!(!reasons.contains("bad"), "the reason has the inbox's name: {reasons}");
    database.batch_execute("DROP INDEX u").await.unwrap();
    assert_all_is_stored(&world, &transfer, 12).await;
}

/// Another transaction has inserted the next row of the inbox and holds its lock. Rows stored before stay, and a
/// restart changes nothing.
#[tokio::test]
async fn lock_on_a_row_blocks_its_inbox_alone() {
    let world = World::new("row_lock").await;
    let spec = |spec: msg_stack::ServiceSpec| spec.env("DATABASE_STATEMENT_TIMEOUT", "4s").env("DRAIN_TIMEOUT", "2s");
    let transfer = world.transfer("transfer", spec);
    transfer.start().await.unwrap();
    let mut other_session = world.database().await;
    let lock = other_session.transaction().await.unwrap();
    let row = "INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content,
                                     send_time, kafka_partition, kafka_offset)
               VALUES ('bad', 1, gen_random_uuid(), 'x', 'x', 1, 'x', '', now(), 0, 0)";
    lock.execute(row, &[]).await.unwrap();
    let writer = world.writer();
    write_others(&writer, 10);
    let database = world.database().await;
    assert_others_are_stored(&database).await;
    wait_not_ready(&transfer, &["inbox (lane ", "55P03", "pg_locks"]).await;
    assert!(transfer.stop().await.unwrap().success());
    transfer.start().await.unwrap();
    wait_not_ready(&transfer, &["inbox (lane ", "55P03"]).await;
    lock.rollback().await.unwrap();
    assert_all_is_stored(&world, &transfer, 10).await;
}

#[tokio::test]
async fn slow_trigger_blocks_its_inbox_alone() {
    let world = World::new("slow_row").await;
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_STATEMENT_TIMEOUT", "3s"));
    transfer.start().await.unwrap();
    let database = world.database().await;
    let trigger = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN PERFORM pg_sleep(600); RETURN NEW; END $$;
                   CREATE TRIGGER slow BEFORE INSERT ON messages FOR EACH ROW
                   WHEN (NEW.recv_id = 'bad') EXECUTE FUNCTION slow()";
    database.batch_execute(trigger).await.unwrap();
    let writer = world.writer();
    write_others(&writer, 4);
    assert_others_are_stored(&database).await;
    wait_not_ready(&transfer, &["inbox (lane ", "57014"]).await;
    database.batch_execute("DROP TRIGGER slow ON messages").await.unwrap();
    assert_all_is_stored(&world, &transfer, 4).await;
}

/// An error that only this inbox causes and that will not pass, such as a row-level policy: neither a fault of a
/// record nor transient.
#[tokio::test]
async fn internal_error_blocks_its_inbox_alone() {
    let world = World::new("policy").await;
    let transfer = world.running_transfer().await;
    let database = world.database().await;
    for state in ["42501", "XX000", "40001"] {
        let trigger = format!(
            "DROP TRIGGER IF EXISTS policy ON messages;
             CREATE OR REPLACE FUNCTION policy() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = '{state}'; END $$;
             CREATE TRIGGER policy BEFORE INSERT ON messages FOR EACH ROW
             WHEN (NEW.recv_id = 'bad') EXECUTE FUNCTION policy()"
        );
        database.batch_execute(&trigger).await.unwrap();
        let writer = world.writer();
        for i in 0..100 {
            writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 10), &format!("{state}-{i}"), "some body")));
            if i % 30 == 0 {
                writer.put(&record_of(&msg("a", "bad", &format!("{state}-{i}"), "some body")));
            }
        }
        writer.flush();
        let others = "SELECT count(*) FROM messages WHERE recv_id <> 'bad' AND client_msg_id LIKE $1 || '%'";
        within(WAIT_TIMEOUT, "every other inbox is stored", async || {
            let stored: i64 = database.query_one(others, &[&state]).await?.get(0);
            ensure(stored == 100, stored)
        })
        .await;
        wait_not_ready(&transfer, &["inbox (lane ", state]).await;
        database.batch_execute("DROP TRIGGER policy ON messages").await.unwrap();
        world.wait_for_all_committed().await;
        transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    }
    assert_eq!(count_rows(&database, "dead_letters").await.unwrap(), 0, "no record causes the error");
    assert_eq!(count_rows(&database, "messages").await.unwrap(), 312);
    world.assert_ordered_without_gaps().await;
}

/// The INSERT succeeds and has no effect: neither a row nor an error.
#[tokio::test]
async fn discarding_trigger_blocks_its_inbox_alone() {
    let world = World::new("discarded").await;
    let transfer = world.running_transfer().await;
    let database = world.database().await;
    let trigger = "CREATE FUNCTION discard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
                   CREATE TRIGGER discard BEFORE INSERT ON messages FOR EACH ROW
                   WHEN (NEW.recv_id = 'bad') EXECUTE FUNCTION discard()";
    database.batch_execute(trigger).await.unwrap();
    let writer = world.writer();
    write_others(&writer, 10);
    assert_others_are_stored(&database).await;
    wait_not_ready(&transfer, &["inbox (lane ", "partition ", "offset ", "no effect", "trigger"]).await;
    assert_eq!(metric(&transfer, "msg_transfer_blocked_inboxes").await, 1.0);
    assert_eq!(count_rows(&database, "messages WHERE recv_id = 'bad'").await.unwrap(), 0);
    world.assert_offsets_do_not_lead(&world.committed_offsets().await).await;
    database.batch_execute("DROP TRIGGER discard ON messages").await.unwrap();
    assert_all_is_stored(&world, &transfer, 10).await;
}

/// The statements succeed, and the COMMIT fails, with an error that no record causes.
#[tokio::test]
async fn commit_error_blocks_its_inbox_alone() {
    let world = World::new("blocked_commit").await;
    let transfer = world.running_transfer().await;
    let database = world.database().await;
    let trigger = "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = '42501'; END $$;
                   CREATE CONSTRAINT TRIGGER reject AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
                   WHEN (NEW.recv_id = 'bad') EXECUTE FUNCTION reject()";
    database.batch_execute(trigger).await.unwrap();
    let writer = world.writer();
    write_others(&writer, 10);
    assert_others_are_stored(&database).await;
    wait_not_ready(&transfer, &["inbox (lane ", "not this one", "42501"]).await;
    database.batch_execute("DROP TRIGGER reject ON messages").await.unwrap();
    assert_all_is_stored(&world, &transfer, 10).await;
}

/// The rows of one inbox cannot be read, as with a damaged page of the index: neither can its last `seq`.
#[tokio::test]
async fn unreadable_inbox_is_blocked_alone() {
    let world = World::new("unreadable").await;
    let database = world.database().await;
    // A superuser reads all rows, whatever a policy says.
    let role = "DROP ROLE IF EXISTS unreadable; CREATE ROLE unreadable LOGIN; GRANT ALL ON SCHEMA public TO unreadable";
    database.batch_execute(role).await.unwrap();
    let url = world.database_url().replace("postgres@", "unreadable@");
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_URL", url));
    transfer.start().await.unwrap();
    let writer = world.writer();
    writer.put(&record_of(&msg("a", "bad", "first", "some body")));
    writer.flush();
    world.wait_for_all_committed().await;
    let damage = "CREATE FUNCTION read(inbox text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
                      IF inbox = 'bad' THEN RAISE EXCEPTION 'invalid page' USING ERRCODE = 'XX001'; END IF;
                      RETURN true;
                  END $$;
                  CREATE POLICY read ON messages USING (read(recv_id)) WITH CHECK (true);
                  ALTER TABLE messages ENABLE ROW LEVEL SECURITY; ALTER TABLE messages FORCE ROW LEVEL SECURITY";
    database.batch_execute(damage).await.unwrap();
    write_others(&writer, 10);
    assert_others_are_stored(&database).await;
    wait_not_ready(&transfer, &["inbox (lane ", "invalid page", "XX001"]).await;
    let repair = "ALTER TABLE messages DISABLE ROW LEVEL SECURITY; ALTER TABLE messages NO FORCE ROW LEVEL SECURITY";
    database.batch_execute(repair).await.unwrap();
    assert_all_is_stored(&world, &transfer, 11).await;
}

/// The whole table is locked: all records wait, the reason is reported, no inbox counts as blocked, and nothing is
/// dead-lettered.
#[tokio::test]
async fn locked_table_blocks_all_lanes_and_counts_no_blocked_inbox() {
    let world = World::new("table_lock").await;
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_STATEMENT_TIMEOUT", "2s"));
    transfer.start().await.unwrap();
    let writer = world.writer();
    write_others(&writer, 0);
    world.wait_for_rows(1).await;
    let mut other_session = world.database().await;
    let lock = other_session.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for i in 0..10 {
        writer.put(&record_of(&msg("a", "bad", &format!("bad-{i}"), "some body")));
    }
    writer.flush();
    wait_not_ready(&transfer, &["database (lane ", "55P03"]).await;
    assert_eq!(metric(&transfer, "msg_transfer_blocked_inboxes").await, 0.0);
    lock.rollback().await.unwrap();
    assert_all_is_stored(&world, &transfer, 10).await;
}
