//! GetMsgStatus: what became of a message, at each point of its way.

use futures_util::future::join_all;
use msg_common::partition::partition_for;
use msg_common::proto::{DeadLetterReason, GetMsgStatusRequest, GetMsgStatusResponse, Msg, MsgState, Placement};
use msg_dev::stack::Service;
use tonic::{Code, Status};

use super::calls::{Client, assert_failed, client, fields, send};
use crate::support::kafka::{good, id_of, msg};
use crate::support::stack::{own_stack, stack};
use crate::support::transfer::not_ready_because;
use crate::support::world::{World, count_rows};
use crate::support::{ensure, eventually};

async fn ask(client: &Client, request: GetMsgStatusRequest) -> Result<GetMsgStatusResponse, Status> {
    client.clone().get_msg_status(request).await.map(tonic::Response::into_inner)
}

fn by_id(msg: &Msg) -> GetMsgStatusRequest {
    GetMsgStatusRequest {
        recv_id: msg.recv_id.clone(),
        msg_id: id_of(msg).to_string(),
        ..GetMsgStatusRequest::default()
    }
}

fn by_place(msg: &Msg, placement: &Placement) -> GetMsgStatusRequest {
    GetMsgStatusRequest { partition: Some(placement.partition), offset: placement.offset, ..by_id(msg) }
}

async fn of(client: &Client, msg: &Msg) -> GetMsgStatusResponse {
    ask(client, by_id(msg)).await.unwrap()
}

/// Asked in both ways, which agree on what is final.
async fn both(client: &Client, msg: &Msg, placement: &Placement) -> GetMsgStatusResponse {
    let answer = of(client, msg).await;
    assert_eq!(ask(client, by_place(msg, placement)).await.unwrap(), answer);
    answer
}

fn pending(records_ahead: i64) -> GetMsgStatusResponse {
    GetMsgStatusResponse { state: MsgState::Pending.into(), records_ahead, ..GetMsgStatusResponse::default() }
}

fn not_found() -> GetMsgStatusResponse {
    GetMsgStatusResponse { state: MsgState::NotFound.into(), ..GetMsgStatusResponse::default() }
}

/// Its tables are there, and nobody stores.
async fn idle(name: &str) -> World {
    let world = World::new(name).await;
    assert!(world.running_transfer().await.stop().await.unwrap().success());
    world
}

