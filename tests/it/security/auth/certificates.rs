//! Callers that a client certificate names, alone and together with a token.

use msg_common::proto::{Msg, PullMsgsRequest};
use tonic::{Code, Request};

use super::super::{client, server_files, tls_gateway};
use super::{KeyFile, asks_for_tokens, send_as};
use crate::gateway::calls::{Client, assert_failed, send};
use crate::support::certificates::{Ca, LOCAL, caller};
use crate::support::kafka::msg;
use crate::support::world::World;

const ALICE: &str = "spiffe://test/alice";

fn from_alice(id: &str) -> Msg {
    msg(ALICE, "bob", id, "hello")
}

async fn pull(client: &Client, recv_id: &str) -> Result<(), tonic::Status> {
    let request = PullMsgsRequest { recv_id: recv_id.into(), ..PullMsgsRequest::default() };
    client.clone().pull_msgs(Request::new(request)).await.map(drop)
}

#[tokio::test]
async fn certificate_names_the_caller_by_uri_or_dns_name() {
    let world = World::new("auth_mtls").await;
    // It creates the tables that are read.
    let _transfer = world.running_transfer().await;
    let (ca, clients) = (Ca::new("ours"), Ca::new("clients"));
    let files = server_files(&ca.sign(&LOCAL), Some(&clients.pem()));
    let by_uri = tls_gateway(&world, &files, true, |spec| spec.env("AUTH_MODE", "mtls")).await;
    let named = clients.sign(&[ALICE, "alice.test"]);
    let alice = client(&by_uri, &caller(&ca.pem(), Some(&named)));
    send(&alice, &from_alice("1")).await.unwrap();
    pull(&alice, ALICE).await.unwrap();
    assert_failed(send(&alice, &msg("bob", "alice", "1", "x")).await, Code::PermissionDenied, "PERMISSION_DENIED");
    assert_failed(pull(&alice, "bob").await, Code::PermissionDenied, "PERMISSION_DENIED");
    // The CA has confirmed it, but not as one caller.
    for names in [&["alice.test"][..], &[ALICE, "spiffe://test/bob"], &[]] {
        let unnamed = client(&by_uri, &caller(&ca.pem(), Some(&clients.sign(names))));
        assert_failed(send(&unnamed, &from_alice("2")).await, Code::Unauthenticated, "UNAUTHENTICATED");
    }
    by_uri.service.stop().await;
    let by_name =
        tls_gateway(&world, &files, true, |spec| spec.env("AUTH_MODE", "mtls").env("AUTH_MTLS_NAME", "dns")).await;
    let alice = client(&by_name, &caller(&ca.pem(), Some(&named)));
    send(&alice, &msg("alice.test", "bob", "1", "hello")).await.unwrap();
    assert_failed(send(&alice, &from_alice("3")).await, Code::PermissionDenied, "PERMISSION_DENIED");
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 2);
}

#[tokio::test]
async fn certificate_and_token_can_both_be_required() {
    let world = World::new("auth_both").await;
    let (ca, clients, keys) = (Ca::new("ours"), Ca::new("clients"), KeyFile::new());
    let files = server_files(&ca.sign(&LOCAL), Some(&clients.pem()));
    let gateway = tls_gateway(&world, &files, true, |spec| {
        asks_for_tokens(spec).env("AUTH_MODE", "jwt+mtls").env("AUTH_JWKS_FILE", keys.path().display())
    })
    .await;
    let token = keys.key.token("alice", "");
    let hello = msg("alice", "bob", "1", "hello");
    let both = client(&gateway, &caller(&ca.pem(), Some(&clients.sign(&["spiffe://test/proxy"]))));
    send_as(&both, &token, &hello).await.unwrap();
    assert_failed(send(&both, &hello).await, Code::Unauthenticated, "UNAUTHENTICATED");
    // The token names the caller, and the certificate does not.
    let as_proxy = msg("spiffe://test/proxy", "bob", "1", "hello");
    assert_failed(send_as(&both, &token, &as_proxy).await, Code::PermissionDenied, "PERMISSION_DENIED");
    let unnamed = client(&gateway, &caller(&ca.pem(), Some(&clients.sign(&[]))));
    assert_failed(send_as(&unnamed, &token, &hello).await, Code::Unauthenticated, "UNAUTHENTICATED");
    let without = client(&gateway, &caller(&ca.pem(), None));
    send_as(&without, &token, &hello).await.unwrap_err();
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 1);
}
