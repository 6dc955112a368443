//! `wait_for: STORED`: the answer tells the row, or the truth about why there is none yet.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use msg_common::proto::send_result::Result as Outcome;
use msg_common::proto::{BatchSendMsgRequest, Msg, Placement, SendMsgRequest, WaitFor};
use tonic::{Code, Request, Status};

use super::calls::{Client, assert_failed, assert_not_sent, client, fields, metric, send, without};
use crate::support::kafka::msg;
use crate::support::world::{Gateway, World};
use crate::support::{ensure, eventually};

pub(super) async fn send_stored(client: &Client, msg: &Msg, within: Duration) -> Result<Placement, Status> {
    let mut request = Request::new(SendMsgRequest { msg: Some(msg.clone()), wait_for: WaitFor::Stored.into() });
    request.set_timeout(within);
    Ok(client.clone().send_msg(request).await?.into_inner().placement.expect("an OK has one"))
}

/// Until so many wait.
pub(super) async fn waiting(gateway: &Gateway, count: f64) {
    eventually("so many wait", async || {
        let found = metric(gateway, "msg_gateway_stored_waiters").await?;
        ensure(found == count, format!("{found} wait"))
    })
    .await;
}

pub(super) const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_answer_tells_the_row() {
    let world = World::new("stored").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let sends = (0..200).map(async |i: usize| {
        let msg = msg("alice", &format!("inbox-{}", i % 5), &i.to_string(), "hello");
        (msg.clone(), send_stored(&client, &msg, LONG).await.unwrap())
    });
    let answered = join_all(sends).await;
    let rows = world.rows().await;
    assert_eq!(rows.len(), 200);
    for (msg, placement) in &answered {
        let stored = placement.stored.as_ref().expect("it is stored");
        let row = rows.iter().find(|row| (&row.recv_id, row.seq) == (&msg.recv_id, stored.seq)).unwrap();
        assert_eq!(row.client_msg_id, msg.client_msg_id, "the answer's seq is that of its row");
        assert_eq!((row.partition, row.offset), (placement.partition, placement.offset.unwrap()));
        assert!(!stored.duplicate && stored.stored_time.is_some());
    }
    // The same again: the row was there before, and stays where it was.
    for (msg, first) in answered.iter().take(20) {
        let again = send_stored(&client, msg, LONG).await.unwrap();
        let (first, again) = (first.stored.as_ref().unwrap(), again.stored.unwrap());
        assert_eq!((again.seq, again.stored_time, again.duplicate), (first.seq, first.stored_time, true));
    }
    waiting(&gateway, 0.0).await;
}

#[tokio::test]
async fn two_at_once_with_the_same_id_are_one_row() {
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
        assert_eq!(stored.iter().filter(|stored| !stored.duplicate).count(), 1, "one of them made the row");
    }
}

#[tokio::test]
async fn what_is_not_stored_in_time_is_accepted_and_its_place_is_told() {
    let world = World::new("stored_late").await;
    // So that the answer is there before the client gives up, however slow the machine is.
    let gateway = world.gateway("gateway", |spec| spec.env("DEADLINE_MARGIN", "700ms"));
    gateway.service.start().await.unwrap();
    // The transfer makes the tables.
    world.running_transfer().await.stop().await.unwrap();
    let client = client(&gateway).await;
    let late = msg("alice", "bob", "late", "hello");
    let begun = Instant::now();
    let refused = send_stored(&client, &late, Duration::from_secs(2)).await;
    let details = assert_failed(refused, Code::DeadlineExceeded, "NOT_STORED_YET");
    assert!(begun.elapsed() < Duration::from_secs(2), "told before the caller's deadline");
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["msg_id"], crate::support::kafka::id_of(&late).to_string());
    let place = (metadata["partition"].parse::<i32>().unwrap(), metadata["offset"].parse::<i64>().unwrap());
    assert!(metadata["send_time"].ends_with('Z'));
    // Who went away does not wait any more.
    let given_up = msg("alice", "carol", "1", "hello");
    let gone = tokio::time::timeout(Duration::from_millis(300), send_stored(&client, &given_up, LONG)).await;
    assert!(gone.is_err());
    waiting(&gateway, 0.0).await;
    let _transfer = world.running_transfer().await;
    world.all_committed().await;
    let rows = world.rows().await;
    let row = rows.iter().find(|row| row.client_msg_id == "late").expect("it was accepted");
    assert_eq!((row.partition, row.offset), place);
}

