//! Certificates and CAs that change while the gateway runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use msg_common::tls::ClientConfig;

use super::{client, contents, ensure_sum, hang_up, server_files, sum, tls_gateway};
use crate::gateway::calls::send;
use crate::support::certificates::{Ca, LOCAL, Pair, caller, connect};
use crate::support::kafka::msg;
use crate::support::world::{Gateway, World};
use crate::support::{NotYet, ensure, eventually, within};

const RELOADS: &str = "msg_file_reloads_total";
const EXPIRY: &str = "msg_tls_certificate_expiry_timestamp_seconds";

/// The certificate that the gateway presents to a new connection.
async fn presented(gateway: &Gateway, caller: &Arc<ClientConfig>) -> Result<Vec<u8>, NotYet> {
    let stream = connect(&gateway.address, caller).await?;
    let (_, session) = stream.get_ref();
    Ok(session.peer_certificates().expect("a server has a certificate")[0].to_vec())
}

/// Waits until new connections get another certificate than before, and returns it.
async fn changed(gateway: &Gateway, caller: &Arc<ClientConfig>, before: &[u8]) -> Vec<u8> {
    within(Duration::from_secs(60), "new connections get the new certificate", async || {
        let found = presented(gateway, caller).await?;
        ensure(found != before, "it is the old certificate")?;
        Ok(found)
    })
    .await
}

#[tokio::test]
async fn three_rotations_under_load_fail_no_call() {
    let world = World::new("tls_rotation").await;
    let (old_ca, new_ca, clients) = (Ca::new("old"), Ca::new("new"), Ca::new("clients"));
    let own = clients.sign(&["spiffe://test/load"]);
    let pairs = [old_ca.sign(&LOCAL), old_ca.sign(&LOCAL), new_ca.sign(&LOCAL), new_ca.sign(&LOCAL)];
    let files = server_files(&pairs[0], Some(&clients.pem()));
    let gateway = tls_gateway(&world, &files, true, |spec| spec.env("MAX_CONNECTION_AGE", "1s")).await;
    // During a change of CAs, callers trust both.
    let caller = caller(&(old_ca.pem() + &new_ca.pem()), Some(&own));
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = join_all((0..4).map(async |sender: usize| {
        let client = client(&gateway, &caller);
        for i in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let message = msg("a", &format!("inbox-{sender}"), &format!("{sender}-{i}"), "x");
            let mut result = send(&client, &message).await;
            // The connection reached its age while the call was in the client's queue: the client did not send it.
            while result.as_ref().is_err_and(|error| error.message() == "operation was canceled") {
                result = send(&client, &message).await;
            }
            result.unwrap_or_else(|error| panic!("call {i} of sender {sender}: {error:?}"));
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let rotations = async {
        let mut certificate = presented(&gateway, &caller).await.unwrap();
        for (rotation, pair) in pairs.iter().enumerate().skip(1) {
            files.replace(&contents(pair, Some(&clients.pem())));
            // Once without SIGHUP: the gateway polls the files.
            if rotation != 2 {
                hang_up(&gateway.service);
            }
            certificate = changed(&gateway, &caller, &certificate).await;
            let accepted = ["use=\"grpc\"", "applied"];
            ensure_sum(&gateway, RELOADS, &accepted, rotation as f64).await.unwrap();
            // Every connection of the load has been replaced after twice its age.
            let before = sent.load(Ordering::Relaxed);
            let start = std::time::Instant::now();
            eventually("calls continue on new connections", async || {
                let sent = sent.load(Ordering::Relaxed) - before;
                ensure(sent > 100 && start.elapsed() > Duration::from_secs(2), format!("{sent} calls"))
            })
            .await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(load, rotations);
    let failures = sum(&gateway, "msg_tls_handshake_failures_total", &[]).await.unwrap();
    assert_eq!(failures, 0.0);
    let accepted = world.end_offsets().await.iter().sum::<i64>();
    assert_eq!(usize::try_from(accepted).unwrap(), sent.load(Ordering::Relaxed));
}

#[tokio::test]
async fn broken_pair_keeps_the_old_one() {
    let world = World::new("tls_broken").await;
    let ca = Ca::new("ours");
    let pair = ca.sign(&LOCAL);
    let files = server_files(&pair, None);
    let gateway = tls_gateway(&world, &files, false, |spec| spec).await;
    let caller = caller(&ca.pem(), None);
    let certificate = presented(&gateway, &caller).await.unwrap();
    let expiry = sum(&gateway, EXPIRY, &["use=\"grpc\""]).await.unwrap();
    assert!(expiry > 1.7e9, "{expiry}");
    let other = ca.sign(&LOCAL);
    let mixed = Pair { certificate: other.certificate.clone(), key: pair.key.clone() };
    let cut = Pair { certificate: pair.certificate[..200].to_owned(), key: pair.key.clone() };
    for (rejected, broken) in [(1.0, mixed), (2.0, cut)] {
        files.replace(&contents(&broken, None));
        hang_up(&gateway.service);
        eventually("the change is rejected", async || {
            ensure_sum(&gateway, RELOADS, &["use=\"grpc\"", "rejected"], rejected).await
        })
        .await;
        assert_eq!(presented(&gateway, &caller).await.unwrap(), certificate);
    }
    send(&client(&gateway, &caller), &msg("a", "bob", "1", "x")).await.unwrap();
    let log = std::fs::read_to_string(gateway.service.log()).unwrap();
    for text in ["--tls-key-file: the key in", "--tls-cert-file: ", "has no END line"] {
        let lines = log.lines().filter(|line| line.contains("rejected changed files") && line.contains(text)).count();
        assert!(lines >= 1, "{text}: {log}");
    }
    files.replace(&contents(&other, None));
    hang_up(&gateway.service);
    changed(&gateway, &caller, &certificate).await;
    ensure_sum(&gateway, RELOADS, &["use=\"grpc\"", "applied"], 1.0).await.unwrap();
}

#[tokio::test]
async fn removed_client_ca_stops_working() {
    let world = World::new("tls_removed").await;
    let (ca, old, new) = (Ca::new("ours"), Ca::new("old"), Ca::new("new"));
    let pair = ca.sign(&LOCAL);
    let files = server_files(&pair, Some(&(old.pem() + &new.pem())));
    let gateway = tls_gateway(&world, &files, true, |spec| {
        spec.env("MAX_CONNECTION_AGE", "1s").env("MAX_CONNECTION_AGE_GRACE", "1s")
    })
    .await;
    let [removed, kept] = [&old, &new].map(|clients| {
        let own = clients.sign(&["spiffe://test/caller"]);
        client(&gateway, &caller(&ca.pem(), Some(&own)))
    });
    for (id, client) in [("1", &removed), ("2", &kept)] {
        send(client, &msg("a", "bob", id, "x")).await.unwrap();
    }
    files.replace(&contents(&pair, Some(&new.pem())));
    hang_up(&gateway.service);
    // Its connection may live until its maximum age. Then the certificate is verified with the CAs that are left.
    eventually("the caller of the removed CA is refused", async || {
        let sent = send(&removed, &msg("a", "bob", "1", "x")).await;
        ensure(sent.is_err(), "it was accepted")?;
        let refused = sum(&gateway, "msg_tls_handshake_failures_total", &["bad_client_certificate"]).await?;
        ensure(refused >= 1.0, "no handshake failed")
    })
    .await;
    send(&kept, &msg("a", "bob", "2", "x")).await.unwrap();
    send(&removed, &msg("a", "bob", "1", "x")).await.unwrap_err();
}
