//! P1 to P5 while members join, leave and die.

use std::sync::Arc;
use std::time::Duration;

use msg_stack::{Service, Signal};

use crate::support::admin::group_generation;
use crate::support::load::{Load, OffsetWatch};
use crate::support::transfer::{lost_partitions, metric, small_batches, wait_not_ready};
use crate::support::world::World;
use crate::support::{ensure, eventually, within};

async fn stop(transfer: &Service) {
    assert!(transfer.stop().await.unwrap().success());
}

/// Members leave and rejoin in turns: each time the others continue, and so does the one that rejoins.
#[tokio::test]
async fn members_that_leave_and_join_lose_and_reorder_nothing() {
    let world = Arc::new(World::new("turns").await);
    let load = Load::start(world.writer(), 100);
    let watch = OffsetWatch::start(&world);
    let members = ["one", "two", "three"].map(|name| world.transfer(name, small_batches));
    for member in &members[..2] {
        member.start().await.unwrap();
    }
    // First two members in turns, then three.
    for leaving in [0, 1] {
        stop(&members[leaving]).await;
        world.wait_for_more_rows(300).await;
        members[leaving].start().await.unwrap();
        world.wait_for_more_rows(300).await;
    }
    members[2].start().await.unwrap();
    for leaving in [2, 0] {
        stop(&members[leaving]).await;
        members[leaving].start().await.unwrap();
        world.wait_for_more_rows(300).await;
    }
    load.finish(&world).await;
    watch.finish().await;
    for member in &members {
        assert_eq!(lost_partitions(member).await, 0.0, "no member was expelled");
        stop(member).await;
    }
}

/// Members are killed in turns under load. The other one continues, and the group rebalances when the dead one's
/// session ends.
#[tokio::test]
async fn killed_members_lose_duplicate_and_reorder_nothing() {
    let world = Arc::new(World::new("kill_turns").await);
    let load = Load::start(world.writer(), 100);
    let watch = OffsetWatch::start(&world);
    let members = ["one", "two"].map(|name| world.transfer(name, small_batches));
    for member in &members {
        member.start().await.unwrap();
    }
    for killed in [0, 1] {
        world.wait_for_more_rows(300).await;
        members[killed].kill().await;
        members[killed].start().await.unwrap();
    }
    world.wait_for_more_rows(300).await;
    load.finish(&world).await;
    watch.finish().await;
}

/// Static members rejoin immediately with their old names, so they can be killed far more often.
#[tokio::test]
async fn killed_static_members_store_again_within_their_session() {
    let world = Arc::new(World::new("kill_static").await);
    let load = Load::start(world.writer(), 100);
    let watch = OffsetWatch::start(&world);
    // The session is longer than the test, so a member that waited for its end would fail.
    let member = |name| {
        world.transfer(name, |spec| small_batches(spec).env("GROUP_INSTANCE_ID", name).env("SESSION_TIMEOUT", "45s"))
    };
    let members = ["one", "two"].map(member);
    for member in &members {
        member.start().await.unwrap();
    }
    for round in 0..8 {
        let member = &members[round % 2];
        world.wait_for_more_rows(100).await;
        member.kill().await;
        member.launch().unwrap();
        // The member gets all its partitions back, and stores again far within its session.
        within(Duration::from_secs(20), "the killed member stores again", async || {
            let stored = member.metric("msg_transfer_stored_messages_total").await?;
            ensure(stored > 0.0, stored)
        })
        .await;
    }
    load.finish(&world).await;
    watch.finish().await;
}

/// The restart of a static member within its session does not affect the other member.
#[tokio::test]
async fn restart_of_a_static_member_moves_no_partition() {
    let world = World::new("static").await;
    let load = Load::start(world.writer(), 100);
    let member = |name| {
        world.transfer(name, |spec| {
            // Members detect a rebalance at a heartbeat, and a tenth of the session timeout is between two of them.
            spec.env("GROUP_INSTANCE_ID", name).env("SESSION_TIMEOUT", "12s")
        })
    };
    let [one, two] = ["one", "two"].map(member);
    one.start().await.unwrap();
    two.start().await.unwrap();
    eventually("each member has half of the partitions", async || {
        let half = partitions(&two).await;
        ensure(half == 2.0, half)
    })
    .await;
    let before = group_generation(world.brokers(), world.topic()).await;
    stop(&one).await;
    world.wait_for_more_rows(300).await;
    one.start().await.unwrap();
    eventually("the restarted member consumes records again", async || {
        let consumed = metric(&one, "msg_transfer_consumed_records_total").await;
        ensure(consumed > 0.0, consumed)
    })
    .await;
    load.finish(&world).await;
    assert_eq!(partitions(&two).await, 2.0, "the other member keeps exactly its partitions");
    assert_eq!(
        metric(&two, "msg_transfer_rebalances_total{kind=\"assigned\"}").await,
        2.0,
        "partitions were assigned only once"
    );
    assert_eq!(group_generation(world.brokers(), world.topic()).await, before, "the group did not rebalance");
}

/// The number of assigned partitions, less those that were revoked or lost.
async fn partitions(transfer: &Service) -> f64 {
    let count = async |kind: &str| metric(transfer, &format!("msg_transfer_rebalances_total{{kind=\"{kind}\"}}")).await;
    count("assigned").await - count("revoked").await - count("lost").await
}

/// The group waits for a member that hangs, and so does one that joins. At SIGTERM the joining one stops waiting.
#[tokio::test]
async fn sigterm_ends_a_pending_join_of_the_group() {
    let world = World::new("joining").await;
    let load = Load::start(world.writer(), 10);
    // The session is longer than the time that is measured.
    let [hanging, joining] =
        ["hanging", "joining"].map(|name| world.transfer(name, |spec| spec.env("SESSION_TIMEOUT", "20s")));
    hanging.start().await.unwrap();
    assert!(hanging.signal(Signal::Stop));
    joining.launch().unwrap();
    wait_not_ready(&joining, &["group: starting"]).await;
    eventually("the group waits", async || {
        let state = crate::support::admin::group_state(world.brokers(), world.topic()).await;
        ensure(state == "PreparingRebalance", state)
    })
    .await;
    assert!(joining.signal(Signal::Term));
    let end = tokio::time::timeout(Duration::from_secs(8), joining.wait()).await;
    assert!(end.expect("the joining member exits at SIGTERM").unwrap().success());
    assert!(hanging.signal(Signal::Cont));
    load.finish(&world).await;
    stop(&hanging).await;
}
