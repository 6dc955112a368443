//! SIGTERM: health says so first, what is in flight ends well, exit code 0.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::{join, join_all};
use msg_dev::stack::Signal;
use tokio::time::timeout;

use super::calls::{channel, client, health, in_flight, readyz, reason, send};
use super::outage::Told;
use crate::support::kafka::msg;
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{PATIENCE, ensure, eventually};

#[tokio::test]
async fn on_sigterm_under_load_every_answer_is_true() {
    let world = World::new("sigterm").await;
    let transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("SHUTDOWN_DELAY", "2s"));
    gateway.service.start().await.unwrap();
    let told = Mutex::new(Told::default());
    // Each on a connection of its own, until the gateway is gone.
    let load = join_all((0..20).map(async |sender: usize| {
        let client = client(&gateway).await;
        for i in 0.. {
            let id = format!("{sender}-{i}");
            let result = send(&client, &msg("a", &format!("inbox-{}", i % 10), &id, "some body")).await;
            let mut told = told.lock().unwrap();
            match result.map_err(|status| reason(&status)) {
                Ok(_) => told.ok.push(id),
                Err(Some(reason)) if reason == "NOT_SENT" => told.not_sent.push(id),
                Err(Some(reason)) => panic!("{reason}"),
                Err(None) => return told.unknown.push(id),
            }
        }
    }));
    let oks = || told.lock().unwrap().ok.len();
    let end = async {
        let client = client(&gateway).await;
        let mut watch = health::watch(&channel(&gateway).await).await;
        assert_eq!(watch.message().await.unwrap().unwrap().status, health::SERVING);
        eventually("messages are taken", async || ensure(oks() > 1000, oks())).await;
        assert!(gateway.service.signal(Signal::Term));
        let next = timeout(PATIENCE, watch.message()).await.expect("health says so").unwrap();
        let next = next.expect("NOT_SERVING comes before the end of the stream");
        assert_eq!(next.status, health::NOT_SERVING);
        // Whoever has not noticed yet is still served.
        send(&client, &msg("a", "inbox-0", "after", "x")).await.unwrap();
        told.lock().unwrap().ok.push("after".into());
        let (status, body) = readyz(&gateway).await.unwrap();
        assert!(status == 503 && body.contains("draining"), "{status}: {body}");
        assert_eq!(gateway.service.wait().await.unwrap().code(), Some(0));
    };
    join(load, end).await;
    world.all_committed().await;
    told.into_inner().unwrap().assert_true(&world).await;
    world.assert_ordered_without_gaps().await;
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn calls_in_flight_end_with_ok_before_it_ends() {
    let (stack, _folder) = own_stack("in_flight").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "in_flight", 4);
    world.create(&stack).await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "before", "x")).await.unwrap();
    let mut watch = health::watch(&channel(&gateway).await).await;
    assert_eq!(watch.message().await.unwrap().unwrap().status, health::SERVING);
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    const CALLS: usize = 30;
    let calls: Vec<_> = (0..CALLS)
        .map(|i| {
            let client = client.clone();
            tokio::spawn(async move { send(&client, &msg("alice", "bob", &i.to_string(), "x")).await })
        })
        .collect();
    in_flight(&gateway, CALLS).await;
    assert!(gateway.service.signal(Signal::Term));
    let next = watch.message().await.unwrap().expect("NOT_SERVING comes before the end of the stream");
    assert_eq!(next.status, health::NOT_SERVING);
    // Its stream would keep the connection open, so it is ended. Before that it may say the same again: the frozen broker
    // is noticed too.
    while let Ok(Some(again)) = timeout(PATIENCE, watch.message()).await.expect("the watchers are let go") {
        assert_eq!(again.status, health::NOT_SERVING);
    }
    assert!(calls.iter().all(|call| !call.is_finished()));
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    for call in calls {
        call.await.unwrap().expect("it was in flight before the end");
    }
    let status = timeout(Duration::from_secs(20), gateway.service.wait()).await.expect("nothing holds it any more");
    assert_eq!(status.unwrap().code(), Some(0));
    let transfer = world.running_transfer().await;
    world.all_committed().await;
    assert_eq!(world.rows().await.len(), 1 + CALLS);
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

/// What cannot be delivered does not hold the end for ever: the caller is told that its outcome is unknown, or is cut off.
#[tokio::test]
async fn the_drain_has_a_deadline() {
    let (stack, _folder) = own_stack("stuck").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "stuck", 4);
    world.create(&stack).await;
    let gateway = world.gateway("gateway", |spec| spec.env("DRAIN_TIMEOUT", "3s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "before", "x")).await.unwrap();
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    let stuck = tokio::spawn(async move { send(&client, &msg("alice", "bob", "stuck", "x")).await });
    in_flight(&gateway, 1).await;
    assert!(gateway.service.signal(Signal::Term));
    let status = timeout(Duration::from_secs(20), gateway.service.wait()).await.expect("it ends all the same");
    assert_eq!(status.unwrap().code(), Some(0));
    let told = stuck.await.unwrap().expect_err("nobody confirmed it");
    let reason = reason(&told);
    assert!(matches!(reason.as_deref(), None | Some("OUTCOME_UNKNOWN")), "P6: {told:?}");
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    stack.stop().await;
}

/// Its caller has gone, and the record waits for others to the same partition: it is sent before the gateway ends.
#[tokio::test]
async fn record_of_a_caller_that_left_is_sent_at_sigterm() {
    let world = World::new("left").await;
    let gateway = world.gateway("gateway", |spec| spec.env("LINGER", "1s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    // So that the gateway is connected, and only the linger time keeps the next one.
    send(&client, &msg("alice", "bob", "before", "x")).await.unwrap();
    let before = world.ends().await.iter().sum::<i64>();
    let left = timeout(Duration::from_millis(200), send(&client, &msg("alice", "bob", "left", "x"))).await;
    assert!(left.is_err(), "it was accepted before its caller left: {left:?}");
    assert!(gateway.service.signal(Signal::Term));
    assert_eq!(gateway.service.wait().await.unwrap().code(), Some(0));
    assert_eq!(world.ends().await.iter().sum::<i64>(), before + 1, "the record is lost");
}
