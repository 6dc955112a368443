//! Who is accepted: gateways by callers, and callers by gateways.

use std::process::Output;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::process::Command;

use super::{client, ensure_sum, server_files, tls_gateway};
use crate::gateway::calls::send;
use crate::gateway::readme::grpcurl;
use crate::support::certificates::{Ca, Files, LOCAL, Pair, acceptor, caller, connect};
use crate::support::eventually;
use crate::support::kafka::msg;
use crate::support::world::World;

const FAILURES: &str = "msg_tls_handshake_failures_total";

/// Sends a message with grpcurl and these options.
async fn grpcurl_sends(address: &str, options: &[&str]) -> Output {
    let body = r#"{"msg": {"recv_id": "bob", "send_id": "alice", "session_type": "SESSION_TYPE_SINGLE", "content_type": "text/plain"}}"#;
    let mut command = Command::new(grpcurl());
    command.args(["-connect-timeout", "5"]).args(options).args(["-d", body, address, "msg.v1.MsgGateway/SendMsg"]);
    command.kill_on_drop(true).output().await.unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, problem: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(problem), "expected {problem:?}: {error}");
}

#[tokio::test]
async fn grpcurl_sends_over_tls_to_a_gateway_of_its_ca() {
    let world = World::new("tls_grpcurl").await;
    let (ca, other) = (Ca::new("ours"), Ca::new("other"));
    let files = server_files(&ca.sign(&LOCAL), None);
    let gateway = tls_gateway(&world, &files, false, |spec| spec).await;
    let cas = Files::new(&[("ours", &ca.pem()), ("other", &other.pem())]);
    let sent = grpcurl_sends(&gateway.address, &["-cacert", &cas.text("ours")]).await;
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let refused = grpcurl_sends(&gateway.address, &["-cacert", &cas.text("other")]).await;
    assert_refused(&refused, "certificate signed by unknown authority");
    let named = ["-cacert", &cas.text("ours"), "-authority", "elsewhere.test"];
    assert_refused(&grpcurl_sends(&gateway.address, &named).await, "certificate is valid for localhost");
    assert_refused(&grpcurl_sends(&gateway.address, &["-plaintext"]).await, "");
    for cause in ["rejected_by_client", "plaintext"] {
        eventually("the failures are counted", async || {
            let found = super::sum(&gateway, FAILURES, &[cause]).await?;
            crate::support::ensure(found >= 1.0, format!("{cause}: {found}"))
        })
        .await;
    }
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 1);
}

#[tokio::test]
async fn caller_needs_a_certificate_of_the_client_ca() {
    let world = World::new("tls_mutual").await;
    let (ca, clients, other) = (Ca::new("ours"), Ca::new("clients"), Ca::new("other"));
    let files = server_files(&ca.sign(&LOCAL), Some(&clients.pem()));
    let gateway = tls_gateway(&world, &files, true, |spec| spec).await;
    let write = |pair: &Pair| Files::new(&[("ca", &ca.pem()), ("cert", &pair.certificate), ("key", &pair.key)]);
    let (good, bad) = (clients.sign(&["spiffe://test/alice"]), other.sign(&["spiffe://test/alice"]));
    let paths = |files: &Files| ["ca", "cert", "key"].map(|name| files.text(name));
    let good_files = write(&good);
    let [cacert, cert, key] = paths(&good_files);
    let sent = grpcurl_sends(&gateway.address, &["-cacert", &cacert, "-cert", &cert, "-key", &key]).await;
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    assert_refused(&grpcurl_sends(&gateway.address, &["-cacert", &cacert]).await, "");
    let bad_files = write(&bad);
    let [cacert, cert, key] = paths(&bad_files);
    assert_refused(&grpcurl_sends(&gateway.address, &["-cacert", &cacert, "-cert", &cert, "-key", &key]).await, "");
    send(&client(&gateway, &caller(&ca.pem(), Some(&good))), &msg("a", "bob", "1", "x")).await.unwrap();
    for own in [None, Some(&bad)] {
        send(&client(&gateway, &caller(&ca.pem(), own)), &msg("a", "bob", "2", "x")).await.unwrap_err();
    }
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 2);
    // grpcurl does not send a certificate of a CA that the gateway does not name.
    for (cause, times) in [("no_client_certificate", 3.0), ("bad_client_certificate", 1.0)] {
        eventually("the failures are counted", async || {
            let found = super::sum(&gateway, FAILURES, &[cause]).await?;
            crate::support::ensure(found >= times, format!("{cause}: {found}"))
        })
        .await;
    }
}

/// A man in the middle has a certificate of another CA, or one of the right CA for another host.
#[tokio::test]
async fn callers_send_nothing_to_a_man_in_the_middle() {
    let (ca, other) = (Ca::new("ours"), Ca::new("other"));
    let trusted = Files::new(&[("ca", &ca.pem())]);
    for stolen in [other.sign(&LOCAL), ca.sign(&["elsewhere.test"])] {
        let acceptor = acceptor(&stolen, &[b"h2"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // Returns whether a caller has sent anything.
        let middle = tokio::spawn(async move {
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                let mut read = [0; 1];
                if let Ok(mut stream) = acceptor.accept(stream).await
                    && stream.read(&mut read).await.is_ok_and(|read| read > 0)
                {
                    return true;
                }
            }
            false
        });
        connect(&address, &caller(&ca.pem(), None)).await.unwrap_err();
        assert_refused(&grpcurl_sends(&address, &["-cacert", &trusted.text("ca")]).await, "certificate");
        assert!(!middle.await.unwrap(), "a caller sent bytes");
    }
}

#[tokio::test]
async fn caller_without_http2_is_refused() {
    let world = World::new("tls_alpn").await;
    let ca = Ca::new("ours");
    let files = server_files(&ca.sign(&LOCAL), None);
    let gateway = tls_gateway(&world, &files, false, |spec| spec).await;
    for (count, protocols) in [(1.0, vec![]), (2.0, vec![b"http/1.1".to_vec()])] {
        let mut config = (*caller(&ca.pem(), None)).clone();
        config.alpn_protocols = protocols;
        if let Ok(mut stream) = connect(&gateway.address, &config.into()).await {
            assert!(!stream.read(&mut [0; 1]).await.is_ok_and(|read| read > 0));
        }
        eventually("the failure is counted", async || ensure_sum(&gateway, FAILURES, &["no_http2"], count).await).await;
    }
}
