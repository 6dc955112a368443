//! P1 to P5 when processes die and servers become unavailable.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use msg_stack::{Service, Signal};

use crate::support::kafka::{msg, record_of};
use crate::support::stack::own_stack;
use crate::support::world::{World, count_rows};
use crate::support::{WAIT_TIMEOUT, ensure, eventually, within};

/// The transfer is killed several times in the middle of its work. Each time it resumes at the committed offsets, and
/// stores no record twice.
#[tokio::test]
async fn killed_transfer_loses_and_duplicates_nothing() {
    let world = World::new("killed").await;
    let writer = world.writer();
    const COUNT: i64 = 60_000;
    for i in 0..COUNT {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 200), &i.to_string(), "some body")));
    }
    writer.flush();
    let transfer = world.transfer("transfer", |spec| {
        // Small batches and few records in flight, so that a kill hits the middle of the work; and a short session.
        spec.env("BATCH_RECORDS", 50)
            .env("MAX_INFLIGHT_RECORDS", 2000)
            .env("SESSION_TIMEOUT", "6s")
            .env("DRAIN_TIMEOUT", "3s")
    });
    let database = world.database().await;
    for kill in 1..=4 {
        transfer.start().await.unwrap();
        eventually("more messages are stored", async || {
            let rows = count_rows(&database, "messages").await?;
            ensure(rows >= kill * 8000, rows)
        })
        .await;
        transfer.kill().await;
        let committed = world.committed_offsets().await;
        world.assert_offsets_do_not_lead(&committed).await;
    }
    transfer.start().await.unwrap();
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), COUNT as usize, "P1, P2");
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.dead_letters().await, []);
}

/// A lock makes the batches time out for a while: they are retried, and no offset is committed meanwhile.
#[tokio::test]
async fn failed_batch_is_retried_until_it_is_stored() {
    let world = World::new("locked_batches").await;
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_STATEMENT_TIMEOUT", "500ms"));
    transfer.start().await.unwrap();
    let locker = world.database().await;
    locker.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let writer = world.writer();
    for i in 0..100 {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 10), &i.to_string(), "some body")));
    }
    writer.flush();
    eventually("some attempts have failed", async || {
        let failures = transfer.metric("msg_transfer_store_failures_total").await?;
        ensure(failures >= 3.0, failures)
    })
    .await;
    assert_eq!(world.committed_offsets().await.iter().sum::<i64>(), 0, "P5: nothing is stored yet");
    assert!(!transfer.is_ready().await);
    locker.batch_execute("COMMIT").await.unwrap();
    world.wait_for_rows(100).await;
    world.wait_for_all_committed().await;
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.rows().await.len(), 100, "P1, P2");
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
}

/// The database is unavailable under load: stopped for 20 s, then killed, then frozen.
#[tokio::test(flavor = "multi_thread")]
async fn database_outages_lose_and_dead_letter_nothing() {
    let (stack, _folder) = own_stack("outage_load").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "outage_load", 4);
    world.create(&stack).await;
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_STATEMENT_TIMEOUT", "2s"));
    transfer.start().await.unwrap();
    let writer = world.writer();
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut sent = 0_i64;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..20 {
                    writer.put(&record_of(&msg("a", &format!("inbox-{}", sent % 50), &sent.to_string(), "some body")));
                    sent += 1;
                }
                writer.flush();
                std::thread::park_timeout(Duration::from_millis(10));
            }
            sent
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                world.wait_for_rows(1000).await;
                stack.postgres().stop().await;
                assert_unavailable_for(Duration::from_secs(20), &transfer).await;
                stack.postgres().start().await.unwrap();
                transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
                stack.postgres().kill().await;
                assert_unavailable_for(Duration::from_secs(2), &transfer).await;
                stack.postgres().start().await.unwrap();
                transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
                assert!(stack.postgres().freeze());
                assert_unavailable_for(Duration::from_secs(8), &transfer).await;
                assert!(stack.postgres().thaw());
                transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
            });
        });
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), usize::try_from(sent).unwrap(), "P1, P2");
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.dead_letters().await, []);
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

/// Keeps the database unavailable for this time; checks that the transfer is not ready and keeps running.
async fn assert_unavailable_for(time: Duration, transfer: &Service) {
    let until = Instant::now() + time;
    eventually("the transfer is not ready", async || ensure(!transfer.is_ready().await, "ready")).await;
    within(time + WAIT_TIMEOUT, "the outage has lasted", async || {
        assert!(transfer.process().unwrap().exit_status().is_none(), "the transfer has exited");
        ensure(Instant::now() > until, "not yet")
    })
    .await;
}

/// A process is frozen for longer than its session, and another takes over. Nothing that the first still writes after
/// it wakes does harm.
#[tokio::test]
async fn frozen_process_that_wakes_duplicates_and_reorders_nothing() {
    let world = World::new("frozen").await;
    let writer = world.writer();
    const COUNT: i64 = 30_000;
    let frozen = world.transfer("first", |spec| {
        spec.env("BATCH_RECORDS", 100)
            .env("SESSION_TIMEOUT", "6s")
            .env("DRAIN_TIMEOUT", "3s")
            .env("DATABASE_STATEMENT_TIMEOUT", "3s")
    });
    frozen.start().await.unwrap();
    for i in 0..COUNT {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 20), &i.to_string(), "some body")));
    }
    writer.flush();
    world.wait_for_rows(1000).await;
    assert!(frozen.signal(Signal::Stop));
    let next = world.transfer("second", |spec| spec.env("SESSION_TIMEOUT", "6s").env("DRAIN_TIMEOUT", "3s"));
    next.start().await.unwrap();
    world.wait_for_rows(COUNT).await;
    assert!(frozen.signal(Signal::Cont));
    // Both continue: new messages arrive while the group rebalances.
    for i in COUNT..COUNT + 5000 {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 20), &i.to_string(), "some body")));
    }
    writer.flush();
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len() as i64, COUNT + 5000, "P1, P2");
    world.assert_ordered_without_gaps().await;
    assert!(frozen.stop().await.unwrap().success());
    assert!(next.stop().await.unwrap().success());
}
