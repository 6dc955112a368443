//! Records that are too large for the database: only they are dead-lettered.

use msg_common::proto::Msg;
use msg_stack::Stack;

use crate::support::kafka::{msg, record_of};
use crate::support::stack::stack;
use crate::support::transfer::metric;
use crate::support::world::World;
use crate::support::{ensure, eventually};

async fn world(stack: &Stack, name: &str) -> World {
    let world = World::on(stack, name, 1);
    stack.kafka().create_topic(name, 1, &[("max.message.bytes", "3000000")]).await.unwrap();
    stack.postgres().create_database(name).await.unwrap();
    world
}

/// Ten messages of one inbox, of which the one with index 5 is large.
fn msgs(large: usize) -> Vec<Msg> {
    let body = |i: i32| if i == 5 { noise(large) } else { b"small".to_vec() };
    (0..10).map(|i| msg("a", "inbox", &i.to_string(), body(i))).collect()
}

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

async fn assert_only_large_is_dead_lettered(world: &World, msgs: &[Msg]) {
    let writer = world.writer();
    for msg in msgs {
        writer.put(&record_of(msg));
    }
    writer.flush();
    world.wait_for_all_committed().await;
    let dead = world.dead_letters().await;
    assert_eq!(dead.iter().map(|(reason, ..)| reason.as_str()).collect::<Vec<_>>(), ["TOO_LARGE"]);
    assert_eq!(dead[0].2, record_of(&msgs[5]).value, "the dead letter has the whole value");
    let rows = world.rows().await;
    let ids: Vec<&str> = rows.iter().map(|row| row.client_msg_id.as_str()).collect();
    assert_eq!(ids, ["0", "1", "2", "3", "4", "6", "7", "8", "9"], "P1, P3");
    world.assert_ordered_without_gaps().await;
}

/// SQLSTATE 54000: an index row has a size limit.
#[tokio::test]
async fn record_above_a_server_limit_is_dead_lettered() {
    let world = world(stack().await, "limit").await;
    let transfer = world.running_transfer().await;
    world.database().await.batch_execute("CREATE INDEX ON messages (content)").await.unwrap();
    assert_only_large_is_dead_lettered(&world, &msgs(20_000)).await;
    assert!(transfer.stop().await.unwrap().success());
}

const SLOW_IF: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF length(NEW.content) > $LENGTH THEN PERFORM pg_sleep(5); END IF; RETURN NEW; END $$;
    CREATE TRIGGER slow BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION slow()";

/// SQLSTATE 57014: the statement times out because of a single record of more than 1 MiB.
#[tokio::test]
async fn huge_record_that_times_out_is_dead_lettered() {
    let world = world(stack().await, "huge").await;
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_STATEMENT_TIMEOUT", "500ms"));
    transfer.start().await.unwrap();
    world.database().await.batch_execute(&SLOW_IF.replace("$LENGTH", "1000000")).await.unwrap();
    assert_only_large_is_dead_lettered(&world, &msgs(1_500_000)).await;
}

/// SQLSTATE 57014 for a small record: the server is the cause, and it can recover.
#[tokio::test]
async fn small_record_that_times_out_is_retried() {
    let world = world(stack().await, "small").await;
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_STATEMENT_TIMEOUT", "500ms"));
    transfer.start().await.unwrap();
    let database = world.database().await;
    database.batch_execute(&SLOW_IF.replace("$LENGTH", "1000")).await.unwrap();
    let writer = world.writer();
    let msgs = msgs(10_000);
    for msg in &msgs {
        writer.put(&record_of(msg));
    }
    writer.flush();
    eventually("the record was retried", async || {
        let failures = metric(&transfer, "msg_transfer_store_failures_total{class=\"heavy\"}").await;
        ensure(failures >= 2.0, failures)
    })
    .await;
    assert_eq!(world.dead_letters().await, []);
    database.batch_execute("DROP TRIGGER slow ON messages").await.unwrap();
    world.wait_for_all_committed().await;
    assert_eq!((world.rows().await.len(), world.dead_letters().await.len()), (10, 0), "P1");
    world.assert_ordered_without_gaps().await;
}
