//! The command `lag`, and the gauges that the service computes in the same way.

use std::time::Duration;

use super::{HOUR, migrated, put_with_age, run};
use crate::support::kafka::{msg, record_of};
use crate::support::stack::stack;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

const WEEK: f64 = 7.0 * 24.0 * 3600.0;

#[tokio::test]
async fn lag_is_counted_from_the_progress_row_in_records_and_time() {
    let world = World::new("lag").await;
    // The first record is two days old and stored. The next one is an hour old, and its age counts.
    put_with_age(&world, 1, &record_of(&msg("alice", "bob", "1", "x")), 48 * HOUR);
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    put_with_age(&world, 1, &record_of(&msg("alice", "bob", "2", "x")), HOUR);
    put_with_age(&world, 1, &record_of(&msg("alice", "bob", "3", "x")), Duration::ZERO);
    put_with_age(&world, 2, &record_of(&msg("alice", "carol", "1", "x")), Duration::ZERO);
    let report = run(&world, "lag --output json").await.assert_code(0).json();
    let lagging = &report["partitions"][1];
    assert_eq!((&lagging["committed"], &lagging["progress"], &lagging["end"]), (&1.into(), &1.into(), &3.into()));
    assert_eq!(lagging["lag_records"], 2);
    let seconds = lagging["lag_seconds"].as_f64().unwrap();
    assert!((3600.0..4000.0).contains(&seconds), "{lagging}");
    let headroom = lagging["retention_headroom_seconds"].as_f64().unwrap();
    assert!((WEEK - 4000.0..=WEEK - 3600.0).contains(&headroom), "{lagging}");
    let fresh = &report["partitions"][2];
    assert_eq!((&fresh["progress"], &fresh["lag_records"]), (&0.into(), &1.into()));
    let empty = &report["partitions"][0];
    assert_eq!((empty["lag_seconds"].as_f64(), empty["retention_headroom_seconds"].as_f64()), (Some(0.0), None));
    let total = &report["total"];
    assert_eq!((&total["lag_records"], &total["lag_seconds"]), (&3.into(), &lagging["lag_seconds"]));
    let table = run(&world, "lag").await.assert_code(0).stdout;
    let last: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(last[..3], ["total", "3", "1h"], "{table}");
    // The command changes no offset and does not join the group.
    assert_eq!(world.committed_offsets().await.iter().sum::<i64>(), 1);
    assert!(transfer.start().await.is_ok());
    world.wait_for_all_committed().await;
    let report = run(&world, "lag --output json").await.assert_code(0).json();
    assert_eq!(report["total"]["lag_records"], 0);
    assert!(transfer.stop().await.unwrap().success());
}

/// Large batches in many partitions: the lag time of each is reported, and none waits for the others' backlog.
#[tokio::test]
async fn lag_time_is_reported_for_many_partitions() {
    let stack = stack().await;
    let world = World::on(stack, "lag_many", 48);
    world.create(stack).await;
    run(&world, "migrate").await.assert_code(0);
    let writer = world.writer();
    for (partition, i) in (0..48).flat_map(|partition| (0..4).map(move |i| (partition, i))) {
        writer.put_to(partition, &record_of(&msg("alice", "bob", &i.to_string(), vec![b'x'; 100_000])));
    }
    writer.flush();
    let report = run(&world, "lag --output json").await.assert_code(0).json();
    let unknown = report["partitions"].as_array().unwrap().iter().filter(|one| one["lag_seconds"].is_null()).count();
    assert_eq!((unknown, &report["total"]["lag_records"]), (0, &(48 * 4).into()));
}

#[tokio::test]
async fn lag_watch_repeats_its_report_until_sigterm() {
    let world = migrated("lag_watch").await;
    let watch = world.transfer("watch", |spec| {
        ["lag", "--watch", "50ms", "--output", "json"].into_iter().fold(spec, |spec, word| spec.arg(word))
    });
    watch.launch().unwrap();
    eventually("the report is repeated", async || {
        let log = std::fs::read_to_string(watch.log())?;
        let lines = log.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count();
        ensure(lines >= 3, log)
    })
    .await;
    assert!(watch.stop().await.unwrap().success());
}

#[tokio::test]
async fn lag_time_and_retention_headroom_are_gauges() {
    let world = migrated("lag_gauges").await;
    put_with_age(&world, 1, &record_of(&msg("alice", "bob", "1", "x")), HOUR);
    // The lock keeps the record from being stored.
    let locker = world.database().await;
    locker.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let transfer = world.transfer("transfer", |spec| spec);
    transfer.launch().unwrap();
    eventually("the gauges have their values", async || {
        let metrics = transfer.metrics().await?;
        let gauge = |name: &str, partition: usize| {
            let start = format!("msg_transfer_{name}{{partition=\"{partition}\"}} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
            line.map_or(f64::NAN, |value| value.parse().unwrap())
        };
        let (age, headroom) = (gauge("lag_seconds", 1), gauge("retention_headroom_seconds", 1));
        ensure((3600.0..4000.0).contains(&age) && (WEEK - 4000.0..=WEEK - 3600.0).contains(&headroom), &metrics)?;
        ensure(gauge("lag_seconds", 0) == 0.0 && gauge("retention_headroom_seconds", 0) == f64::INFINITY, &metrics)
    })
    .await;
    locker.batch_execute("COMMIT").await.unwrap();
    world.wait_for_rows(1).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
}
