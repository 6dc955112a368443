//! A gateway that is frozen for longer than its callers wait, as after SIGSTOP or on a suspended virtual machine.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{join, join_all};
use msg_stack::Signal;
use tonic::Code;

use super::calls::{channel, client, metric, send_within};
use crate::support::kafka::msg;
use crate::support::world::World;
use crate::support::{ensure, eventually};

/// After the freeze, the socket holds requests and resets of calls that timed out. The gateway must not mistake them
/// for an attack: the connections stay open, and calls that still wait end.
#[tokio::test]
async fn connections_survive_a_frozen_gateway() {
    const CONNECTIONS: usize = 4;
    const CALLS: usize = 64;
    let world = World::new("frozen_gateway").await;
    let gateway = world.running_gateway().await;
    let (stop, timed_out, accepted) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(super::calls::Client::new(channel(&gateway).await));
    }
    let load = join_all(connections.iter().enumerate().flat_map(|(connection, client)| {
        let (stop, timed_out, accepted) = (&stop, &timed_out, &accepted);
        (0..CALLS).map(move |call| async move {
            // The timeout of one call per connection is longer than the freeze.
            let timeout = if call == 0 { Duration::from_secs(50) } else { Duration::from_millis(300) };
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let msg = msg("alice", &format!("inbox-{call}"), &format!("{connection}-{call}-{round}"), "x");
                match send_within(client, &msg, timeout).await {
                    Ok(_) => accepted.fetch_add(1, Ordering::Relaxed),
                    Err(status) if [Code::Cancelled, Code::DeadlineExceeded].contains(&status.code()) => {
                        assert!(call > 0, "the call with the long timeout failed: {status:?}");
                        timed_out.fetch_add(1, Ordering::Relaxed)
                    }
                    Err(status) => panic!("connection {connection}: {status:?}"),
                };
            }
        })
    }));
    let freeze = async {
        let wait_for_accepts = async |what: &str| {
            let before = accepted.load(Ordering::Relaxed);
            eventually(what, async || {
                let more = accepted.load(Ordering::Relaxed) - before;
                ensure(more > 1000, format!("{more} were accepted"))
            })
            .await;
        };
        wait_for_accepts("calls are accepted").await;
        assert!(gateway.service.signal(Signal::Stop));
        let before = timed_out.load(Ordering::Relaxed);
        eventually("calls time out", async || {
            let more = timed_out.load(Ordering::Relaxed) - before;
            ensure(more >= 4 * CONNECTIONS * CALLS, format!("{more} timed out"))
        })
        .await;
        assert!(gateway.service.signal(Signal::Cont));
        wait_for_accepts("calls are accepted again").await;
        stop.store(true, Ordering::Relaxed);
    };
    join(load, freeze).await;
    let disconnects = metric(&gateway, "msg_gateway_slow_reader_disconnects_total").await.unwrap();
    assert_eq!(disconnects, 0.0, "no connection counts as one of a slow reader");
    drop(client(&gateway).await);
}
