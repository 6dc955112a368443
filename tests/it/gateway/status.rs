//! GetMsgStatus: the state of a message at each point of its path.

use futures_util::future::join_all;
use msg_common::partition::partition_for;
use msg_common::proto::{DeadLetterReason, GetMsgStatusRequest, GetMsgStatusResponse, Msg, MsgState, Placement};
use msg_stack::Service;
use tonic::{Code, Status};

use super::calls::{Client, assert_failed, client, fields, send};
use crate::support::kafka::{msg, msg_id_of, record_of};
use crate::support::stack::{own_stack, stack};
use crate::support::transfer::wait_not_ready;
use crate::support::world::{World, count_rows};
use crate::support::{ensure, eventually};

async fn get_status(client: &Client, request: GetMsgStatusRequest) -> Result<GetMsgStatusResponse, Status> {
    client.clone().get_msg_status(request).await.map(tonic::Response::into_inner)
}

fn by_id(msg: &Msg) -> GetMsgStatusRequest {
    GetMsgStatusRequest {
        recv_id: msg.recv_id.clone(),
        msg_id: msg_id_of(msg).to_string(),
        ..GetMsgStatusRequest::default()
    }
}

fn by_position(msg: &Msg, placement: &Placement) -> GetMsgStatusRequest {
    GetMsgStatusRequest { partition: Some(placement.partition), offset: placement.offset, ..by_id(msg) }
}

async fn status_of(client: &Client, msg: &Msg) -> GetMsgStatusResponse {
    get_status(client, by_id(msg)).await.unwrap()
}

/// Requests the status with and without the position, and checks that both responses are equal.
async fn status_both_ways(client: &Client, msg: &Msg, placement: &Placement) -> GetMsgStatusResponse {
    let response = status_of(client, msg).await;
    assert_eq!(get_status(client, by_position(msg, placement)).await.unwrap(), response);
    response
}

fn pending(records_ahead: i64) -> GetMsgStatusResponse {
    GetMsgStatusResponse { state: MsgState::Pending.into(), records_ahead, ..GetMsgStatusResponse::default() }
}

fn not_found() -> GetMsgStatusResponse {
    GetMsgStatusResponse { state: MsgState::NotFound.into(), ..GetMsgStatusResponse::default() }
}

/// A world whose tables exist, and without a running transfer.
async fn world_without_transfer(name: &str) -> World {
    let world = World::new(name).await;
    assert!(world.running_transfer().await.stop().await.unwrap().success());
    world
}

