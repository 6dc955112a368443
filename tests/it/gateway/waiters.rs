//! `wait_for: STORED`: what ends a wait, and for which waiters.

use std::time::{Duration, Instant};

use msg_common::partition::partition_for;
use msg_common::proto::{BatchSendMsgRequest, Msg, WaitFor};
use tonic::Code;

use super::calls::{Client, assert_failed, client, metric};
use super::stored::{LONG, send_stored, wait_for_waiters};
use super::watch::{Watcher, request};
use crate::support::hints::send_time;
use crate::support::kafka::{msg, msg_id_of};
use crate::support::world::{Gateway, World};
use crate::support::{ensure, eventually};

/// Shorter than 1 s, the interval at which the table is polled for a waiter while hints are reliable.
const SOON: Duration = Duration::from_millis(800);

/// The shortest time of several rounds, up to the first that is below `SOON`: other processes can delay single
/// rounds.
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

async fn time_until_stored(client: &Client, msg: &Msg) -> Duration {
    let started = Instant::now();
    send_stored(client, msg, LONG).await.unwrap();
    started.elapsed()
}

/// Whether the gateway relies on hints. All gauges are set together, once a second: once the gauge of watchers counts
/// one more, this one is new too.
async fn relies_on_hints(gateway: &Gateway, client: &Client, watchers: &mut Vec<Watcher>) -> bool {
    watchers.push(Watcher::open(client, request([("carol", None)])).await.unwrap());
    eventually("the gauges are set", async || {
        let found = metric(gateway, "msg_gateway_watchers").await?;
        ensure(found == watchers.len() as f64, format!("{found} watchers"))
    })
    .await;
    metric(gateway, RELIABLE).await.unwrap() == 1.0
}

const RELIABLE: &str = "msg_gateway_hints_reliable";
/// A row that is found after a longer wait without a hint makes the hints unreliable for a while, and the table is
/// then polled every 100 ms. This is 4 times the delay of the first poll.
const LONGER_WAIT: Duration = Duration::from_millis(200);

/// A wait that a hint ends is short, and leaves the hints reliable. If waiters did not listen to hints, either the
/// wait would be long, or the poll that ends it would make the hints unreliable.
#[tokio::test]
async fn hint_ends_the_wait_of_a_waiter() {
    let world = World::new("waiter_hint").await;
    // A message that follows a large batch is stored with the next one, long after the first poll at 50 ms.
    let transfer = world.transfer("transfer", |spec| spec.env("BATCH_INTERVAL", "500ms"));
    transfer.start().await.unwrap();
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    // While there is a watcher, hints are read.
    let mut watchers = vec![Watcher::open(&client, request([("carol", None)])).await.unwrap()];
    let mut rounds = Vec::new();
    // One successful round is enough: other processes can delay single rounds.
    while rounds.len() < 8 {
        eventually("hints are reliable", async || {
            let reliable = metric(&gateway, RELIABLE).await?;
            ensure(reliable == 1.0, "hints are not reliable yet")
        })
        .await;
        let round = rounds.len();
        let many = (0..200).map(|n| msg("alice", "bob", &format!("first {round} {n}"), "x")).collect();
        let request = BatchSendMsgRequest { msgs: many, wait_for: WaitFor::Stored.into() };
        client.clone().batch_send_msg(request).await.unwrap();
        let wait = time_until_stored(&client, &msg("alice", "bob", &format!("second {round}"), "x")).await;
        let reliable = relies_on_hints(&gateway, &client, &mut watchers).await;
        if reliable && wait > LONGER_WAIT + LONGER_WAIT / 2 && wait < SOON {
            return;
        }
        rounds.push((wait, reliable));
    }
    panic!("no wait was ended by a hint (duration, and whether hints were reliable afterwards): {rounds:?}");
}

#[tokio::test]
async fn stored_message_is_found_soon_without_a_hint() {
    let world = World::new("waiter_first_poll").await;
    let transfer = world.transfer("transfer", |spec| spec.env("HINTS_TOPIC", ""));
    transfer.start().await.unwrap();
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let shortest =
        shortest(async |round| time_until_stored(&client, &msg("alice", "bob", &round.to_string(), "x")).await).await;
    assert!(shortest < SOON, "the shortest wait was {shortest:?}: the first poll was late");
}

/// One query finds all of the rows, because one transaction inserts them.
#[tokio::test]
async fn one_query_distinguishes_stored_pending_and_dead_lettered() {
    let world = World::new("waiter_three").await;
    let gateway = world.gateway("gateway", |spec| spec.env("DEADLINE_MARGIN", "700ms"));
    gateway.service.start().await.unwrap();
    // The transfer creates the tables.
    world.running_transfer().await.stop().await.unwrap();
    let client = client(&gateway).await;
    // Two of each kind, so that a mixed-up index is noticed; and one whose ID another record has used.
    let names = ["stored", "pending", "dead", "duplicate"];
    let (mut sends, mut positions, mut ends) = (Vec::new(), Vec::new(), [0_i64; 4]);
    for i in 0..8 {
        let recv_id = format!("{} {i}", names[i % 4]);
        let partition = partition_for(recv_id.as_bytes(), world.partitions);
        let end = &mut ends[usize::try_from(partition).unwrap()];
        positions.push((recv_id.clone(), partition, *end));
        *end += 1;
        let (client, msg) = (client.clone(), msg("alice", &recv_id, "1", "hello"));
        sends.push(tokio::spawn(async move { send_stored(&client, &msg, Duration::from_secs(15)).await }));
        wait_for_waiters(&gateway, (i + 1) as f64).await;
    }
    let mut database = world.database().await;
    let rows = database.transaction().await.unwrap();
    for (recv_id, partition, offset) in positions {
        let id = msg_id_of(&msg("alice", &recv_id, "1", "hello"));
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
                let id = msg_id_of(&msg("alice", &format!("dead {i}"), "1", "hello"));
                assert_eq!(details.error_info().unwrap().metadata["msg_id"], id.to_string());
            }
            name => assert_eq!(sent.unwrap().stored.unwrap().duplicate, name == "duplicate", "{name} {i}"),
        }
    }
}