#[tokio::test]
async fn another_content_under_a_used_id_is_told_as_a_conflict() {
    let world = World::new("stored_conflict").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let first = msg("alice", "bob", "1", "hello");
    send_stored(&client, &first, LONG).await.unwrap();
    for other in [
        msg("alice", "bob", "1", "hullo"),
        Msg { content_type: "text/html".into(), ..first.clone() },
        Msg { attributes: [("lang".to_owned(), "de".to_owned())].into(), ..first.clone() },
    ] {
        let details = assert_failed(send_stored(&client, &other, LONG).await, Code::AlreadyExists, "DEAD_LETTERED");
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!(metadata["dead_letter_reason"], "IDEMPOTENCY_CONFLICT");
        assert!(metadata.contains_key("offset"));
    }
    assert_eq!((world.rows().await.len(), world.dead_letters().await.len()), (1, 3));
}

#[tokio::test]
async fn what_the_database_refuses_is_told_as_a_dead_letter() {
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
async fn without_hints_it_works_too() {
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
}

#[tokio::test]
async fn who_may_wait_has_a_limit_and_is_refused_before_anything_is_sent() {
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
    waiting(&gateway, 2.0).await;
    let batch = async |count: usize| {
        let msgs = vec![msg("alice", "bob", "batch", "x"); count];
        client.clone().batch_send_msg(BatchSendMsgRequest { msgs, wait_for: WaitFor::Stored.into() }).await
    };
    assert_not_sent(batch(2).await, Code::ResourceExhausted);
    // There is never room for these.
    assert_eq!(fields(&assert_failed(batch(3).await, Code::InvalidArgument, "INVALID_FIELDS")), ["msgs"]);
    let refused = send_stored(&client, &msg("alice", "bob", "third", "x"), LONG).await;
    assert_failed(refused, Code::ResourceExhausted, "NOT_SENT");
    send(&client, &msg("alice", "bob", "does not wait", "x")).await.unwrap();
    let _transfer = world.running_transfer().await;
    for send in sends {
        assert!(send.await.unwrap().unwrap().stored.is_some());
    }
    world.all_committed().await;
    let ids: BTreeSet<String> = world.rows().await.into_iter().map(|row| row.client_msg_id).collect();
    assert_eq!(ids, ["0", "1", "does not wait"].map(str::to_owned).into());

    let blind = world.gateway("blind", |spec| without(spec, "DATABASE_URL"));
    blind.service.start().await.unwrap();
    let blind = super::calls::client(&blind).await;
    let refused = send_stored(&blind, &msg("alice", "bob", "blind", "x"), LONG).await;
    assert_failed(refused, Code::FailedPrecondition, "NO_DATABASE");
}

#[tokio::test]
async fn a_batch_waits_for_each_of_its_entries() {
    let world = World::new("stored_batch").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let mut client = client(&gateway).await;
    send_stored(&client, &msg("alice", "bob", "1", "first"), LONG).await.unwrap();
    let msgs = vec![
        msg("alice", "bob", "1", "first"),
        msg("alice", "bob", "2", "second"),
        msg("alice", "bob", "1", "another"),
        msg("alice", "", "3", "to nobody"),
        msg("alice", "carol", "4", "hello"),
        msg("alice", "carol", "4", "hello"),
    ];
    let request = BatchSendMsgRequest { msgs, wait_for: WaitFor::Stored.into() };
    let results = client.batch_send_msg(request).await.unwrap().into_inner().results;
    let told: Vec<String> = results
        .iter()
        .map(|result| match result.result.as_ref().unwrap() {
            Outcome::Placement(placement) => {
                let stored = placement.stored.as_ref().unwrap();
                format!("{} {}", stored.seq, stored.duplicate)
            }
            Outcome::Error(status) => format!("error {}", status.code),
        })
        .collect();
    assert_eq!(told, ["1 true", "2 false", "error 6", "error 3", "1 false", "1 true"]);
}