#[tokio::test]
async fn final_status_is_the_same_with_and_without_a_position() {
    let world = World::new("status").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let database = world.database().await;
    database.batch_execute("ALTER TABLE messages ADD CHECK (send_id <> 'rejected')").await.unwrap();
    let (first, plain, rejected) =
        (msg("alice", "bob", "1", "hello"), msg("alice", "bob", "2", "hello"), msg("rejected", "bob", "3", "hello"));
    let placement = send(&client, &first).await.unwrap();
    let placement_of_other = send(&client, &msg("alice", "bob", "1", "other words")).await.unwrap();
    let (placement_of_plain, placement_of_rejected) =
        (send(&client, &plain).await.unwrap(), send(&client, &rejected).await.unwrap());
    eventually("two records are dead-lettered", async || {
        let letters = count_rows(&database, "dead_letters").await?;
        ensure(letters == 2, letters)
    })
    .await;
    world.wait_for_all_committed().await;

    let stored = status_both_ways(&client, &plain, &placement_of_plain).await;
    assert_eq!((stored.state(), stored.seq, stored.dead_letter, stored.records_ahead), (MsgState::Stored, 2, None, 0));
    assert!(stored.stored_time.is_some());
    // The first message is stored, and the second, with the same ID, is dead-lettered: the response reports both.
    let conflict = status_both_ways(&client, &first, &placement).await;
    assert_eq!(status_both_ways(&client, &first, &placement_of_other).await, conflict);
    assert_eq!((conflict.state(), conflict.seq), (MsgState::Stored, 1));
    let letter = conflict.dead_letter.unwrap();
    assert_eq!(letter.reason(), DeadLetterReason::IdempotencyConflict);
    assert!(!letter.detail.is_empty() && letter.first_seen.is_some(), "{letter:?}");
    let dead = status_both_ways(&client, &rejected, &placement_of_rejected).await;
    assert_eq!((dead.state(), dead.seq, dead.stored_time), (MsgState::DeadLettered, 0, None));
    assert_eq!(dead.dead_letter.unwrap().reason(), DeadLetterReason::RejectedByDatabase);
    // This message was never sent.
    assert_eq!(status_both_ways(&client, &msg("alice", "bob", "never", "x"), &placement_of_plain).await, not_found());
    assert_eq!(status_of(&client, &msg("alice", "eve", "1", "hello")).await, not_found());
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn unstored_message_is_pending_with_its_records_ahead() {
    let world = world_without_transfer("status_pending").await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let message = |i: i64| msg("alice", "bob", &i.to_string(), "hello");
    let partition = partition_for(b"bob", world.partitions);
    let elsewhere = (0..).map(|i| format!("eve-{i}"));
    let elsewhere = elsewhere.into_iter().find(|id| partition_for(id.as_bytes(), world.partitions) != partition);
    let (unsent, elsewhere) = (message(-1), msg("alice", &elsewhere.unwrap(), "1", "hello"));

    // First in an empty topic, then after stored records.
    for (from, to) in [(0, 5), (5, 8)] {
        let mut placements = Vec::new();
        for i in from..to {
            placements.push(send(&client, &message(i)).await.unwrap());
        }
        for (placement, i) in placements.iter().zip(from..) {
            assert_eq!(get_status(&client, by_position(&message(i), placement)).await.unwrap(), pending(i - from));
            assert_eq!(status_of(&client, &message(i)).await, pending(to - from));
        }
        // The ID could be that of one of the pending records.
        assert_eq!(status_of(&client, &unsent).await, pending(to - from));
        assert_eq!(status_of(&client, &elsewhere).await, not_found());
        let transfer = world.running_transfer().await;
        world.wait_for_all_committed().await;
        assert!(transfer.stop().await.unwrap().success());
        for (placement, i) in placements.iter().zip(from..) {
            let stored = status_both_ways(&client, &message(i), placement).await;
            assert_eq!((stored.state(), stored.seq), (MsgState::Stored, i + 1));
        }
        assert_eq!(status_of(&client, &unsent).await, not_found());
    }
}

/// The row is committed after the request has started, and before it reads the progress row.
#[tokio::test]
async fn message_stored_during_a_status_request_is_found() {
    let world = World::new("status_moment").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "1", "hello")).await.unwrap();
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    let message = msg("alice", "bob", "2", "hello");
    let placement = send(&client, &message).await.unwrap();

    // The relevant part of a transfer's transaction, held open.
    let mut storing = world.database().await;
    let transaction = storing.transaction().await.unwrap();
    transaction.batch_execute("LOCK TABLE progress IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let row = "INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content,
                                     send_time, kafka_partition, kafka_offset)
               VALUES ('bob', 2, $1, 'alice', '2', 1, 'text/plain', 'hello', now(), $2, $3)";
    transaction.execute(row, &[&msg_id_of(&message), &placement.partition, &placement.offset]).await.unwrap();
    transaction.execute("UPDATE progress SET next_offset = $1", &[&(placement.offset.unwrap() + 1)]).await.unwrap();
    let requests = [by_id(&message), by_position(&message, &placement)].map(|request| {
        let client = client.clone();
        tokio::spawn(async move { get_status(&client, request).await })
    });
    let watcher = world.database().await;
    eventually("both requests wait for the lock", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'progress'::regclass";
        let waiting: i64 = watcher.query_one(waiting, &[]).await?.get(0);
        ensure(waiting == 2, waiting)
    })
    .await;
    transaction.commit().await.unwrap();
    for response in requests {
        let response = response.await.unwrap().unwrap();
        assert_eq!((response.state(), response.seq), (MsgState::Stored, 2));
    }
}

