//! P3 within a stream: messages to one inbox are stored in the order in which they were sent, also after a failure.

use futures_util::future::join_all;
use msg_stack::Signal;
use tonic::Code;

use super::{open, request};
use crate::gateway::calls::{assert_failed, client, wait_in_flight};
use crate::support::kafka::msg;
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{ensure, eventually};

#[tokio::test]
async fn stream_entries_keep_their_order_in_each_inbox_under_load() {
    let world = World::new("stream_order").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    const STREAMS: u64 = 6;
    const EACH: u64 = 4000;
    const INBOXES: u64 = 4;
    join_all((0..STREAMS).map(async |sender| {
        let mut stream = open(&client).await;
        let message = |i: u64| msg(&format!("sender-{sender}"), &format!("inbox-{}", i % INBOXES), &i.to_string(), "x");
        let requests = stream.requests.clone();
        let sending = async move {
            // Requests of varying sizes.
            let (mut next, mut size) = (0, 1);
            while next < EACH {
                let end = EACH.min(next + size);
                requests.send(request(next, (next..end).map(message))).await.unwrap();
                (next, size) = (end, size % 97 + 7);
            }
        };
        let (results, ()) = tokio::join!(stream.results(EACH as usize), sending);
        assert!(results.values().all(Result::is_ok));
        let (remaining, end) = stream.finish().await;
        assert!(remaining.is_empty() && end.is_ok());
    }))
    .await;
    world.wait_for_rows((STREAMS * EACH) as i64).await;
    world.assert_ordered_without_gaps().await;
    let rows = world.rows().await;
    for inbox in 0..INBOXES {
        for sender in 0..STREAMS {
            let (recv_id, send_id) = (format!("inbox-{inbox}"), format!("sender-{sender}"));
            let matching = rows.iter().filter(|row| row.recv_id == recv_id && row.send_id == send_id);
            let found: Vec<u64> = matching.map(|row| row.client_msg_id.parse().unwrap()).collect();
            let sent: Vec<u64> = (inbox..EACH).step_by(INBOXES as usize).collect();
            assert_eq!(found, sent, "P3: of {send_id} in {recv_id}");
        }
    }
}

#[tokio::test]
async fn inbox_is_blocked_after_unknown_until_entries_are_resent() {
    let (stack, _folder) = own_stack("predecessor").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "predecessor", 4);
    world.create(&stack).await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_SEND_WAIT", "2s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let mut stream = open(&client).await;
    let bobs = |id: &str| msg("alice", "bob", id, "x");
    stream.send_and_read(request(0, [bobs("before")])).await[&0].as_ref().unwrap();
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    // Both were passed to the producer before either outcome was known.
    let results = stream.send_and_read(request(1, [bobs("1"), bobs("2")])).await;
    for id in [1, 2] {
        assert_failed(results[&id].clone(), Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    }
    let assert_blocked = async |stream: &mut super::Stream, id| {
        let results = stream.send_and_read(request(9, [bobs(id)])).await;
        assert_failed(results[&9].clone(), Code::Aborted, "PREDECESSOR_FAILED");
    };
    assert_blocked(&mut stream, "3").await;
    wait_in_flight(&gateway, 2).await;
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    wait_in_flight(&gateway, 0).await;
    // Kafka is available again, but the inbox stays blocked until the first failed entry is sent again.
    for id in ["3", "2", "4"] {
        assert_blocked(&mut stream, id).await;
    }
    let others = stream.send_and_read(request(20, [msg("alice", "carol", "1", "x")])).await;
    others[&20].as_ref().expect("another inbox is not blocked");
    eventually("the first failed entry is accepted", async || {
        let results = stream.send_and_read(request(30, [bobs("1")])).await;
        ensure(results[&30].is_ok(), format!("{results:?}"))
    })
    .await;
    assert_blocked(&mut stream, "4").await;
    let results = stream.send_and_read(request(40, ["2", "3", "4", "5"].map(bobs))).await;
    assert!(results.values().all(Result::is_ok), "{results:?}");
    assert!(stream.finish().await.1.is_ok());
    // A new stream is not blocked.
    let mut fresh = open(&client).await;
    fresh.send_and_read(request(0, [bobs("6")])).await[&0].as_ref().unwrap();
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    let rows: Vec<_> = world.rows().await.into_iter().filter(|row| row.recv_id == "bob").collect();
    let found: Vec<&str> = rows.iter().map(|row| row.client_msg_id.as_str()).collect();
    assert_eq!(found, ["before", "1", "2", "3", "4", "5", "6"], "P2, P3");
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}
