//! P6 and P2 while a broker is frozen: callers get OUTCOME_UNKNOWN in time, and send the message again.

use std::time::{Duration, Instant, SystemTime};

use msg_common::partition::partition_for;
use msg_common::proto::{GetMsgStatusRequest, Msg, MsgState};
use msg_stack::kafka::BETWEEN_BROKERS;
use msg_stack::{Signal, Stack, StackOptions};
use prost_types::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tonic::{Code, Status};

use super::calls::{Client, assert_failed, client, send, send_within};
use crate::support::forwarder::Forwarder;
use crate::support::kafka::{msg, msg_id_of};
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{ensure, eventually, within};

/// How long the leader is without its followers: longer than all timeouts of the gateway and of the brokers.
const ALONE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn unknown_outcome_is_reported_in_time_and_resent_as_one_row() {
    let (stack, _folder) = own_stack("unknown").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "unknown", 4);
    world.create(&stack).await;
    let gateway = world.gateway("gateway", |spec| spec.env("DEADLINE_MARGIN", "300ms").env("MAX_SEND_WAIT", "3s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "before", "x")).await.unwrap();
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());

    let (first, second) = (msg("alice", "bob", "1", "hello"), msg("alice", "bob", "2", "there"));
    for (message, timeout) in [(&first, Some(Duration::from_millis(1500))), (&second, None)] {
        let (started, accepted) = (Instant::now(), SystemTime::now());
        // At its own deadline the client would end the call with CANCELLED and without details.
        let result = match timeout {
            Some(timeout) => send_within(&client, message, timeout).await,
            None => send(&client, message).await,
        };
        let waited = started.elapsed();
        let details = assert_failed(result, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!(metadata["msg_id"], msg_id_of(message).to_string());
        let settles_by: Timestamp = metadata["settles_by"].parse().unwrap();
        let settles_in = SystemTime::try_from(settles_by).unwrap().duration_since(accepted).unwrap();
        // The delivery timeout and one more request, from when the message was accepted.
        assert!((38.0..48.0).contains(&settles_in.as_secs_f64()), "{settles_in:?}");
        // The margin, and 1 % for callers whose libraries round.
        assert!(waited >= Duration::from_millis(1185), "the error came early: {waited:?}");
        assert!(details.retry_info().is_none(), "a retry delay would mean that nothing was sent");
    }

    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    for message in [&first, &second] {
        // As a caller does: send the message again until its outcome is known.
        let again = async || Ok(send(&client, message).await?);
        let placement = eventually("the outcome is settled", again).await;
        assert_eq!(placement.msg_id, msg_id_of(message).to_string());
    }
    let _transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert!(
        world.end_offsets().await.iter().sum::<i64>() >= 5,
        "the first attempts are no records, so this does not test P2"
    );
    let rows: Vec<_> = world.rows().await.into_iter().map(|row| (row.seq, row.client_msg_id)).collect();
    assert_eq!(rows, [(1, "before".to_owned()), (2, "1".to_owned()), (3, "2".to_owned())]);
    stack.stop().await;
}

async fn state(client: &Client, msg: &Msg) -> Result<MsgState, Status> {
    let (recv_id, msg_id) = (msg.recv_id.clone(), msg_id_of(msg).to_string());
    let request = GetMsgStatusRequest { recv_id, msg_id, ..GetMsgStatusRequest::default() };
    Ok(client.clone().get_msg_status(request).await?.into_inner().state())
}

/// The index of the broker that leads the inbox's partition.
async fn leader_of(world: &World, recv_id: &str) -> usize {
    let (brokers, topic) = (world.brokers().to_owned(), world.topic().to_owned());
    let partition = partition_for(recv_id.as_bytes(), world.partitions);
    let read_leader = move || {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(30)).unwrap();
        let leader = metadata.topics()[0].partitions().iter().find(|one| one.id() == partition).unwrap().leader();
        usize::try_from(leader).unwrap()
    };
    tokio::task::spawn_blocking(read_leader).await.unwrap()
}