#[tokio::test]
async fn what_is_final_is_told_with_and_without_a_place() {
    let world = World::new("status").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let database = world.database().await;
    database.batch_execute("ALTER TABLE messages ADD CHECK (send_id <> 'refused')").await.unwrap();
    let (first, plain, refused) =
        (msg("alice", "bob", "1", "hello"), msg("alice", "bob", "2", "hello"), msg("refused", "bob", "3", "hello"));
    let placed = send(&client, &first).await.unwrap();
    let placed_again = send(&client, &msg("alice", "bob", "1", "other words")).await.unwrap();
    let (placed_plain, placed_refused) = (send(&client, &plain).await.unwrap(), send(&client, &refused).await.unwrap());
    eventually("two are kept aside", async || {
        let letters = count_rows(&database, "dead_letters").await?;
        ensure(letters == 2, letters)
    })
    .await;
    world.all_committed().await;

    let stored = both(&client, &plain, &placed_plain).await;
    assert_eq!((stored.state(), stored.seq, stored.dead_letter, stored.records_ahead), (MsgState::Stored, 2, None, 0));
    assert!(stored.stored_time.is_some());
    // The first is stored, and the second is kept aside: both are true.
    let conflict = both(&client, &first, &placed).await;
    assert_eq!(both(&client, &first, &placed_again).await, conflict);
    assert_eq!((conflict.state(), conflict.seq), (MsgState::Stored, 1));
    let letter = conflict.dead_letter.unwrap();
    assert_eq!(letter.reason(), DeadLetterReason::IdempotencyConflict);
    assert!(!letter.detail.is_empty() && letter.first_seen.is_some(), "{letter:?}");
    let dead = both(&client, &refused, &placed_refused).await;
    assert_eq!((dead.state(), dead.seq, dead.stored_time), (MsgState::DeadLettered, 0, None));
    assert_eq!(dead.dead_letter.unwrap().reason(), DeadLetterReason::RejectedByDatabase);
    // Nobody sent this one.
    assert_eq!(both(&client, &msg("alice", "bob", "never", "x"), &placed_plain).await, not_found());
    assert_eq!(of(&client, &msg("alice", "eve", "1", "hello")).await, not_found());
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn what_waits_is_pending_and_what_comes_before_it_is_counted() {
    let world = idle("status_pending").await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let message = |i: i64| msg("alice", "bob", &i.to_string(), "hello");
    let partition = partition_for(b"bob", world.partitions);
    let elsewhere = (0..).map(|i| format!("eve-{i}"));
    let elsewhere = elsewhere.into_iter().find(|id| partition_for(id.as_bytes(), world.partitions) != partition);
    let (unsent, elsewhere) = (message(-1), msg("alice", &elsewhere.unwrap(), "1", "hello"));

    // Before anything was ever stored; then with something behind it.
    for (from, to) in [(0, 5), (5, 8)] {
        let mut placed = Vec::new();
        for i in from..to {
            placed.push(send(&client, &message(i)).await.unwrap());
        }
        for (placement, i) in placed.iter().zip(from..) {
            assert_eq!(ask(&client, by_place(&message(i), placement)).await.unwrap(), pending(i - from));
            assert_eq!(of(&client, &message(i)).await, pending(to - from));
        }
        // It might be one of those.
        assert_eq!(of(&client, &unsent).await, pending(to - from));
        assert_eq!(of(&client, &elsewhere).await, not_found());
        let transfer = world.running_transfer().await;
        world.all_committed().await;
        assert!(transfer.stop().await.unwrap().success());
        for (placement, i) in placed.iter().zip(from..) {
            let stored = both(&client, &message(i), placement).await;
            assert_eq!((stored.state(), stored.seq), (MsgState::Stored, i + 1));
        }
        assert_eq!(of(&client, &unsent).await, not_found());
    }
}

/// The moment is held: the message is stored after it was asked for, and before it is seen how far all is stored.
#[tokio::test]
async fn a_message_stored_while_it_is_asked_for_is_found() {
    let world = World::new("status_moment").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "1", "hello")).await.unwrap();
    world.all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    let message = msg("alice", "bob", "2", "hello");
    let placement = send(&client, &message).await.unwrap();

    // What a transfer would do, as far as it is looked at.
    let mut storing = world.database().await;
    let transaction = storing.transaction().await.unwrap();
    transaction.batch_execute("LOCK TABLE progress IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let row = "INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content,
                                     send_time, kafka_partition, kafka_offset)
               VALUES ('bob', 2, $1, 'alice', '2', 1, 'text/plain', 'hello', now(), $2, $3)";
    transaction.execute(row, &[&id_of(&message), &placement.partition, &placement.offset]).await.unwrap();
    transaction.execute("UPDATE progress SET next_offset = $1", &[&(placement.offset.unwrap() + 1)]).await.unwrap();
    let asked = [by_id(&message), by_place(&message, &placement)].map(|request| {
        let client = client.clone();
        tokio::spawn(async move { ask(&client, request).await })
    });
    let watcher = world.database().await;
    eventually("both wait for the lock", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'progress'::regclass";
        let waiting: i64 = watcher.query_one(waiting, &[]).await?.get(0);
        ensure(waiting == 2, waiting)
    })
    .await;
    transaction.commit().await.unwrap();
    for answer in asked {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!((answer.state(), answer.seq), (MsgState::Stored, 2));
    }
}

