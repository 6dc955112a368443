//! Records that the database refuses while it takes their neighbours: these alone are put aside, as REJECTED_BY_DATABASE.

use msg_common::proto::Msg;
use msg_dev::stack::Service;

use crate::support::kafka::{good, msg};
use crate::support::transfer::metric;
use crate::support::world::{Row, World, count_rows};
use crate::support::{PATIENCE, ensure, within};

const COUNT: i64 = 5000;
const INBOXES: i64 = 7;

/// One in a thousand, wherever it falls in its batch; and the two ends.
fn is_poison(i: i64) -> bool {
    i % 1000 == 500 || i == 0 || i == COUNT - 1
}

fn message(i: i64) -> Msg {
    let body = if is_poison(i) { format!("poison-{i}") } else { format!("body-{i}") };
    msg("a", &format!("inbox-{}", i % INBOXES), &i.to_string(), body)
}

/// A world whose table has this of an operator's, and a transfer that meets one poisoned message in a thousand.
async fn poisoned(name: &str, refusal: &str) -> (World, Service) {
    let world = World::new(name).await;
    let transfer = world.running_transfer().await;
    world.database().await.batch_execute(refusal).await.unwrap();
    let writer = world.writer();
    for i in 0..COUNT {
        writer.put(&good(&message(i)));
    }
    writer.flush();
    (world, transfer)
}

/// Those and only those are dead letters, and all others are rows, in order and without gaps.
async fn assert_only_the_poisoned_are_set_aside(world: &World, transfer: &Service) {
    let database = world.database().await;
    let good_ones = (0..COUNT).filter(|i| !is_poison(*i)).count();
    within(PATIENCE / 2, "all that is not poisoned is stored", async || {
        let rows = count_rows(&database, "messages").await?;
        ensure(rows == good_ones as i64, rows)
    })
    .await;
    world.all_committed().await;
    let query = "SELECT reason, value, recv_id, msg_id FROM dead_letters";
    let mut dead: Vec<(String, Vec<u8>, Option<String>)> = Vec::new();
    for row in database.query(query, &[]).await.unwrap() {
        assert!(row.get::<_, Option<uuid::Uuid>>(3).is_some(), "its id is known");
        dead.push((row.get(0), row.get(1), row.get(2)));
    }
    dead.sort();
    let mut expected: Vec<_> = (0..COUNT)
        .filter(|i| is_poison(*i))
        .map(|i| {
            let message = message(i);
            ("REJECTED_BY_DATABASE".to_owned(), good(&message).value.unwrap(), Some(message.recv_id))
        })
        .collect();
    expected.sort();
    assert_eq!(dead, expected);
    world.assert_ordered_without_gaps().await;
    let in_order = |rows: &[Row]| rows.is_sorted_by_key(|row| row.client_msg_id.parse::<i64>().unwrap());
    let rows = world.rows().await;
    assert!(rows.chunk_by(|a, b| a.recv_id == b.recv_id).all(in_order), "P3");
    transfer.wait_ready(PATIENCE).await.unwrap();
    assert_eq!(metric(transfer, "msg_transfer_dead_letters_total").await, expected.len() as f64);
}

#[tokio::test]
async fn a_check_that_refuses_one_in_a_thousand_sets_those_aside_and_no_other() {
    let check = "ALTER TABLE messages ADD CONSTRAINT clean CHECK (position('\\x706f69736f6e'::bytea IN content) = 0)";
    let (world, transfer) = poisoned("check", check).await;
    assert_only_the_poisoned_are_set_aside(&world, &transfer).await;
}

#[tokio::test]
async fn a_trigger_that_refuses_one_in_a_thousand_sets_those_aside_and_no_other() {
    let trigger = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = '22023'; END $$;
                   CREATE TRIGGER refuse BEFORE INSERT ON messages FOR EACH ROW
                   WHEN (position('\\x706f69736f6e'::bytea IN NEW.content) > 0) EXECUTE FUNCTION refuse()";
    let (world, transfer) = poisoned("trigger", trigger).await;
    assert_only_the_poisoned_are_set_aside(&world, &transfer).await;
}

/// Each statement succeeds, and the COMMIT fails.
#[tokio::test]
async fn a_refusal_at_the_commit_sets_those_aside_and_no_other() {
    let trigger = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = '23514'; END $$;
                   CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
                   WHEN (position('\\x706f69736f6e'::bytea IN NEW.content) > 0) EXECUTE FUNCTION refuse()";
    let (world, transfer) = poisoned("at_commit", trigger).await;
    assert_only_the_poisoned_are_set_aside(&world, &transfer).await;
}

/// A rule that is newer than the rows: what was stored before and comes again is a duplicate, not a dead letter.
#[tokio::test]
async fn what_is_stored_is_not_set_aside_when_a_new_rule_refuses_it() {
    let world = World::new("newer_rule").await;
    let transfer = world.running_transfer().await;
    let writer = world.writer();
    for i in 0..100 {
        writer.put(&good(&msg("a", "inbox", &i.to_string(), if i % 10 == 5 { "poison" } else { "some body" })));
    }
    writer.flush();
    world.all_committed().await;
    let rule = "ALTER TABLE messages ADD CONSTRAINT clean CHECK (content <> 'poison'::bytea) NOT VALID";
    let database = world.database().await;
    database.batch_execute(rule).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
    // As after a crash before the commit: everything comes again.
    database.batch_execute("UPDATE progress SET next_offset = 0").await.unwrap();
    transfer.start().await.unwrap();
    writer.put(&good(&msg("a", "inbox", "new", "some body")));
    writer.flush();
    world.rows_reach(101).await;
    world.all_committed().await;
    assert_eq!(world.dead_letters().await, []);
    world.assert_ordered_without_gaps().await;
}
