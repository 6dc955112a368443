//! `wait_for: STORED`: what ends the wait, and whose wait it ends.

use std::time::{Duration, Instant, SystemTime};

use msg_common::partition::partition_for;
use msg_common::proto::Msg;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use tonic::Code;

use super::calls::{Client, assert_failed, client, metric};
use super::stored::{LONG, send_stored, waiting};
use super::watch::{Watcher, request};
use crate::support::kafka::{id_of, msg};
use crate::support::world::{Gateway, World};
use crate::support::{PATIENCE, ensure, eventually};

/// Shorter than the second after which the table is polled for a waiter though hints are read.
const SOON: Duration = Duration::from_millis(800);

/// How long a send that waits until its message is stored takes, once at least in a few rounds: others may need the machine.
async fn shortest(mut round: impl AsyncFnMut(usize) -> Duration) -> Duration {
    let mut shortest = Duration::MAX;
    for number in 0..8 {
        shortest = shortest.min(round(number).await);
        if shortest < SOON {
            break;
        }
    }
    shortest
}

async fn timed(client: &Client, msg: &Msg) -> Duration {
    let begun = Instant::now();
    send_stored(client, msg, LONG).await.unwrap();
    begun.elapsed()
}

/// Whether the gateway relies on hints now: the gauges are set once a second, so of one more watcher they speak afterwards.
async fn relies_on_hints(gateway: &Gateway, client: &Client, watchers: &mut Vec<Watcher>) -> bool {
    watchers.push(Watcher::open(client, request([("somebody", None)])).await.unwrap());
    eventually("the gauges are set", async || {
        let found = metric(gateway, "msg_gateway_watchers").await?;
        ensure(found == watchers.len() as f64, format!("{found} watch"))
    })
    .await;
    metric(gateway, RELIABLE).await.unwrap() == 1.0
}

const RELIABLE: &str = "msg_gateway_hints_reliable";
/// What was found after a longer wait and without a hint puts the hints in doubt for a while, in which the table is polled every
/// 100 ms: 4 times the first look.
const DOUBTED: Duration = Duration::from_millis(200);

/// A waiter that a hint reaches is found soon, and leaves the hints as reliable as they were. Either alone would also be so
/// where waiters do not listen to hints: found by the poll for a while, or late each time.
#[tokio::test]
async fn hint_ends_the_wait_of_a_waiter() {
    let world = World::new("waiter_hint").await;
    // Who comes right after a batch is stored with the next one, long after the first look at 50 ms.
    let transfer = world.transfer("transfer", |spec| spec.env("BATCH_INTERVAL", "500ms"));
    transfer.start().await.unwrap();
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    // While it watches, hints are read.
    let mut watchers = vec![Watcher::open(&client, request([("somebody", None)])).await.unwrap()];
    let mut rounds = Vec::new();
    // Once is enough: others may need the machine.
    while rounds.len() < 8 {
        eventually("hints are relied on", async || {
            let reliable = metric(&gateway, RELIABLE).await?;
            ensure(reliable == 1.0, "they are not yet")
        })
        .await;
        let round = rounds.len();
        timed(&client, &msg("alice", "bob", &format!("first {round}"), "x")).await;
        let wait = timed(&client, &msg("alice", "bob", &format!("second {round}"), "x")).await;
        let reliable = relies_on_hints(&gateway, &client, &mut watchers).await;
        if reliable && wait > DOUBTED + DOUBTED / 2 && wait < SOON {
            return;
        }
        rounds.push((wait, reliable));
    }
    panic!("no wait was ended by a hint (how long, and whether hints are relied on after it): {rounds:?}");
}

#[tokio::test]
async fn stored_message_is_found_soon_without_a_hint() {
    let world = World::new("waiter_first_look").await;
    let transfer = world.transfer("transfer", |spec| spec.env("HINTS_TOPIC", ""));
    transfer.start().await.unwrap();
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let shortest = shortest(async |round| timed(&client, &msg("alice", "bob", &round.to_string(), "x")).await).await;
    assert!(shortest < SOON, "the shortest wait took {shortest:?}: the first look came late");
}