/// The status of many messages is requested without a pause from their OK on.
#[tokio::test(flavor = "multi_thread")]
async fn accepted_message_is_never_not_found() {
    let world = World::new("status_race").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let callers = (0..8).map(|caller| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut pending = 0;
            for i in 0..60 {
                let message = msg(&format!("caller {caller}"), &format!("inbox-{}", i % 5), &i.to_string(), "hello");
                let placement = send(&client, &message).await.unwrap();
                let (by_id, by_position) = (by_id(&message), by_position(&message, &placement));
                for request in [by_id, by_position].iter().cycle() {
                    match get_status(&client, request.clone()).await.unwrap().state() {
                        MsgState::Stored => break,
                        MsgState::Pending => pending += 1,
                        state => panic!("{state:?} after an OK: {request:?}"),
                    }
                }
            }
            pending
        })
    });
    let pending: i32 = join_all(callers).await.into_iter().map(Result::unwrap).sum();
    assert!(pending > 0, "no message was pending when its status was requested");
    assert!(transfer.stop().await.unwrap().success());
}

/// Sends a message that the database rejects, and returns it with its placement. Then removes the rule that rejected
/// it, and stops the transfer.
async fn dead_lettered(world: &World, client: &Client, transfer: &Service) -> (Msg, Placement) {
    let database = world.database().await;
    database.batch_execute("ALTER TABLE messages ADD CONSTRAINT no CHECK (send_id <> 'rejected')").await.unwrap();
    let (plain, rejected) = (msg("alice", "bob", "1", "hello"), msg("rejected", "bob", "2", "hello"));
    send(client, &plain).await.unwrap();
    let placement = send(client, &rejected).await.unwrap();
    eventually("the message is dead-lettered", async || {
        let state = status_of(client, &rejected).await.state();
        ensure(state == MsgState::DeadLettered, state.as_str_name())
    })
    .await;
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    database.batch_execute("ALTER TABLE messages DROP CONSTRAINT no").await.unwrap();
    (rejected, placement)
}

/// A dead letter that was replayed is pending like any other message, at a new position.
#[tokio::test]
async fn replayed_message_is_pending_again() {
    let world = World::new("status_replayed").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let database = world.database().await;
    let (rejected, placement) = dead_lettered(&world, &client, &transfer).await;
    // As `dead-letters replay` does.
    let writer = world.writer();
    writer.put(&record_of(&rejected));
    writer.flush();
    database.execute("UPDATE dead_letters SET replayed_at = now()", &[]).await.unwrap();
    let waiting = status_both_ways(&client, &rejected, &placement).await;
    assert_eq!((waiting.state(), waiting.records_ahead), (MsgState::Pending, 1));
    transfer.start().await.unwrap();
    eventually("the replayed message is stored", async || {
        let found = status_of(&client, &rejected).await;
        ensure(found.state() == MsgState::Stored && found.seq == 2 && found.dead_letter.is_some(), format!("{found:?}"))
    })
    .await;
    status_both_ways(&client, &rejected, &placement).await;
    assert!(transfer.stop().await.unwrap().success());
}

