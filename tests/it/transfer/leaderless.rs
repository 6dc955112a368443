//! P8 and availability of a topic with partitions that have no leader: the other partitions are stored, and readiness
//! names those without one.

use msg_stack::{Stack, StackOptions};

use crate::support::kafka::{msg, record_of};
use crate::support::transfer::wait_not_ready;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

const PARTITIONS: i32 = 6;

/// The broker with the only replica of two partitions is killed.
#[tokio::test(flavor = "multi_thread")]
async fn partition_without_a_leader_delays_no_other_and_is_reported() {
    let folder = tempfile::Builder::new().prefix("msg-it-leaderless-").tempdir().unwrap();
    let mut options = StackOptions::new(folder.path());
    options.brokers = 3;
    let stack = Stack::reserve(options).await.unwrap();
    stack.launch().await.unwrap();
    let world = World::on(&stack, "leaderless", PARTITIONS);
    let mut topic = stack.kafka().topic("leaderless", PARTITIONS);
    topic.replication = 1;
    topic.config.iter_mut().filter(|(key, _)| key == "min.insync.replicas").for_each(|(_, count)| *count = "1".into());
    stack.kafka().create(&topic).await.unwrap();
    stack.postgres().create_database("leaderless").await.unwrap();
    let writer = world.writer();
    for partition in 0..PARTITIONS {
        writer.put_to(partition, &record_of(&msg("alice", &format!("inbox-{partition}"), "1", "hello")));
    }
    writer.flush();
    stack.kafka().kill_broker(3).await.unwrap();

    let transfer = world.transfer("transfer", |spec| spec.env("STALL_TIMEOUT", "15s"));
    transfer.launch().unwrap();
    let database = world.database().await;
    let stored = async || -> Result<Vec<i32>, tokio_postgres::Error> {
        let rows = database.query("SELECT kafka_partition FROM messages ORDER BY kafka_partition", &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    // Kafka distributes the leaders over the brokers.
    let stored_without_broker_3 = eventually("all partitions but two are stored", async || {
        let stored = stored().await?;
        ensure(stored.len() == PARTITIONS as usize * 2 / 3, format!("{stored:?}"))?;
        Ok(stored)
    })
    .await;
    let missing = (0..PARTITIONS).filter(|partition| !stored_without_broker_3.contains(partition));
    for partition in missing {
        wait_not_ready(&transfer, &["leaderless", &partition.to_string()]).await;
        wait_not_ready(&transfer, &[&format!("leaderless partition {partition} has no leader that responds")]).await;
    }
    // By now, the end offsets were read seven times for the lag, and at least as often for the start offsets.
    let log = std::fs::read_to_string(transfer.log()).unwrap();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("could not read the end offset")).collect();
    assert!((2..=13).contains(&lines.len()), "{} lines: {lines:#?}", lines.len());

    stack.kafka().start_broker(3).await.unwrap();
    eventually("all partitions are stored", async || {
        let stored = stored().await?;
        ensure(stored == (0..PARTITIONS).collect::<Vec<_>>(), format!("{stored:?}"))
    })
    .await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}
