//! Records wait and none is stored: readiness, a gauge and `check` report it, and nothing else counts as stalled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::commands::run_with;
use crate::support::kafka::{msg, record_of};
use crate::support::transfer::{metric, wait_not_ready};
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

const STALLED: &str = "msg_transfer_stalled_partitions";

#[tokio::test]
async fn partition_that_stores_nothing_is_reported_until_it_does() {
    let world = World::new("stalled").await;
    let transfer = world.transfer("transfer", |spec| spec.env("STALL_TIMEOUT", "7s"));
    transfer.start().await.unwrap();
    let locker = world.database().await;
    locker.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let writer = world.writer();
    writer.put_to(2, &record_of(&msg("a", "b", "1", "some body")));
    writer.flush();
    let put = Instant::now();
    wait_not_ready(&transfer, &["stalled:", "stalled partition 2 from offset 0 on"]).await;
    // The interval of the checks is 2 s.
    assert!(put.elapsed() < Duration::from_secs(10), "reported after {:?}", put.elapsed());
    assert_eq!(metric(&transfer, STALLED).await, 1.0);
    let settings = [("STALL_TIMEOUT", "5s")];
    let checked = run_with(&world, "check --allow-unsafe-topic --output json", &settings).await.assert_code(1);
    let stalled = |report: &serde_json::Value| {
        let checks = report["checks"].as_array().unwrap().clone();
        checks
            .into_iter()
            .find(|check| check["check"] == "stalled")
            .map(|check| check["detail"].as_str().unwrap().to_owned())
    };
    let detail = stalled(&checked.json()).expect("the stalled partition is reported");
    assert!(detail.contains("[2]"), "{detail}");
    locker.batch_execute("COMMIT").await.unwrap();
    world.wait_for_rows(1).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    eventually("the gauge is 0 again", async || {
        let stalled = metric(&transfer, STALLED).await;
        ensure(stalled == 0.0, stalled)
    })
    .await;
    assert!(transfer.stop().await.unwrap().success());
}

/// A transaction's markers have offsets, but are no records.
#[tokio::test]
async fn transaction_markers_do_not_count_as_stalled_records() {
    let world = World::new("marks").await;
    let transfer = world.transfer("transfer", |spec| spec.env("STALL_TIMEOUT", "5s"));
    transfer.start().await.unwrap();
    let (brokers, topic) = (world.brokers().to_owned(), world.topic().to_owned());
    tokio::task::spawn_blocking(move || abort_transaction(&brokers, &topic)).await.unwrap();
    eventually("the offsets of the markers count as lag", async || {
        let lag = metric(&transfer, "msg_transfer_lag_records").await;
        ensure(lag >= 2.0, lag)
    })
    .await;
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        assert_eq!(metric(&transfer, STALLED).await, 0.0, "no record waits");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (status, body) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await.unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(transfer.stop().await.unwrap().success());
}

/// Another program leaves a transaction open. No consumer of committed records receives the records behind it, and its
/// stable offset looks like the end of the log.
#[tokio::test]
async fn records_behind_an_open_transaction_are_reported() {
    let world = World::new("held").await;
    let transfer = world.transfer("transfer", |spec| spec.env("STALL_TIMEOUT", "5s"));
    transfer.start().await.unwrap();
    let writer = world.writer();
    let put = |partition, number: &str| {
        writer.put_to(partition, &record_of(&msg("a", &format!("inbox-{partition}"), number, "some body")));
        writer.flush();
    };
    put(1, "1");
    world.wait_for_rows(1).await;
    let (brokers, topic) = (world.brokers().to_owned(), world.topic().to_owned());
    let producer = tokio::task::spawn_blocking(move || open_transaction(&brokers, &topic, "held")).await.unwrap();
    let producer = Arc::new(producer);
    put(1, "2");
    put(2, "1");
    world.wait_for_rows(2).await;
    let held = "an open transaction holds partition 1 at offset 1: end the program that opened it";
    wait_not_ready(&transfer, &["stalled:", held, "--topic held --partition 1 --start-offset 1"]).await;
    assert_eq!(metric(&transfer, STALLED).await, 1.0);
    assert_eq!(metric(&transfer, "msg_transfer_lag_records{partition=\"1\"}").await, 2.0);
    let settings = [("STALL_TIMEOUT", "5s")];
    let check = run_with(&world, "check --allow-unsafe-topic --output json", &settings).await.assert_code(1);
    assert!(check.stdout.contains(held), "{}", check.stdout);
    let lag = run_with(&world, "lag --output json", &[]).await.assert_code(0).json();
    assert_eq!(lag["total"]["lag_records"], 2, "{lag}");
    let aborting = producer.clone();
    tokio::task::spawn_blocking(move || aborting.abort_transaction(WAIT_TIMEOUT).unwrap()).await.unwrap();
    world.wait_for_rows(3).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
    assert_eq!(world.rows().await.len(), 3, "the aborted record is no message");
    assert!(world.dead_letters().await.is_empty());
}

fn abort_transaction(brokers: &str, topic: &str) {
    open_transaction(brokers, topic, "marks").abort_transaction(WAIT_TIMEOUT).unwrap();
}

/// Writes a record to partition 1 in a transaction that is not ended.
fn open_transaction(brokers: &str, topic: &str, id: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", id)
        // Longer than any test needs: then the brokers abort it.
        .set("transaction.timeout.ms", "300000")
        .create()
        .unwrap();
    producer.init_transactions(WAIT_TIMEOUT).unwrap();
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::to(topic).partition(1).key("k").payload("never")).map_err(|(error, _)| error).unwrap();
    producer.flush(WAIT_TIMEOUT).unwrap();
    producer
}