/// How the followers are kept from replicating.
enum Followers {
    Frozen,
    /// They run and reach the controllers, and get no records.
    Isolated,
}

#[tokio::test(flavor = "multi_thread")]
async fn unreplicated_message_is_pending_with_frozen_followers() {
    assert_pending_until_stored("frozen", Followers::Frozen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreplicated_message_is_pending_with_isolated_followers() {
    assert_pending_until_stored("isolated", Followers::Isolated).await;
}

/// Of three brokers only the leader runs on. It appends a record that no follower replicates, and the record is
/// committed once the followers are back. Until then the gateway must not report NOT_FOUND.
async fn assert_pending_until_stored(name: &str, followers: Followers) {
    let folder = tempfile::Builder::new().prefix(&format!("msg-it-{name}-")).tempdir().unwrap();
    let mut options = StackOptions::new(folder.path());
    options.brokers = 3;
    if matches!(followers, Followers::Isolated) {
        options.cluster.networks = vec![BETWEEN_BROKERS.to_owned()];
    }
    let stack = Stack::reserve(options).await.unwrap();
    let legs: Vec<_> =
        stack.kafka().legs().map(|(_, leg)| Forwarder::new(leg.front.addr(), leg.behind.addr())).collect();
    stack.launch().await.unwrap();
    let world = World::on(&stack, name, 4);
    world.create(&stack).await;
    let transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| {
        spec.env("REQUEST_TIMEOUT", "2s").env("DELIVERY_TIMEOUT", "4s").env("MAX_SEND_WAIT", "3s")
    });
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "before", "x")).await.unwrap();
    world.wait_for_all_committed().await;
    let never = msg("alice", "bob", "never sent", "x");
    assert_eq!(state(&client, &never).await.unwrap(), MsgState::NotFound, "NOT_FOUND is a definite outcome");

    let leader = leader_of(&world, "bob").await;
    let signal = |signal| {
        for follower in (1..=3).filter(|broker| *broker != leader) {
            assert!(stack.kafka().signal_broker(follower, signal).unwrap());
        }
    };
    match followers {
        Followers::Frozen => signal(Signal::Stop),
        Followers::Isolated => legs.iter().for_each(Forwarder::close),
    }
    let unreplicated = msg("alice", "bob", "doubtful", "hello");
    let details = assert_failed(send(&client, &unreplicated).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    let settles_by: Timestamp = details.error_info().unwrap().metadata["settles_by"].parse().unwrap();
    let settles_by = SystemTime::try_from(settles_by).unwrap();
    let alone = Instant::now();
    let mut pending = 0;
    while pending < 5 || alone.elapsed() < ALONE {
        assert!(alone.elapsed() < 4 * ALONE, "only {pending} responses");
        let requested = SystemTime::now();
        // Some requests go to a frozen broker and time out.
        match state(&client, &unreplicated).await {
            Ok(MsgState::Pending) => pending += usize::from(requested > settles_by),
            Ok(state) => panic!("{state:?} after {:?}", alone.elapsed()),
            Err(_) => {}
        }
    }
    match followers {
        Followers::Frozen => signal(Signal::Cont),
        Followers::Isolated => legs.iter().for_each(Forwarder::reopen),
    }
    within(3 * ALONE, "the message is stored", async || {
        let state = state(&client, &unreplicated).await?;
        assert_ne!(state, MsgState::NotFound, "NOT_FOUND for a message that can still be stored");
        ensure(state == MsgState::Stored, state.as_str_name())
    })
    .await;
    // For a message that was never sent, NOT_FOUND is definite again.
    eventually("the message that was never sent is not found", async || {
        let state = state(&client, &never).await?;
        ensure(state == MsgState::NotFound, state.as_str_name())
    })
    .await;
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}
