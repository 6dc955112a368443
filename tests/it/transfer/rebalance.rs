//! P1 to P5 while the group's members come, go, die and come back.

use std::sync::Arc;
use std::time::Duration;

use msg_dev::stack::{Service, Signal};

use crate::support::admin::generation;
use crate::support::load::{Load, OffsetWatch};
use crate::support::transfer::{lost, metric, not_ready_because, small_batches};
use crate::support::world::World;
use crate::support::{ensure, eventually, within};

async fn stop(transfer: &Service) {
    assert!(transfer.stop().await.unwrap().success());
}

/// Three that take turns in leaving and joining: each time the others go on, and so does the one that comes back.
#[tokio::test]
async fn members_that_leave_and_join_in_turns_lose_double_and_swap_nothing() {
    let world = Arc::new(World::new("turns").await);
    let load = Load::start(world.writer(), 100);
    let watch = OffsetWatch::start(&world);
    let members = ["one", "two", "three"].map(|name| world.transfer(name, small_batches));
    for member in &members[..2] {
        member.start().await.unwrap();
    }
    // Two take turns, then three.
    for leaving in [0, 1] {
        stop(&members[leaving]).await;
        world.goes_on_by(300).await;
        members[leaving].start().await.unwrap();
        world.goes_on_by(300).await;
    }
    members[2].start().await.unwrap();
    for leaving in [2, 0] {
        stop(&members[leaving]).await;
        members[leaving].start().await.unwrap();
        world.goes_on_by(300).await;
    }
    load.finish(&world).await;
    watch.finish().await;
    for member in &members {
        assert_eq!(lost(member).await, 0.0, "nobody was expelled");
        stop(member).await;
    }
}

/// Killed in turns under load. The other goes on meanwhile, and the group gets over it when the dead one's session ends.
#[tokio::test]
async fn members_killed_in_turns_lose_double_and_swap_nothing() {
    let world = Arc::new(World::new("kill_turns").await);
    let load = Load::start(world.writer(), 100);
    let watch = OffsetWatch::start(&world);
    let members = ["one", "two"].map(|name| world.transfer(name, small_batches));
    for member in &members {
        member.start().await.unwrap();
    }
    for killed in [0, 1] {
        world.goes_on_by(300).await;
        members[killed].kill().await;
        members[killed].start().await.unwrap();
    }
    world.goes_on_by(300).await;
    load.finish(&world).await;
    watch.finish().await;
}

/// Static members are back under their own names at once, so they can be killed far more often.
#[tokio::test]
async fn static_members_killed_again_and_again_go_on_at_once() {
    let world = Arc::new(World::new("kill_static").await);
    let load = Load::start(world.writer(), 100);
    let watch = OffsetWatch::start(&world);
    // A session that is longer than the test: whoever waits for its end fails.
    let member = |name| {
        world.transfer(name, |spec| small_batches(spec).env("GROUP_INSTANCE_ID", name).env("SESSION_TIMEOUT", "45s"))
    };
    let members = ["one", "two"].map(member);
    for member in &members {
        member.start().await.unwrap();
    }
    for round in 0..8 {
        let member = &members[round % 2];
        world.goes_on_by(100).await;
        member.kill().await;
        member.launch().unwrap();
        // All its partitions come back to it: it stores again, and far within the session.
        within(Duration::from_secs(20), "the killed one stores again", async || {
            let metrics = member.metrics().await?;
            let line = metrics.lines().find(|line| line.starts_with("msg_transfer_stored_messages_total"));
            let stored: f64 = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0").parse()?;
            ensure(stored > 0.0, stored)
        })
        .await;
    }
    load.finish(&world).await;
    watch.finish().await;
}

/// A static member's restart within the session is none of the other's business.
#[tokio::test]
async fn a_static_members_restart_moves_no_partition() {
    let world = World::new("static").await;
    let load = Load::start(world.writer(), 100);
    let member = |name| {
        world.transfer(name, |spec| {
            // Heartbeats, by which members hear of a rebalance, are a tenth of it apart.
            spec.env("GROUP_INSTANCE_ID", name).env("SESSION_TIMEOUT", "12s")
        })
    };
    let [one, two] = ["one", "two"].map(member);
    one.start().await.unwrap();
    two.start().await.unwrap();
    eventually("each has its half", async || {
        let half = partitions(&two).await;
        ensure(half == 2.0, half)
    })
    .await;
    let before = generation(world.brokers(), world.topic()).await;
    stop(&one).await;
    world.goes_on_by(300).await;
    one.start().await.unwrap();
    eventually("it takes records again", async || {
        let consumed = metric(&one, "msg_transfer_consumed_records_total").await;
        ensure(consumed > 0.0, consumed)
    })
    .await;
    load.finish(&world).await;
    assert_eq!(partitions(&two).await, 2.0, "the other kept its own and was given no other");
    assert_eq!(metric(&two, "msg_transfer_rebalances_total{kind=\"assigned\"}").await, 2.0, "once for all");
    assert_eq!(generation(world.brokers(), world.topic()).await, before, "the group did not rebalance");
}

/// Assigned, less those that were taken away.
async fn partitions(transfer: &Service) -> f64 {
    let count = async |kind: &str| metric(transfer, &format!("msg_transfer_rebalances_total{{kind=\"{kind}\"}}")).await;
    count("assigned").await - count("revoked").await - count("lost").await
}

/// The group waits for a member that hangs, and the one that joins waits with it: told to stop, it does not.
#[tokio::test]
async fn a_stop_while_the_group_is_being_joined_is_heeded_at_once() {
    let world = World::new("joining").await;
    let load = Load::start(world.writer(), 10);
    // A session that outlasts what is measured.
    let [hanging, joining] =
        ["hanging", "joining"].map(|name| world.transfer(name, |spec| spec.env("SESSION_TIMEOUT", "20s")));
    hanging.start().await.unwrap();
    assert!(hanging.signal(Signal::Stop));
    joining.launch().unwrap();
    not_ready_because(&joining, &["group: starting"]).await;
    eventually("the group waits", async || {
        let state = crate::support::admin::group_state(world.brokers(), world.topic()).await;
        ensure(state == "PreparingRebalance", state)
    })
    .await;
    assert!(joining.signal(Signal::Term));
    let end = tokio::time::timeout(Duration::from_secs(8), joining.wait()).await;
    assert!(end.expect("it waits for the group").unwrap().success());
    assert!(hanging.signal(Signal::Cont));
    load.finish(&world).await;
    stop(&hanging).await;
}
