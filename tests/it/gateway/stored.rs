//! `wait_for: STORED`: the response has the row's `seq`, or the error says why there is no row yet.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use msg_common::proto::send_result::Result as Outcome;
use msg_common::proto::{BatchSendMsgRequest, Msg, Placement, PullMsgsRequest, SendMsgRequest, WaitFor};
use msg_common::table::Digest;
use tonic::{Code, Request, Status};

use super::calls::{Client, assert_failed, assert_not_sent, client, fields, metric, send, without};
use crate::support::fields::with_changed_fields;
use crate::support::kafka::{msg, msg_id_of};
use crate::support::world::{Gateway, World};
use crate::support::{ensure, eventually};

pub(super) async fn send_stored(client: &Client, msg: &Msg, within: Duration) -> Result<Placement, Status> {
    let mut request = Request::new(SendMsgRequest { msg: Some(msg.clone()), wait_for: WaitFor::Stored.into() });
    request.set_timeout(within);
    Ok(client.clone().send_msg(request).await?.into_inner().placement.expect("an OK has a placement"))
}

/// Waits until exactly `count` callers wait for STORED.
pub(super) async fn wait_for_waiters(gateway: &Gateway, count: f64) {
    eventually("the number of waiters is right", async || {
        let found = metric(gateway, "msg_gateway_stored_waiters").await?;
        ensure(found == count, format!("{found} wait"))
    })
    .await;
}

pub(super) const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn stored_response_has_the_seq_of_its_row() {
    let world = World::new("stored").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let sends = (0..200).map(async |i: usize| {
        let msg = msg("alice", &format!("inbox-{}", i % 5), &i.to_string(), "hello");
        (msg.clone(), send_stored(&client, &msg, LONG).await.unwrap())
    });
    let sent = join_all(sends).await;
    let rows = world.rows().await;
    assert_eq!(rows.len(), 200);
    for (msg, placement) in &sent {
        let stored = placement.stored.as_ref().expect("the response has the row");
        let row = rows.iter().find(|row| (&row.recv_id, row.seq) == (&msg.recv_id, stored.seq)).unwrap();
        assert_eq!(row.client_msg_id, msg.client_msg_id, "the response's seq is that of its row");
        assert_eq!((row.partition, row.offset), (placement.partition, placement.offset.unwrap()));
        assert!(!stored.duplicate && stored.stored_time.is_some());
    }
    // Sent again: the row stays as it is.
    for (msg, first) in sent.iter().take(20) {
        let again = send_stored(&client, msg, LONG).await.unwrap();
        let (first, again) = (first.stored.as_ref().unwrap(), again.stored.unwrap());
        assert_eq!((again.seq, again.stored_time, again.duplicate), (first.seq, first.stored_time, true));
    }
    wait_for_waiters(&gateway, 0.0).await;
}

#[tokio::test]
async fn concurrent_sends_of_one_id_are_one_row() {
    let world = World::new("stored_twins").await;
    let _transfer = world.running_transfer().await;
    let gateways = [world.running_gateway().await, world.gateway("other", |spec| spec)];
    gateways[1].service.start().await.unwrap();
    let clients = [client(&gateways[0]).await, client(&gateways[1]).await];
    for turn in 0..20 {
        let msg = msg("alice", "bob", &turn.to_string(), "hello");
        let sends = (0..4).map(|n| send_stored(&clients[n % 2], &msg, LONG));
        let stored: Vec<_> = join_all(sends).await.into_iter().map(|sent| sent.unwrap().stored.unwrap()).collect();
        assert_eq!(stored.iter().map(|stored| stored.seq).collect::<BTreeSet<_>>(), [turn + 1].into());
        assert_eq!(stored.iter().filter(|stored| !stored.duplicate).count(), 1, "exactly one send created the row");
    }
}

