//! P8 and availability of a topic with partitions that have no leader: the other partitions are stored, and readiness
//! names those without one. The same for the partition of the group's coordinator.

use std::time::Duration;

use msg_stack::{Stack, StackOptions};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::commands::run;
use crate::support::kafka::{msg, record_of};
use crate::support::transfer::{short_session, wait_not_ready};
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

/// The broker with the only replica of the group's offsets is killed. The client reports no error of that.
#[tokio::test(flavor = "multi_thread")]
async fn group_without_a_coordinator_is_named_and_recovers() {
    let folder = tempfile::Builder::new().prefix("msg-it-coordinator-").tempdir().unwrap();
    let mut options = StackOptions::new(folder.path());
    options.brokers = 3;
    options.cluster.settings.push(("offsets.topic.replication.factor".into(), "1".into()));
    let stack = Stack::reserve(options).await.unwrap();
    stack.launch().await.unwrap();
    let world = World::on(&stack, "coordinator", 4);
    world.create(&stack).await;
    let transfer = world.transfer("transfer", |spec| short_session(spec).env("STALL_TIMEOUT", "5s"));
    transfer.start().await.unwrap();
    let (partition, broker) = coordinator(&world).await;
    let broker = usize::try_from(broker).unwrap();
    stack.kafka().kill_broker(broker).await.unwrap();
    let text = format!("__consumer_offsets partition {partition} has no leader: the group has no coordinator");
    wait_not_ready(&transfer, &["group: cannot join the group", &text]).await;
    let check = run(&world, "check --output json").await.assert_code(1);
    assert!(check.stdout.contains(&text), "{}", check.stdout);

    stack.kafka().start_broker(broker).await.unwrap();
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    let writer = world.writer();
    writer.put(&record_of(&msg("alice", "bob", "1", "hello")));
    writer.flush();
    world.wait_for_rows(1).await;
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

/// The partition of `__consumer_offsets` whose leader is the group's coordinator, and that leader.
async fn coordinator(world: &World) -> (i32, i32) {
    let (brokers, group) = (world.brokers().to_owned(), world.topic().to_owned());
    let request = move || {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        let metadata = consumer.fetch_metadata(Some("__consumer_offsets"), Duration::from_secs(30)).unwrap();
        let partitions = metadata.topics()[0].partitions();
        let hash = group.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let wanted = hash.abs() % i32::try_from(partitions.len()).unwrap();
        let leader = partitions.iter().find(|partition| partition.id() == wanted).unwrap().leader();
        (wanted, leader)
    };
    tokio::task::spawn_blocking(request).await.unwrap()
}
