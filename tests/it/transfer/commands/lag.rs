//! `lag`, and the gauges that the running service computes in the same way.

use std::time::Duration;

use super::{HOUR, migrated, put_as_of, run};
use crate::support::kafka::{good, msg};
use crate::support::stack::stack;
use crate::support::world::World;
use crate::support::{PATIENCE, ensure, eventually};

const WEEK: f64 = 7.0 * 24.0 * 3600.0;

#[tokio::test]
async fn lag_counts_from_what_is_stored_in_records_and_in_time() {
    let world = World::new("lag").await;
    // Two days old and stored; then an hour, which is what counts.
    put_as_of(&world, 1, &good(&msg("alice", "bob", "1", "x")), 48 * HOUR);
    let transfer = world.running_transfer().await;
    world.all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    put_as_of(&world, 1, &good(&msg("alice", "bob", "2", "x")), HOUR);
    put_as_of(&world, 1, &good(&msg("alice", "bob", "3", "x")), Duration::ZERO);
    put_as_of(&world, 2, &good(&msg("alice", "carol", "1", "x")), Duration::ZERO);
    let report = run(&world, "lag --output json").await.assert_code(0).json();
    let behind = &report["partitions"][1];
    assert_eq!((&behind["committed"], &behind["progress"], &behind["end"]), (&1.into(), &1.into(), &3.into()));
    assert_eq!(behind["lag_records"], 2);
    let seconds = behind["lag_seconds"].as_f64().unwrap();
    assert!((3600.0..4000.0).contains(&seconds), "{behind}");
    let left = behind["retention_headroom_seconds"].as_f64().unwrap();
    assert!((WEEK - 4000.0..=WEEK - 3600.0).contains(&left), "{behind}");
    let fresh = &report["partitions"][2];
    assert_eq!((&fresh["progress"], &fresh["lag_records"]), (&0.into(), &1.into()));
    let empty = &report["partitions"][0];
    assert_eq!((empty["lag_seconds"].as_f64(), empty["retention_headroom_seconds"].as_f64()), (Some(0.0), None));
    let total = &report["total"];
    assert_eq!((&total["lag_records"], &total["lag_seconds"]), (&3.into(), &behind["lag_seconds"]));
    let table = run(&world, "lag").await.assert_code(0).stdout;
    let last: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(last[..3], ["total", "3", "1h"], "{table}");
    // Asked from outside: nothing was moved, and nobody joined.
    assert_eq!(world.committed().await.iter().sum::<i64>(), 1);
    assert!(transfer.start().await.is_ok());
    world.all_committed().await;
    let report = run(&world, "lag --output json").await.assert_code(0).json();
    assert_eq!(report["total"]["lag_records"], 0);
    assert!(transfer.stop().await.unwrap().success());
}

/// Large batches in many partitions: each is told, and none waits for the others' backlog.
#[tokio::test]
async fn lag_in_time_is_told_for_many_partitions_at_once() {
    let stack = stack().await;
    let world = World::on(stack, "lag_many", 48);
    world.create(stack).await;
    run(&world, "migrate").await.assert_code(0);
    let writer = world.writer();
    for (partition, i) in (0..48).flat_map(|partition| (0..4).map(move |i| (partition, i))) {
        writer.put_to(partition, &good(&msg("alice", "bob", &i.to_string(), vec![b'x'; 100_000])));
    }
    writer.flush();
    let report = run(&world, "lag --output json").await.assert_code(0).json();
    let unknown = report["partitions"].as_array().unwrap().iter().filter(|one| one["lag_seconds"].is_null()).count();
    assert_eq!((unknown, &report["total"]["lag_records"]), (0, &(48 * 4).into()));
}

#[tokio::test]
async fn lag_watches_until_it_is_told_to_stop() {
    let world = migrated("lag_watch").await;
    let watch = world.transfer("watch", |spec| {
        ["lag", "--watch", "50ms", "--output", "json"].into_iter().fold(spec, |spec, word| spec.arg(word))
    });
    watch.launch().unwrap();
    eventually("it repeats", async || {
        let log = std::fs::read_to_string(watch.log())?;
        let lines = log.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count();
        ensure(lines >= 3, log)
    })
    .await;
    assert!(watch.stop().await.unwrap().success());
}

#[tokio::test]
async fn the_service_tells_its_lag_in_time() {
    let world = migrated("lag_gauges").await;
    put_as_of(&world, 1, &good(&msg("alice", "bob", "1", "x")), HOUR);
    // Not to be stored for now.
    let locker = world.database().await;
    locker.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let transfer = world.transfer("transfer", |spec| spec);
    transfer.launch().unwrap();
    eventually("the gauges are there", async || {
        let metrics = transfer.metrics().await?;
        let gauge = |name: &str, partition: usize| {
            let start = format!("msg_transfer_{name}{{partition=\"{partition}\"}} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
            line.map_or(f64::NAN, |value| value.parse().unwrap())
        };
        let (age, left) = (gauge("lag_seconds", 1), gauge("retention_headroom_seconds", 1));
        ensure((3600.0..4000.0).contains(&age) && (WEEK - 4000.0..=WEEK - 3600.0).contains(&left), &metrics)?;
        ensure(gauge("lag_seconds", 0) == 0.0 && gauge("retention_headroom_seconds", 0) == f64::INFINITY, &metrics)
    })
    .await;
    locker.batch_execute("COMMIT").await.unwrap();
    world.rows_reach(1).await;
    transfer.wait_ready(PATIENCE).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
}
