//! P3 within a stream: what is sent to one inbox is stored in that order, also after something failed.

use futures_util::future::join_all;
use msg_dev::stack::Signal;
use tonic::Code;

use super::{open, request};
use crate::gateway::calls::{assert_failed, client, in_flight};
use crate::support::kafka::msg;
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{ensure, eventually};

#[tokio::test]
async fn under_load_each_streams_entries_keep_their_order_in_each_inbox() {
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
            // Of all sizes.
            let (mut next, mut size) = (0, 1);
            while next < EACH {
                let end = EACH.min(next + size);
                requests.send(request(next, (next..end).map(message))).await.unwrap();
                (next, size) = (end, size % 97 + 7);
            }
        };
        let (told, ()) = tokio::join!(stream.results(EACH as usize), sending);
        assert!(told.values().all(Result::is_ok));
        let (rest, end) = stream.finish().await;
        assert!(rest.is_empty() && end.is_ok());
    }))
    .await;
    world.rows_reach((STREAMS * EACH) as i64).await;
    world.assert_ordered_without_gaps().await;
    let rows = world.rows().await;
    for inbox in 0..INBOXES {
        for sender in 0..STREAMS {
            let (recv_id, send_id) = (format!("inbox-{inbox}"), format!("sender-{sender}"));
            let of_both = rows.iter().filter(|row| row.recv_id == recv_id && row.send_id == send_id);
            let found: Vec<u64> = of_both.map(|row| row.client_msg_id.parse().unwrap()).collect();
            let sent: Vec<u64> = (inbox..EACH).step_by(INBOXES as usize).collect();
            assert_eq!(found, sent, "P3: of {send_id} in {recv_id}");
        }
    }
}

#[tokio::test]
async fn after_an_unknown_outcome_an_inbox_waits_until_the_same_comes_again() {
    let (stack, _folder) = own_stack("predecessor").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "predecessor", 4);
    world.create(&stack).await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_SEND_WAIT", "2s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let mut stream = open(&client).await;
    let bobs = |id: &str| msg("alice", "bob", id, "x");
    stream.ask(request(0, [bobs("before")])).await[&0].as_ref().unwrap();
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    // Both were handed over before anybody knew.
    let told = stream.ask(request(1, [bobs("1"), bobs("2")])).await;
    for id in [1, 2] {
        assert_failed(told[&id].clone(), Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    }
    let blocked = async |stream: &mut super::Stream, id| {
        let told = stream.ask(request(9, [bobs(id)])).await;
        assert_failed(told[&9].clone(), Code::Aborted, "PREDECESSOR_FAILED");
    };
    blocked(&mut stream, "3").await;
    in_flight(&gateway, 2).await;
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    in_flight(&gateway, 0).await;
    // Kafka is there again, and the order is kept all the same: first what failed first.
    for id in ["3", "2", "4"] {
        blocked(&mut stream, id).await;
    }
    let others = stream.ask(request(20, [msg("alice", "carol", "1", "x")])).await;
    others[&20].as_ref().expect("another inbox is not concerned");
    eventually("the first goes again", async || {
        let told = stream.ask(request(30, [bobs("1")])).await;
        ensure(told[&30].is_ok(), format!("{told:?}"))
    })
    .await;
    blocked(&mut stream, "4").await;
    let told = stream.ask(request(40, ["2", "3", "4", "5"].map(bobs))).await;
    assert!(told.values().all(Result::is_ok), "{told:?}");
    assert!(stream.finish().await.1.is_ok());
    // A new stream knows nothing of it.
    let mut fresh = open(&client).await;
    fresh.ask(request(0, [bobs("6")])).await[&0].as_ref().unwrap();
    let transfer = world.running_transfer().await;
    world.all_committed().await;
    let rows: Vec<_> = world.rows().await.into_iter().filter(|row| row.recv_id == "bob").collect();
    let found: Vec<&str> = rows.iter().map(|row| row.client_msg_id.as_str()).collect();
    assert_eq!(found, ["before", "1", "2", "3", "4", "5", "6"], "P2, P3");
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}