/// Many messages, each asked for without a pause from its OK on.
#[tokio::test(flavor = "multi_thread")]
async fn what_had_its_ok_is_never_not_found() {
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
                let (by_id, by_place) = (by_id(&message), by_place(&message, &placement));
                for request in [by_id, by_place].iter().cycle() {
                    match ask(&client, request.clone()).await.unwrap().state() {
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
    assert!(pending > 0, "nothing was asked for before it was stored");
    assert!(transfer.stop().await.unwrap().success());
}

/// A message that the database refused, and where it was; since then nothing refuses it any more, and the transfer is stopped.
async fn kept_aside(world: &World, client: &Client, transfer: &Service) -> (Msg, Placement) {
    let database = world.database().await;
    database.batch_execute("ALTER TABLE messages ADD CONSTRAINT no CHECK (send_id <> 'refused')").await.unwrap();
    let (plain, refused) = (msg("alice", "bob", "1", "hello"), msg("refused", "bob", "2", "hello"));
    send(client, &plain).await.unwrap();
    let placement = send(client, &refused).await.unwrap();
    eventually("it is kept aside", async || {
        let state = of(client, &refused).await.state();
        ensure(state == MsgState::DeadLettered, state.as_str_name())
    })
    .await;
    world.all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    database.batch_execute("ALTER TABLE messages DROP CONSTRAINT no").await.unwrap();
    (refused, placement)
}

/// A dead letter that was sent again waits like any other message, at another place than it was given first.
#[tokio::test]
async fn what_was_replayed_waits_again() {
    let world = World::new("status_replayed").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let database = world.database().await;
    let (refused, placement) = kept_aside(&world, &client, &transfer).await;
    // As `dead-letters replay` does.
    let writer = world.writer();
    writer.put(&good(&refused));
    writer.flush();
    database.execute("UPDATE dead_letters SET replayed_at = now()", &[]).await.unwrap();
    let waiting = both(&client, &refused, &placement).await;
    assert_eq!((waiting.state(), waiting.records_ahead), (MsgState::Pending, 1));
    transfer.start().await.unwrap();
    eventually("it is stored", async || {
        let found = of(&client, &refused).await;
        ensure(found.state() == MsgState::Stored && found.seq == 2 && found.dead_letter.is_some(), format!("{found:?}"))
    })
    .await;
    both(&client, &refused, &placement).await;
    assert!(transfer.stop().await.unwrap().success());
}

/// What the caller sends again after the operator's mend is a record of its own, whatever became of the one before it.
#[tokio::test]
async fn a_dead_letter_does_not_hide_what_was_sent_after_it() {
    let world = World::new("status_resent").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let (refused, first) = kept_aside(&world, &client, &transfer).await;
    let again = send(&client, &refused).await.unwrap();
    let waiting = ask(&client, by_place(&refused, &again)).await.unwrap();
    assert_eq!((waiting.state(), waiting.records_ahead), (MsgState::Pending, 0));
    // Of the first record, and of the id where no record is named, the letter is what is known.
    for question in [by_place(&refused, &first), by_id(&refused)] {
        assert_eq!(ask(&client, question).await.unwrap().state(), MsgState::DeadLettered);
    }
    transfer.start().await.unwrap();
    eventually("it is stored", async || {
        let found = ask(&client, by_place(&refused, &again)).await?;
        ensure(found.state() == MsgState::Stored && found.seq == 2, format!("{found:?}"))
    })
    .await;
    both(&client, &refused, &again).await;
    assert!(transfer.stop().await.unwrap().success());
}

/// Its offsets begin again, and what is known of the former one must not count.
#[tokio::test]
async fn a_topic_made_anew_is_not_taken_for_the_former() {
    let world = World::new("status_anew").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    for i in 0..20 {
        send(&client, &msg("alice", "bob", &i.to_string(), "hello")).await.unwrap();
    }
    world.all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    assert_eq!(of(&client, &msg("alice", "bob", "never", "x")).await, not_found());
    // At once: the gateway has the former topic's id.
    let kafka = stack().await.kafka();
    kafka.delete_topic(world.topic()).await.unwrap();
    eventually("the topic is made anew", async || {
        kafka.create_topic(world.topic(), world.partitions, &[]).await.map_err(Into::into)
    })
    .await;
    let message = msg("alice", "bob", "new", "hello");
    let writer = world.writer();
    writer.put(&good(&message));
    writer.flush();
    let placement =
        Placement { partition: partition_for(b"bob", world.partitions), offset: Some(0), ..Placement::default() };
    assert_eq!(ask(&client, by_place(&message, &placement)).await.unwrap(), pending(0));
    assert_eq!(of(&client, &message).await, pending(1));
}

#[tokio::test]
async fn without_kafka_what_is_final_is_told_all_the_same() {
    let (stack, _folder) = own_stack("status_away").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "status_away", 4);
    world.create(&stack).await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let message = msg("alice", "bob", "1", "hello");
    let placement = send(&client, &message).await.unwrap();
    world.all_committed().await;
    stack.kafka().stop().await;
    assert_eq!(both(&client, &message, &placement).await.state(), MsgState::Stored);
    let unsent = msg("alice", "bob", "2", "hello");
    let details = assert_failed(ask(&client, by_id(&unsent)).await, Code::Unavailable, "KAFKA_UNAVAILABLE");
    // Also when the caller waits no longer than one question to Kafka may take: the database is not to blame.
    let mut hurried = tonic::Request::new(by_id(&unsent));
    hurried.set_timeout(std::time::Duration::from_secs(2));
    let told = client.clone().get_msg_status(hurried).await.map(tonic::Response::into_inner);
    assert_failed(told, Code::Unavailable, "KAFKA_UNAVAILABLE");
    assert!(details.retry_info().is_some());
    not_ready_because(&gateway.service, &["kafka"]).await;
    transfer.kill().await;
    stack.stop().await;
}

#[tokio::test]
async fn a_bad_question_is_told_what_is_wrong_with_it() {
    let world = idle("status_bad").await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let bad = GetMsgStatusRequest { recv_id: String::new(), msg_id: "x".into(), partition: Some(4), offset: Some(-1) };
    let details = assert_failed(ask(&client, bad).await, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&details), ["recv_id", "msg_id", "partition", "offset"]);
    let half = GetMsgStatusRequest { offset: Some(0), ..by_id(&msg("alice", "bob", "1", "hello")) };
    let details = assert_failed(ask(&client, half).await, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&details), ["partition"]);
}