/// When the record at this place was sent, which its row says too.
fn send_time(world: &World, partition: i32, offset: i64) -> SystemTime {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", world.brokers()).set("group.id", "none").create().unwrap();
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(world.topic(), partition, Offset::Offset(offset)).unwrap();
    consumer.assign(&place).unwrap();
    let record = consumer.poll(PATIENCE).expect("the record is there").unwrap();
    let millis = record.timestamp().to_millis().unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap())
}

/// One look finds all three: the rows are made in one transaction, by hand.
#[tokio::test]
async fn stored_pending_and_dead_of_one_look_are_told_apart() {
    let world = World::new("waiter_three").await;
    let gateway = world.gateway("gateway", |spec| spec.env("DEADLINE_MARGIN", "700ms"));
    gateway.service.start().await.unwrap();
    // It makes the tables.
    world.running_transfer().await.stop().await.unwrap();
    let client = client(&gateway).await;
    // Two of each, so that an index of one list is none of another; and one whose id another record has used.
    let names = ["stored", "pending", "dead", "duplicate"];
    let (mut sends, mut placed, mut ends) = (Vec::new(), Vec::new(), [0_i64; 4]);
    for i in 0..8 {
        let recv_id = format!("{} {i}", names[i % 4]);
        let partition = partition_for(recv_id.as_bytes(), world.partitions);
        let end = &mut ends[usize::try_from(partition).unwrap()];
        placed.push((recv_id.clone(), partition, *end));
        *end += 1;
        let (client, msg) = (client.clone(), msg("alice", &recv_id, "1", "hello"));
        sends.push(tokio::spawn(async move { send_stored(&client, &msg, Duration::from_secs(15)).await }));
        waiting(&gateway, (i + 1) as f64).await;
    }
    let mut database = world.database().await;
    let rows = database.transaction().await.unwrap();
    for (recv_id, partition, offset) in placed {
        let id = id_of(&msg("alice", &recv_id, "1", "hello"));
        if recv_id.starts_with("stored") || recv_id.starts_with("duplicate") {
            let sent = send_time(&world, partition, offset);
            let offset = if recv_id.starts_with("duplicate") { 1_000_000 + offset } else { offset };
            let insert = "INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content,
                     attributes, send_time, kafka_partition, kafka_offset)
                 VALUES ($1, 1, $2, 'alice', '1', 1, 'text/plain', 'hello', '{\"lang\": \"en\"}', $5, $3, $4)";
            rows.execute(insert, &[&recv_id, &id, &partition, &offset, &sent]).await.unwrap();
        } else if recv_id.starts_with("dead") {
            let insert = "INSERT INTO dead_letters (topic, topic_id, kafka_partition, kafka_offset, recv_id, msg_id, headers, reason,
                     detail)
                 VALUES ('x', $1, $2, $3, $4, $1, '', 'REJECTED_BY_DATABASE', '')";
            rows.execute(insert, &[&id, &partition, &offset, &recv_id]).await.unwrap();
        }
    }
    rows.commit().await.unwrap();
    for (i, send) in sends.into_iter().enumerate() {
        let sent = send.await.unwrap();
        match names[i % 4] {
            "pending" => drop(assert_failed(sent, Code::DeadlineExceeded, "NOT_STORED_YET")),
            "dead" => {
                let details = assert_failed(sent, Code::FailedPrecondition, "DEAD_LETTERED");
                let id = id_of(&msg("alice", &format!("dead {i}"), "1", "hello"));
                assert_eq!(details.error_info().unwrap().metadata["msg_id"], id.to_string());
            }
            name => assert_eq!(sent.unwrap().stored.unwrap().duplicate, name == "duplicate", "{name} {i}"),
        }
    }
}
