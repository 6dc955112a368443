//! SIGTERM: health reports it first, calls in flight end, and the exit code is 0.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::{join, join_all};
use msg_stack::Signal;
use tokio::time::timeout;

use super::calls::{channel, client, health, readyz, reason, send, wait_in_flight};
use super::outage::Outcomes;
use crate::support::kafka::msg;
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

#[tokio::test]
async fn gateway_reports_true_outcomes_at_sigterm_under_load() {
    let world = World::new("sigterm").await;
    let transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("SHUTDOWN_DELAY", "2s"));
    gateway.service.start().await.unwrap();
    let outcomes = Mutex::new(Outcomes::default());
    // Each sender has its own connection, and sends until the gateway has exited.
    let load = join_all((0..20).map(async |sender: usize| {
        let client = client(&gateway).await;
        for i in 0.. {
            let id = format!("{sender}-{i}");
            let result = send(&client, &msg("a", &format!("inbox-{}", i % 10), &id, "some body")).await;
            let mut outcomes = outcomes.lock().unwrap();
            match result.map_err(|status| reason(&status)) {
                Ok(_) => outcomes.ok.push(id),
                Err(Some(reason)) if reason == "NOT_SENT" => outcomes.not_sent.push(id),
                Err(Some(reason)) => panic!("{reason}"),
                Err(None) => return outcomes.unknown.push(id),
            }
        }
    }));
    let oks = || outcomes.lock().unwrap().ok.len();
    let drain = async {
        let client = client(&gateway).await;
        let mut watch = health::watch(&channel(&gateway).await).await;
        assert_eq!(watch.message().await.unwrap().unwrap().status, health::SERVING);
        eventually("messages are accepted", async || ensure(oks() > 1000, oks())).await;
        assert!(gateway.service.signal(Signal::Term));
        let next = timeout(WAIT_TIMEOUT, watch.message()).await.expect("health reports the drain").unwrap();
        let next = next.expect("NOT_SERVING comes before the end of the stream");
        assert_eq!(next.status, health::NOT_SERVING);
        // A caller that has not noticed the drain is still served.
        send(&client, &msg("a", "inbox-0", "after", "x")).await.unwrap();
        outcomes.lock().unwrap().ok.push("after".into());
        let (status, body) = readyz(&gateway).await.unwrap();
        assert!(status == 503 && body.contains("draining"), "{status}: {body}");
        assert_eq!(gateway.service.wait().await.unwrap().code(), Some(0));
    };
    join(load, drain).await;
    world.wait_for_all_committed().await;
    outcomes.into_inner().unwrap().assert_truthful(&world).await;
    world.assert_ordered_without_gaps().await;
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn calls_in_flight_get_ok_before_the_gateway_exits() {
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
    wait_in_flight(&gateway, CALLS).await;
    assert!(gateway.service.signal(Signal::Term));
    let next = watch.message().await.unwrap().expect("NOT_SERVING comes before the end of the stream");
    assert_eq!(next.status, health::NOT_SERVING);
    // The server ends this stream, which would keep the connection open. It may send the same status once more,
    // because the frozen broker is detected too.
    while let Ok(Some(again)) = timeout(WAIT_TIMEOUT, watch.message()).await.expect("the watch stream ends") {
        assert_eq!(again.status, health::NOT_SERVING);
    }
    assert!(calls.iter().all(|call| !call.is_finished()));
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    for call in calls {
        call.await.unwrap().expect("a call in flight ends with OK");
    }
    let status = timeout(Duration::from_secs(20), gateway.service.wait())
        .await
        .expect("the gateway exits once no call is in flight");
    assert_eq!(status.unwrap().code(), Some(0));
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), 1 + CALLS);
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

/// An undeliverable record does not delay the exit beyond the deadline: its caller gets OUTCOME_UNKNOWN, or its
/// connection is closed.
#[tokio::test]
async fn gateway_drain_ends_at_its_deadline() {
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
    wait_in_flight(&gateway, 1).await;
    assert!(gateway.service.signal(Signal::Term));
    let status =
        timeout(Duration::from_secs(20), gateway.service.wait()).await.expect("the gateway exits at its deadline");
    assert_eq!(status.unwrap().code(), Some(0));
    let error = stuck.await.unwrap().expect_err("the frozen broker has not confirmed it");
    let reason = reason(&error);
    assert!(matches!(reason.as_deref(), None | Some("OUTCOME_UNKNOWN")), "P6: {error:?}");
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    stack.stop().await;
}

/// The caller has disconnected, and the record waits in the producer for more records of its partition. It is sent
/// before the gateway exits.
#[tokio::test]
async fn record_of_a_disconnected_caller_is_sent_at_sigterm() {
    let world = World::new("left").await;
    let gateway = world.gateway("gateway", |spec| spec.env("LINGER", "1s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    // With this send the gateway connects. Afterwards only the linger time delays a record.
    send(&client, &msg("alice", "bob", "before", "x")).await.unwrap();
    let before = world.end_offsets().await.iter().sum::<i64>();
    let left = timeout(Duration::from_millis(200), send(&client, &msg("alice", "bob", "left", "x"))).await;
    assert!(left.is_err(), "it was accepted before its caller disconnected: {left:?}");
    assert!(gateway.service.signal(Signal::Term));
    assert_eq!(gateway.service.wait().await.unwrap().code(), Some(0));
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), before + 1, "the record is lost");
}
