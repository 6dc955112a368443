//! How the gateway ends streams: when it stops, and when their connection is old.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use msg_dev::stack::Signal;
use tokio::time::timeout;
use tonic::Code;

use super::{open, request, try_open};
use crate::gateway::calls::{assert_failed, channel, client, health};
use crate::support::kafka::msg;
use crate::support::world::World;
use crate::support::{PATIENCE, ensure, eventually};

/// What has a result when the stream ends is as it was told; of the rest nothing is in Kafka.
#[tokio::test]
async fn on_sigterm_under_load_every_result_is_true_and_the_rest_was_not_sent() {
    let world = World::new("stream_sigterm").await;
    let transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let oks = AtomicUsize::new(0);
    let load = join_all((0..8_u64).map(async |sender| {
        let client = client(&gateway).await;
        let mut stream = open(&client).await;
        let requests = stream.requests.clone();
        let message = |i: u64| {
            msg(&format!("sender-{sender}"), &format!("inbox-{}", i % 4), &format!("{sender}-{i}"), "some body")
        };
        let sending = async move {
            let mut next = 0;
            // Until nobody takes it any more.
            while requests.send(request(next, (next..next + 20).map(message))).await.is_ok() {
                next += 20;
            }
        };
        let reading = async {
            let mut told = BTreeSet::new();
            loop {
                match stream.reply().await {
                    Ok(more) => {
                        let more = more.expect("it does not end well");
                        assert!(more.values().all(Result::is_ok), "{more:?}");
                        oks.fetch_add(more.len(), Ordering::Relaxed);
                        told.extend(more.into_keys());
                    }
                    Err(status) => return (told, status),
                }
            }
        };
        let (told, status) = join(reading, sending).await.0;
        let details = assert_failed::<()>(Err(status), Code::Unavailable, "STREAM_ENDED");
        assert!(details.retry_info().is_some(), "it says when to go on");
        told.into_iter().map(|i| format!("{sender}-{i}")).collect::<Vec<_>>()
    }));
    let end = async {
        eventually("messages are taken", async || {
            let oks = oks.load(Ordering::Relaxed);
            ensure(oks > 5000, oks)
        })
        .await;
        assert!(gateway.service.signal(Signal::Term));
        let begun = Instant::now();
        assert_eq!(gateway.service.wait().await.unwrap().code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    };
    let (told, ()) = join(load, end).await;
    let told: BTreeSet<String> = told.into_iter().flatten().collect();
    world.all_committed().await;
    let rows = world.rows().await;
    let stored: BTreeSet<String> = rows.iter().map(|row| row.client_msg_id.clone()).collect();
    assert_eq!(rows.len(), stored.len(), "P2");
    let lost: Vec<_> = told.difference(&stored).collect();
    assert!(lost.is_empty(), "P1: OK and no row: {lost:?}");
    let untold: Vec<_> = stored.difference(&told).collect();
    assert!(untold.is_empty(), "P6: a row without a result: {untold:?}");
    assert_eq!(world.ends().await.iter().sum::<i64>(), told.len() as i64, "P6: of the rest nothing is in Kafka");
    world.assert_ordered_without_gaps().await;
    assert!(transfer.stop().await.unwrap().success());
}

/// A stream ends before its connection is cut, and the next one is on a new connection, where it is not ended at once.
#[tokio::test]
async fn when_a_connection_is_old_its_streams_end_and_go_on_elsewhere() {
    let world = World::new("age").await;
    let gateway =
        world.gateway("gateway", |spec| spec.env("MAX_CONNECTION_AGE", "2s").env("MAX_CONNECTION_AGE_GRACE", "4s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let begun = Instant::now();
    // A stream that knows nothing of ages is cut off in the end.
    let mut watch = health::watch(&channel(&gateway).await).await;
    assert_eq!(watch.message().await.unwrap().unwrap().status, health::SERVING);
    let mut sent = 0;
    for _ in 0..3 {
        // The caller's side may notice the end of the old connection only now.
        let mut stream = eventually("the next stream is opened", async || Ok(try_open(&client, None).await?)).await;
        let first = sent;
        let end = loop {
            let asked = stream.requests.send(request(sent, [msg("alice", "bob", &sent.to_string(), "x")])).await;
            match stream.reply().await {
                Ok(told) => {
                    assert!(asked.is_ok());
                    assert!(told.expect("it does not end well").values().all(Result::is_ok));
                    sent += 1;
                }
                Err(status) => break status,
            }
        };
        assert_failed::<()>(Err(end), Code::Unavailable, "STREAM_ENDED");
        assert!(sent > first, "the next stream is on the old connection");
    }
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(6), "streams lived only {took:?} in all");
    let cut = timeout(PATIENCE, watch.message()).await.expect("it is cut off");
    cut.expect_err("it knows of no other end");
    assert!(begun.elapsed() > Duration::from_secs(6));
    assert_eq!(world.ends().await.iter().sum::<i64>(), sent as i64, "what had no result was not sent");
}