#[tokio::test]
async fn message_not_stored_in_time_is_reported_with_its_position() {
    let world = World::new("stored_late").await;
    // The margin is so long that the response arrives before the client's own timer ends the call.
    let gateway = world.gateway("gateway", |spec| spec.env("DEADLINE_MARGIN", "700ms"));
    gateway.service.start().await.unwrap();
    // The transfer creates the tables.
    world.running_transfer().await.stop().await.unwrap();
    let client = client(&gateway).await;
    let late = msg("alice", "bob", "late", "hello");
    let started = Instant::now();
    let rejected = send_stored(&client, &late, Duration::from_secs(2)).await;
    let details = assert_failed(rejected, Code::DeadlineExceeded, "NOT_STORED_YET");
    assert!(started.elapsed() < Duration::from_secs(2), "the error came after the caller's deadline");
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["msg_id"], msg_id_of(&late).to_string());
    let position = (metadata["partition"].parse::<i32>().unwrap(), metadata["offset"].parse::<i64>().unwrap());
    assert!(metadata["send_time"].ends_with('Z'));
    // A caller that disconnects is no waiter any more.
    let disconnected = msg("alice", "carol", "1", "hello");
    let result = tokio::time::timeout(Duration::from_millis(300), send_stored(&client, &disconnected, LONG)).await;
    assert!(result.is_err());
    wait_for_waiters(&gateway, 0.0).await;
    let _transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    let rows = world.rows().await;
    let row = rows.iter().find(|row| row.client_msg_id == "late").expect("it was accepted");
    assert_eq!((row.partition, row.offset), position);
}

#[tokio::test]
async fn other_content_under_a_used_id_is_reported_as_a_conflict() {
    let world = World::new("stored_conflict").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let first = msg("alice", "bob", "1", "hello");
    send_stored(&client, &first, LONG).await.unwrap();
    let mut others = with_changed_fields(&first);
    others.retain(|(_, other)| msg_id_of(other) == msg_id_of(&first));
    for (field, other) in &others {
        let details = assert_failed(send_stored(&client, other, LONG).await, Code::AlreadyExists, "DEAD_LETTERED");
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!(metadata["dead_letter_reason"], "IDEMPOTENCY_CONFLICT", "another {field}");
        assert!(metadata.contains_key("offset"));
    }
    assert_eq!((world.rows().await.len(), world.dead_letters().await.len()), (1, others.len()));
}

/// With the test above: the comparison of a waiter's message with a row uses every field, also those that the ID depends on.
#[test]
fn digest_of_message_changes_with_any_field() {
    let first = msg("alice", "bob", "1", "hello");
    for (field, other) in with_changed_fields(&first) {
        assert_ne!(Digest::of(&other), Digest::of(&first), "another {field}");
    }
}

#[tokio::test]
async fn every_field_is_stored_read_and_found_again() {
    let world = World::new("stored_fields").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    for (field, changed) in with_changed_fields(&msg("alice", "bob", "1", "hello")) {
        let sent = Msg { client_msg_id: field.clone(), ..changed };
        let stored = send_stored(&client, &sent, LONG).await.unwrap().stored.unwrap();
        assert!(!stored.duplicate, "another {field}");
        let again = send_stored(&client, &sent, LONG).await.unwrap().stored.unwrap();
        assert_eq!((again.seq, again.duplicate), (stored.seq, true), "{field} is lost in the row, or in reading it");
        let (recv_id, seq) = (sent.recv_id.clone(), stored.seq);
        let page = PullMsgsRequest { recv_id, from_seq: seq, to_seq: seq, ..PullMsgsRequest::default() };
        let read = client.clone().pull_msgs(page).await.unwrap().into_inner().msgs;
        assert_eq!(read.into_iter().map(|stored| stored.msg).collect::<Vec<_>>(), [Some(sent)], "{field}");
    }
}

#[tokio::test]
async fn message_rejected_by_database_is_reported_dead_lettered() {
    let world = World::new("stored_rejected").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let rule = "ALTER TABLE messages ADD CONSTRAINT polite CHECK (content_type <> 'text/rude')";
    world.database().await.batch_execute(rule).await.unwrap();
    let client = client(&gateway).await;
    let rude = Msg { content_type: "text/rude".into(), ..msg("alice", "bob", "1", "hey") };
    let details = assert_failed(send_stored(&client, &rude, LONG).await, Code::FailedPrecondition, "DEAD_LETTERED");
    assert_eq!(details.error_info().unwrap().metadata["dead_letter_reason"], "REJECTED_BY_DATABASE");
    send_stored(&client, &msg("alice", "bob", "2", "hello"), LONG).await.unwrap();
}

