//! A gateway that stands still for longer than its callers wait, as after a SIGSTOP or on a paused virtual machine.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{join, join_all};
use msg_dev::stack::Signal;
use tonic::Code;

use super::calls::{channel, client, metric, send_within};
use crate::support::kafka::msg;
use crate::support::world::World;
use crate::support::{ensure, eventually};

/// Calls that their callers have given up lie in the socket together with their resets. That is no attack: the connections, and the
/// calls on them that still wait, go on.
#[tokio::test]
async fn connections_survive_a_frozen_gateway() {
    const CONNECTIONS: usize = 4;
    const CALLS: usize = 64;
    let world = World::new("frozen_gateway").await;
    let gateway = world.running_gateway().await;
    let (stop, given_up, accepted) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(super::calls::Client::new(channel(&gateway).await));
    }
    let load = join_all(connections.iter().enumerate().flat_map(|(connection, client)| {
        let (stop, given_up, accepted) = (&stop, &given_up, &accepted);
        (0..CALLS).map(move |call| async move {
            // One call in a while is patient enough to wait for the end of the freeze.
            let patience = if call == 0 { Duration::from_secs(50) } else { Duration::from_millis(300) };
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let msg = msg("alice", &format!("inbox-{call}"), &format!("{connection}-{call}-{round}"), "x");
                match send_within(client, &msg, patience).await {
                    Ok(_) => accepted.fetch_add(1, Ordering::Relaxed),
                    Err(status) if [Code::Cancelled, Code::DeadlineExceeded].contains(&status.code()) => {
                        assert!(call > 0, "a patient call: {status:?}");
                        given_up.fetch_add(1, Ordering::Relaxed)
                    }
                    Err(status) => panic!("connection {connection}: {status:?}"),
                };
            }
        })
    }));
    let freeze = async {
        let accepts = async |what: &str| {
            let before = accepted.load(Ordering::Relaxed);
            eventually(what, async || {
                let more = accepted.load(Ordering::Relaxed) - before;
                ensure(more > 1000, format!("{more} were accepted"))
            })
            .await;
        };
        accepts("calls are accepted").await;
        assert!(gateway.service.signal(Signal::Stop));
        let before = given_up.load(Ordering::Relaxed);
        eventually("calls are given up", async || {
            let more = given_up.load(Ordering::Relaxed) - before;
            ensure(more >= 4 * CONNECTIONS * CALLS, format!("{more} were given up"))
        })
        .await;
        assert!(gateway.service.signal(Signal::Cont));
        accepts("calls are accepted again").await;
        stop.store(true, Ordering::Relaxed);
    };
    join(load, freeze).await;
    let cut = metric(&gateway, "msg_gateway_slow_reader_disconnects_total").await.unwrap();
    assert_eq!(cut, 0.0, "no connection counts as one that is not read");
    drop(client(&gateway).await);
}
