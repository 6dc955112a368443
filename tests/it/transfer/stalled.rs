//! Records wait and none is stored: readiness, a gauge and `check` report it, and nothing else counts as stalled.

use std::time::Duration;

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
    let transfer = world.transfer("transfer", |spec| spec.env("STALL_TIMEOUT", "5s"));
    transfer.start().await.unwrap();
    let locker = world.database().await;
    locker.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let writer = world.writer();
    writer.put_to(2, &record_of(&msg("a", "b", "1", "some body")));
    writer.flush();
    wait_not_ready(&transfer, &["stalled:", "stalled partition 2 from offset 0 on"]).await;
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
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while std::time::Instant::now() < until {
        assert_eq!(metric(&transfer, STALLED).await, 0.0, "no record waits");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (status, body) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await.unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(transfer.stop().await.unwrap().success());
}

fn abort_transaction(brokers: &str, topic: &str) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", "marks")
        .set("transaction.timeout.ms", "30000")
        .create()
        .unwrap();
    producer.init_transactions(WAIT_TIMEOUT).unwrap();
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::to(topic).partition(1).key("k").payload("never")).map_err(|(error, _)| error).unwrap();
    producer.flush(WAIT_TIMEOUT).unwrap();
    producer.abort_transaction(WAIT_TIMEOUT).unwrap();
}
