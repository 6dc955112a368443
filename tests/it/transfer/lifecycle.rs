//! Start, stop, rebalances and migrations.

use std::time::{Duration, Instant};

use crate::support::kafka::{msg, record_of};
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// SIGTERM under load: consumed records are stored and committed, so that no record is consumed twice; exit code 0.
#[tokio::test]
async fn transfer_drains_and_commits_at_sigterm() {
    let world = World::new("drain").await;
    let writer = world.writer();
    const COUNT: i64 = 100_000;
    for i in 0..COUNT {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 100), &i.to_string(), "some body")));
    }
    writer.flush();
    let transfer = world.transfer("transfer", |spec| {
        spec.env("COMMIT_INTERVAL", "1h")
            .env("COMMIT_RECORDS", 100_000_000)
            .env("MAX_INFLIGHT_RECORDS", 5000)
            .env("BATCH_RECORDS", 200)
    });
    transfer.start().await.unwrap();
    world.wait_for_rows(5000).await;
    assert!(transfer.stop().await.unwrap().success());
    let committed = world.committed_offsets().await;
    let stored = world.rows().await.len() as i64;
    assert_eq!(committed.iter().sum::<i64>(), stored, "exactly the stored records are committed");
    assert!((5000..COUNT).contains(&stored), "it has to be stopped in the middle: {stored}");
    world.assert_offsets_do_not_lead(&committed).await;
    // The next process consumes no record again.
    transfer.start().await.unwrap();
    world.wait_for_rows(COUNT).await;
    world.assert_ordered_without_gaps().await;
    let metrics = transfer.metrics().await.unwrap();
    assert!(metrics.contains("msg_transfer_duplicate_messages_total 0"), "{metrics}");
    assert!(transfer.stop().await.unwrap().success());
}

/// Two processes join and leave the group in turns under load.
#[tokio::test]
async fn processes_that_join_and_leave_lose_and_duplicate_nothing() {
    let world = World::new("rebalance").await;
    let writer = world.writer();
    const COUNT: i64 = 60_000;
    for i in 0..COUNT {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 100), &i.to_string(), "some body")));
    }
    writer.flush();
    let slow = |spec: msg_stack::ServiceSpec| spec.env("BATCH_RECORDS", 50).env("LANES", 2);
    let [one, two] = ["one", "two"].map(|name| world.transfer(name, slow));
    one.start().await.unwrap();
    world.wait_for_rows(5_000).await;
    two.start().await.unwrap();
    world.wait_for_rows(15_000).await;
    assert!(one.stop().await.unwrap().success());
    world.wait_for_rows(25_000).await;
    one.start().await.unwrap();
    world.wait_for_rows(35_000).await;
    assert!(two.stop().await.unwrap().success());
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len() as i64, COUNT, "P1, P2");
    world.assert_ordered_without_gaps().await;
    assert!(one.stop().await.unwrap().success());
}

#[tokio::test]
async fn transfer_waits_for_a_late_database_and_kafka() {
    let (stack, _folder) = own_stack("late").await;
    let world = World::on(&stack, "late", 4);
    let transfer = world.transfer("transfer", |spec| spec);
    transfer.launch().unwrap();
    eventually("the transfer waits for the schema", async || {
        let (status, body) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await?;
        ensure(status == 503 && body.contains("schema: "), body)
    })
    .await;
    stack.postgres().start().await.unwrap();
    stack.postgres().create_database("late").await.unwrap();
    eventually("the transfer waits for Kafka", async || {
        let (status, body) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await?;
        ensure(status == 503 && !body.contains("schema: ") && body.contains("group: "), body)
    })
    .await;
    stack.kafka().start().await.unwrap();
    // The transfer may join the group without its topic. It has to find the topic once it exists.
    world.create_topic(&stack).await;
    let writer = world.writer();
    writer.put(&record_of(&msg("alice", "bob", "1", "hello")));
    writer.flush();
    world.wait_for_rows(1).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

/// SIGTERM ends the process promptly, no matter what it waits for at its start.
#[tokio::test]
async fn sigterm_ends_a_startup_that_waits_for_its_servers() {
    let (stack, _folder) = own_stack("stop_waiting").await;
    let world = World::on(&stack, "stop_waiting", 4);
    let transfer = world.transfer("transfer", |spec| spec);
    let assert_stops = async |waits_for: &str, lines: usize| {
        transfer.launch().unwrap();
        eventually("the transfer waits", async || {
            let (_, body) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await?;
            ensure(body.lines().any(|line| line.starts_with(waits_for)) && lines == body.lines().count(), body)
        })
        .await;
        let started = Instant::now();
        assert!(transfer.stop().await.unwrap().success());
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(8), "the transfer waited for {waits_for} {elapsed:?} longer");
    };
    assert_stops("schema: ", 2).await;
    stack.postgres().start().await.unwrap();
    stack.postgres().create_database("stop_waiting").await.unwrap();
    assert_stops("group: starting", 1).await;
    stack.stop().await;
}

#[tokio::test]
async fn newer_schema_is_refused_and_older_schema_waits_for_migration() {
    let world = World::new("schema").await;
    let waiting = world.transfer("waiting", |spec| spec.env("NO_MIGRATE", "true"));
    waiting.launch().unwrap();
    eventually("the reason names the command", async || {
        let (_, body) = msg_common::admin::probe(waiting.spec().admin.unwrap(), "/readyz").await?;
        ensure(body.contains("msg-transfer migrate"), body)
    })
    .await;
    // Of concurrent migrations one does the work, and the others find it done.
    let migrations: Vec<_> = (0..4)
        .map(|i| {
            let migrate = world.transfer(&format!("migrate-{i}"), |spec| spec.arg("migrate"));
            migrate.launch().unwrap();
            migrate
        })
        .collect();
    for migrate in &migrations {
        assert!(migrate.wait().await.unwrap().success());
    }
    waiting.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(waiting.stop().await.unwrap().success());
    let add_version =
        "INSERT INTO refinery_schema_history (version, name, applied_on, checksum) VALUES (999, 'x', 'x', '1')";
    world.database().await.execute(add_version, &[]).await.unwrap();
    for (name, arg) in [("serve", None), ("migrate", Some("migrate"))] {
        let newer =
            world.transfer(&format!("newer-{name}"), |spec| arg.into_iter().fold(spec, |spec, arg| spec.arg(arg)));
        newer.launch().unwrap();
        assert_eq!(newer.wait().await.unwrap().code(), Some(1), "{name}");
        let log = std::fs::read_to_string(newer.log()).unwrap();
        assert!(log.contains("version 999, which needs a build that knows version 999"), "{log}");
    }
}

#[tokio::test]
async fn transfer_reports_invalid_settings_with_exit_code_64() {
    let world = World::new("config").await;
    let bad = world.transfer("bad", |spec| {
        spec.env("LANES", "many").env("SESSION_TIMEOUT", "soon").env("KAFKA_PROPERTIES", "acks=0")
    });
    bad.launch().unwrap();
    assert_eq!(bad.wait().await.unwrap().code(), Some(64));
    let log = std::fs::read_to_string(bad.log()).unwrap();
    assert!(log.contains("--lanes") && log.contains("--session-timeout"), "{log}");
}