/// A message that its caller sends again after the operator has fixed the rule is a new record, with a status of its
/// own.
#[tokio::test]
async fn dead_letter_does_not_hide_a_later_record() {
    let world = World::new("status_resent").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let (rejected, first) = dead_lettered(&world, &client, &transfer).await;
    let again = send(&client, &rejected).await.unwrap();
    let waiting = get_status(&client, by_position(&rejected, &again)).await.unwrap();
    assert_eq!((waiting.state(), waiting.records_ahead), (MsgState::Pending, 0));
    // The dead letter is the status of the first record, and of the ID if no record is named.
    for request in [by_position(&rejected, &first), by_id(&rejected)] {
        assert_eq!(get_status(&client, request).await.unwrap().state(), MsgState::DeadLettered);
    }
    transfer.start().await.unwrap();
    eventually("the second record is stored", async || {
        let found = get_status(&client, by_position(&rejected, &again)).await?;
        ensure(found.state() == MsgState::Stored && found.seq == 2, format!("{found:?}"))
    })
    .await;
    status_both_ways(&client, &rejected, &again).await;
    assert!(transfer.stop().await.unwrap().success());
}

/// The offsets of a recreated topic start at 0, so offsets of the old one must not count.
#[tokio::test]
async fn recreated_topic_is_not_mistaken_for_the_old_one() {
    let world = World::new("status_recreated").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    for i in 0..20 {
        send(&client, &msg("alice", "bob", &i.to_string(), "hello")).await.unwrap();
    }
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    assert_eq!(status_of(&client, &msg("alice", "bob", "never", "x")).await, not_found());
    // Immediately, because the gateway still has the old topic's ID.
    let kafka = stack().await.kafka();
    kafka.delete_topic(world.topic()).await.unwrap();
    eventually("the topic is recreated", async || {
        kafka.create_topic(world.topic(), world.partitions, &[]).await.map_err(Into::into)
    })
    .await;
    let message = msg("alice", "bob", "new", "hello");
    let writer = world.writer();
    writer.put(&record_of(&message));
    writer.flush();
    let placement =
        Placement { partition: partition_for(b"bob", world.partitions), offset: Some(0), ..Placement::default() };
    assert_eq!(get_status(&client, by_position(&message, &placement)).await.unwrap(), pending(0));
    assert_eq!(status_of(&client, &message).await, pending(1));
}

#[tokio::test]
async fn final_status_is_returned_without_kafka() {
    let (stack, _folder) = own_stack("status_no_kafka").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "status_no_kafka", 4);
    world.create(&stack).await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let message = msg("alice", "bob", "1", "hello");
    let placement = send(&client, &message).await.unwrap();
    world.wait_for_all_committed().await;
    stack.kafka().stop().await;
    assert_eq!(status_both_ways(&client, &message, &placement).await.state(), MsgState::Stored);
    let unsent = msg("alice", "bob", "2", "hello");
    let details = assert_failed(get_status(&client, by_id(&unsent)).await, Code::Unavailable, "KAFKA_UNAVAILABLE");
    // Also with a deadline before the timeout of one request to Kafka: the reason must not name the database.
    let mut short_deadline = tonic::Request::new(by_id(&unsent));
    short_deadline.set_timeout(std::time::Duration::from_secs(2));
    let result = client.clone().get_msg_status(short_deadline).await.map(tonic::Response::into_inner);
    assert_failed(result, Code::Unavailable, "KAFKA_UNAVAILABLE");
    assert!(details.retry_info().is_some());
    wait_not_ready(&gateway.service, &["kafka"]).await;
    transfer.kill().await;
    stack.stop().await;
}

#[tokio::test]
async fn invalid_status_request_names_its_fields() {
    let world = world_without_transfer("status_bad").await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let (partition, offset) = (Some(4), Some(-1));
    let bad = GetMsgStatusRequest { msg_id: "x".into(), partition, offset, ..GetMsgStatusRequest::default() };
    let details = assert_failed(get_status(&client, bad).await, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&details), ["recv_id", "msg_id", "partition", "offset"]);
    let half = GetMsgStatusRequest { offset: Some(0), ..by_id(&msg("alice", "bob", "1", "hello")) };
    let details = assert_failed(get_status(&client, half).await, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&details), ["partition"]);
}
