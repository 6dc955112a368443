//! How the gateway ends streams: at SIGTERM, and before their connection is too old.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use msg_stack::Signal;
use tokio::time::timeout;
use tonic::Code;

use super::{open, request, try_open};
use crate::gateway::calls::{assert_failed, channel, client, health};
use crate::support::kafka::msg;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// Each entry with a result is in Kafka when the stream ends, and no other entry is.
#[tokio::test]
async fn stream_results_at_sigterm_match_the_records_in_kafka() {
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
            // Until the stream has ended.
            while requests.send(request(next, (next..next + 20).map(message))).await.is_ok() {
                next += 20;
            }
        };
        let reading = async {
            let mut results = BTreeSet::new();
            loop {
                match stream.next_response().await {
                    Ok(more) => {
                        let more = more.expect("the stream ends with an error");
                        assert!(more.values().all(Result::is_ok), "{more:?}");
                        oks.fetch_add(more.len(), Ordering::Relaxed);
                        results.extend(more.into_keys());
                    }
                    Err(status) => return (results, status),
                }
            }
        };
        let (results, status) = join(reading, sending).await.0;
        let details = assert_failed::<()>(Err(status), Code::Unavailable, "STREAM_ENDED");
        assert!(details.retry_info().is_some(), "the error has a retry delay");
        results.into_iter().map(|i| format!("{sender}-{i}")).collect::<Vec<_>>()
    }));
    let end = async {
        eventually("messages are accepted", async || {
            let oks = oks.load(Ordering::Relaxed);
            ensure(oks > 5000, oks)
        })
        .await;
        assert!(gateway.service.signal(Signal::Term));
        let started = Instant::now();
        assert_eq!(gateway.service.wait().await.unwrap().code(), Some(0));
        assert!(started.elapsed() < Duration::from_secs(10), "the shutdown needed {:?}", started.elapsed());
    };
    let (results, ()) = join(load, end).await;
    let results: BTreeSet<String> = results.into_iter().flatten().collect();
    world.wait_for_all_committed().await;
    let rows = world.rows().await;
    let stored: BTreeSet<String> = rows.iter().map(|row| row.client_msg_id.clone()).collect();
    assert_eq!(rows.len(), stored.len(), "P2");
    let lost: Vec<_> = results.difference(&stored).collect();
    assert!(lost.is_empty(), "P1: OK and no row: {lost:?}");
    let unreported: Vec<_> = stored.difference(&results).collect();
    assert!(unreported.is_empty(), "P6: a row without a result: {unreported:?}");
    assert_eq!(
        world.end_offsets().await.iter().sum::<i64>(),
        results.len() as i64,
        "P6: an entry without a result is in Kafka"
    );
    world.assert_ordered_without_gaps().await;
    assert!(transfer.stop().await.unwrap().success());
}

/// Each stream ends before its connection is closed. The next one is on a new connection, which has its full age.
#[tokio::test]
async fn streams_of_an_old_connection_end_and_reopen_on_a_new_one() {
    let world = World::new("age").await;
    let gateway =
        world.gateway("gateway", |spec| spec.env("MAX_CONNECTION_AGE", "2s").env("MAX_CONNECTION_AGE_GRACE", "4s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let started = Instant::now();
    // A stream without an age limit of its own is closed with its connection.
    let mut watch = health::watch(&channel(&gateway).await).await;
    assert_eq!(watch.message().await.unwrap().unwrap().status, health::SERVING);
    let mut sent = 0;
    for _ in 0..3 {
        // The client may notice only now that the old connection is closed.
        let mut stream = eventually("the next stream is opened", async || Ok(try_open(&client, None).await?)).await;
        let first = sent;
        let end = loop {
            let request_sent = stream.requests.send(request(sent, [msg("alice", "bob", &sent.to_string(), "x")])).await;
            match stream.next_response().await {
                Ok(results) => {
                    assert!(request_sent.is_ok());
                    assert!(results.expect("the stream ends with an error").values().all(Result::is_ok));
                    sent += 1;
                }
                Err(status) => break status,
            }
        };
        assert_failed::<()>(Err(end), Code::Unavailable, "STREAM_ENDED");
        assert!(sent > first, "the next stream is on the old connection");
    }
    let elapsed = started.elapsed();
    assert!(elapsed > Duration::from_secs(6), "all streams together lasted only {elapsed:?}");
    let end = timeout(WAIT_TIMEOUT, watch.message()).await.expect("the health stream ends");
    end.expect_err("the health stream ends with its connection");
    assert!(started.elapsed() > Duration::from_secs(6));
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), sent as i64, "an entry without a result was sent");
}
