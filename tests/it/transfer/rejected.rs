//! Records that the database rejects while it accepts their neighbours: only they are dead-lettered, as
//! REJECTED_BY_DATABASE.

use msg_common::proto::Msg;
use msg_stack::Service;

use crate::support::kafka::{msg, record_of};
use crate::support::transfer::metric;
use crate::support::world::{Row, World, count_rows};
use crate::support::{WAIT_TIMEOUT, ensure, within};

const COUNT: i64 = 5000;
const INBOXES: i64 = 7;

/// One record in a thousand, at any index of its batch, and the first and the last.
fn is_poison(i: i64) -> bool {
    i % 1000 == 500 || i == 0 || i == COUNT - 1
}

fn message(i: i64) -> Msg {
    let body = if is_poison(i) { format!("poison-{i}") } else { format!("body-{i}") };
    msg("a", &format!("inbox-{}", i % INBOXES), &i.to_string(), body)
}

/// A world with this rule on its table, a running transfer, and one poison record in a thousand.
async fn world_with_poison(name: &str, rule: &str) -> (World, Service) {
    let world = World::new(name).await;
    let transfer = world.running_transfer().await;
    world.database().await.batch_execute(rule).await.unwrap();
    let writer = world.writer();
    for i in 0..COUNT {
        writer.put(&record_of(&message(i)));
    }
    writer.flush();
    (world, transfer)
}

/// Waits until exactly the poison records are dead letters; checks that all others are rows, in order and without
/// gaps.
async fn assert_only_poison_is_dead_lettered(world: &World, transfer: &Service) {
    let database = world.database().await;
    let valid = (0..COUNT).filter(|i| !is_poison(*i)).count();
    within(WAIT_TIMEOUT / 2, "all other records are stored", async || {
        let rows = count_rows(&database, "messages").await?;
        ensure(rows == valid as i64, rows)
    })
    .await;
    world.wait_for_all_committed().await;
    let query = "SELECT reason, value, recv_id, msg_id FROM dead_letters";
    let mut dead: Vec<(String, Vec<u8>, Option<String>)> = Vec::new();
    for row in database.query(query, &[]).await.unwrap() {
        assert!(row.get::<_, Option<uuid::Uuid>>(3).is_some(), "the dead letter has its ID");
        dead.push((row.get(0), row.get(1), row.get(2)));
    }
    dead.sort();
    let mut expected: Vec<_> = (0..COUNT)
        .filter(|i| is_poison(*i))
        .map(|i| {
            let message = message(i);
            ("REJECTED_BY_DATABASE".to_owned(), record_of(&message).value.unwrap(), Some(message.recv_id))
        })
        .collect();
    expected.sort();
    assert_eq!(dead, expected);
    world.assert_ordered_without_gaps().await;
    let in_order = |rows: &[Row]| rows.is_sorted_by_key(|row| row.client_msg_id.parse::<i64>().unwrap());
    let rows = world.rows().await;
    assert!(rows.chunk_by(|a, b| a.recv_id == b.recv_id).all(in_order), "P3");
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert_eq!(metric(transfer, "msg_transfer_dead_letters_total").await, expected.len() as f64);
}

#[tokio::test]
async fn check_constraint_dead_letters_only_the_rows_it_rejects() {
    let check = "ALTER TABLE messages ADD CONSTRAINT clean CHECK (position('\\x706f69736f6e'::bytea IN content) = 0)";
    let (world, transfer) = world_with_poison("check", check).await;
    assert_only_poison_is_dead_lettered(&world, &transfer).await;
}

#[tokio::test]
async fn trigger_error_dead_letters_only_the_rows_it_rejects() {
    let trigger = "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = '22023'; END $$;
                   CREATE TRIGGER reject BEFORE INSERT ON messages FOR EACH ROW
                   WHEN (position('\\x706f69736f6e'::bytea IN NEW.content) > 0) EXECUTE FUNCTION reject()";
    let (world, transfer) = world_with_poison("trigger", trigger).await;
    assert_only_poison_is_dead_lettered(&world, &transfer).await;
}

/// The statements succeed, and the COMMIT fails.
#[tokio::test]
async fn commit_error_dead_letters_only_the_rows_it_rejects() {
    let trigger = "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = '23514'; END $$;
                   CREATE CONSTRAINT TRIGGER reject AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
                   WHEN (position('\\x706f69736f6e'::bytea IN NEW.content) > 0) EXECUTE FUNCTION reject()";
    let (world, transfer) = world_with_poison("at_commit", trigger).await;
    assert_only_poison_is_dead_lettered(&world, &transfer).await;
}

/// The rule is newer than the rows: a stored record that is consumed again is a duplicate, not a dead letter.
#[tokio::test]
async fn stored_record_is_not_dead_lettered_by_a_newer_rule() {
    let world = World::new("newer_rule").await;
    let transfer = world.running_transfer().await;
    let writer = world.writer();
    for i in 0..100 {
        writer.put(&record_of(&msg("a", "inbox", &i.to_string(), if i % 10 == 5 { "poison" } else { "some body" })));
    }
    writer.flush();
    world.wait_for_all_committed().await;
    let rule = "ALTER TABLE messages ADD CONSTRAINT clean CHECK (content <> 'poison'::bytea) NOT VALID";
    let database = world.database().await;
    database.batch_execute(rule).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
    // As after a crash before the offsets were committed: all records are consumed again.
    database.batch_execute("UPDATE progress SET next_offset = 0").await.unwrap();
    transfer.start().await.unwrap();
    writer.put(&record_of(&msg("a", "inbox", "new", "some body")));
    writer.flush();
    world.wait_for_rows(101).await;
    world.wait_for_all_committed().await;
    assert_eq!(world.dead_letters().await, []);
    world.assert_ordered_without_gaps().await;
}