#[tokio::test]
async fn waiters_are_served_without_hints() {
    let world = World::without_hints("stored_no_hints").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    for i in 0..5 {
        let sends = (0..20).map(async |n: usize| {
            send_stored(&client, &msg("alice", &format!("inbox-{n}"), &i.to_string(), "hello"), LONG).await.unwrap()
        });
        join_all(sends).await;
    }
    assert_eq!(world.rows().await.len(), 100);
    let from_table = metric(&gateway, "msg_gateway_stored_results_total{source=\"table\"}").await.unwrap();
    let all = metric(&gateway, "msg_gateway_stored_results_total").await.unwrap();
    assert_eq!((from_table, all), (100.0, 100.0));
}

#[tokio::test]
async fn waiters_have_a_limit_that_is_checked_before_sending() {
    let world = World::new("stored_full").await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_STORED_WAITERS", 2));
    gateway.service.start().await.unwrap();
    world.running_transfer().await.stop().await.unwrap();
    let client = client(&gateway).await;
    let sends: Vec<_> = (0..2)
        .map(|i| {
            let client = client.clone();
            tokio::spawn(async move { send_stored(&client, &msg("alice", "bob", &i.to_string(), "x"), LONG).await })
        })
        .collect();
    wait_for_waiters(&gateway, 2.0).await;
    let batch = async |count: usize| {
        let msgs = vec![msg("alice", "bob", "batch", "x"); count];
        client.clone().batch_send_msg(BatchSendMsgRequest { msgs, wait_for: WaitFor::Stored.into() }).await
    };
    assert_not_sent(batch(2).await, Code::ResourceExhausted);
    // A batch of more messages than MAX_STORED_WAITERS can never wait.
    assert_eq!(fields(&assert_failed(batch(3).await, Code::InvalidArgument, "INVALID_FIELDS")), ["msgs"]);
    let rejected = send_stored(&client, &msg("alice", "bob", "third", "x"), LONG).await;
    assert_failed(rejected, Code::ResourceExhausted, "NOT_SENT");
    send(&client, &msg("alice", "bob", "does not wait", "x")).await.unwrap();
    let _transfer = world.running_transfer().await;
    for send in sends {
        assert!(send.await.unwrap().unwrap().stored.is_some());
    }
    world.wait_for_all_committed().await;
    let ids: BTreeSet<String> = world.rows().await.into_iter().map(|row| row.client_msg_id).collect();
    assert_eq!(ids, ["0", "1", "does not wait"].map(str::to_owned).into());

    let without_database = world.gateway("blind", |spec| without(spec, "DATABASE_URL"));
    without_database.service.start().await.unwrap();
    let without_database = super::calls::client(&without_database).await;
    let rejected = send_stored(&without_database, &msg("alice", "bob", "blind", "x"), LONG).await;
    assert_failed(rejected, Code::FailedPrecondition, "NO_DATABASE");
}

#[tokio::test]
async fn batch_waits_for_each_of_its_entries() {
    let world = World::new("stored_batch").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let mut client = client(&gateway).await;
    send_stored(&client, &msg("alice", "bob", "1", "first"), LONG).await.unwrap();
    let msgs = vec![
        msg("alice", "bob", "1", "first"),
        msg("alice", "bob", "2", "second"),
        msg("alice", "bob", "1", "another"),
        msg("alice", "", "3", "no receiver"),
        msg("alice", "carol", "4", "hello"),
        msg("alice", "carol", "4", "hello"),
    ];
    let request = BatchSendMsgRequest { msgs, wait_for: WaitFor::Stored.into() };
    let results = client.batch_send_msg(request).await.unwrap().into_inner().results;
    let outcomes: Vec<String> = results
        .iter()
        .map(|result| match result.result.as_ref().unwrap() {
            Outcome::Placement(placement) => {
                let stored = placement.stored.as_ref().unwrap();
                format!("{} {}", stored.seq, stored.duplicate)
            }
            Outcome::Error(status) => format!("error {}", status.code),
        })
        .collect();
    assert_eq!(outcomes, ["1 true", "2 false", "error 6", "error 3", "1 false", "1 true"]);
}
