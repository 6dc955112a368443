//! Keys that are replaced in their file or at their URL, and an issuer that is away.

use tonic::Code;

use super::super::hang_up;
use super::{KeyFile, asks_for_tokens, send_as};
use crate::gateway::calls::{assert_failed, assert_not_sent, client, metric, wait_gateway_not_ready};
use crate::support::certificates::{Ca, Files, LOCAL};
use crate::support::issuer::{KeyServer, SigningKey, jwks};
use crate::support::kafka::msg;
use crate::support::world::World;
use crate::support::{ensure, eventually};

#[tokio::test]
async fn replaced_key_file_withdraws_the_old_key() {
    let world = World::new("auth_file").await;
    let keys = KeyFile::new();
    let gateway = keys.gateway(&world, |spec| spec).await;
    let client = client(&gateway).await;
    let (old, next) = (keys.key.token("alice", ""), SigningKey::new("second"));
    let hello = msg("alice", "bob", "1", "hello");
    send_as(&client, &old, &hello).await.unwrap();
    assert_failed(send_as(&client, &next.token("alice", ""), &hello).await, Code::Unauthenticated, "UNAUTHENTICATED");
    // A file without keys changes nothing.
    keys.write("{}");
    hang_up(&gateway.service);
    let rejected = "msg_file_reloads_total{use=\"auth_keys\",outcome=\"rejected\"}";
    eventually("the broken file is rejected", async || {
        let count = metric(&gateway, rejected).await?;
        ensure(count == 1.0, format!("{count} were rejected"))
    })
    .await;
    send_as(&client, &old, &hello).await.unwrap();
    keys.write(&jwks(&[&next]));
    hang_up(&gateway.service);
    let token = next.token("alice", "");
    eventually("the new key is in force", async || Ok(send_as(&client, &token, &hello).await?)).await;
    assert_failed(send_as(&client, &old, &hello).await, Code::Unauthenticated, "UNAUTHENTICATED");
}

#[tokio::test]
async fn keys_are_fetched_from_the_url_and_outlive_the_issuer() {
    let world = World::new("auth_url").await;
    let (issuer, first, second) = (KeyServer::start().await, SigningKey::new("first"), SigningKey::new("second"));
    let gateway = world.gateway("gateway", |spec| asks_for_tokens(spec).env("AUTH_JWKS_URL", &issuer.url));
    gateway.service.launch().unwrap();
    let client = client(&gateway).await;
    let (token, hello) = (first.token("alice", ""), msg("alice", "bob", "1", "hello"));
    // The issuer is away: the caller is not to blame.
    wait_gateway_not_ready(&gateway, &["auth", "no keys to check tokens with"]).await;
    assert_not_sent(send_as(&client, &token, &hello).await, Code::Unavailable);
    issuer.publish(&[&first]);
    eventually("the keys are fetched", async || Ok(send_as(&client, &token, &hello).await?)).await;
    eventually("the gateway is ready", async || ensure(gateway.service.is_ready().await, "not ready")).await;
    // Callers with random keys make it ask once.
    let before = issuer.requests();
    for number in 0..200 {
        let random = first.sign_as(&format!("random-{number}"), &serde_json::json!({ "sub": "alice" }));
        assert!(send_as(&client, &random, &hello).await.is_err());
    }
    // 10 s have to pass between two requests, and the calls may need more than that.
    assert!(issuer.requests() - before <= 2, "{} requests", issuer.requests() - before);
    // A new key is found without a restart, and while the issuer is away it stays.
    issuer.publish(&[&first, &second]);
    let token = second.token("alice", "");
    eventually("the new key is fetched", async || Ok(send_as(&client, &token, &hello).await?)).await;
    issuer.leave();
    let unknown = SigningKey::new("third").token("alice", "");
    eventually("the gateway notices that the issuer is away", async || {
        let rejected = send_as(&client, &unknown, &hello).await;
        ensure(rejected.as_ref().is_err_and(|status| status.code() == Code::Unavailable), format!("{rejected:?}"))
    })
    .await;
    send_as(&client, &token, &hello).await.unwrap();
    let failed = metric(&gateway, "msg_gateway_auth_key_fetches_total{outcome=\"FAILED\"}").await.unwrap();
    assert!(failed >= 2.0, "{failed} failed attempts were counted");
    assert!(gateway.service.is_ready().await, "it has keys");
    // An issuer that responds and has no keys any more has withdrawn them.
    issuer.publish(&[]);
    eventually("the last keys are withdrawn", async || {
        let _ = send_as(&client, &unknown, &hello).await;
        let rejected = send_as(&client, &token, &hello).await;
        ensure(rejected.as_ref().is_err_and(|status| status.code() == Code::Unauthenticated), format!("{rejected:?}"))
    })
    .await;
    wait_gateway_not_ready(&gateway, &["auth", "none that fits"]).await;
    issuer.publish(&[&second]);
    eventually("a new key is fetched", async || Ok(send_as(&client, &token, &hello).await?)).await;
    eventually("the gateway is ready", async || ensure(gateway.service.is_ready().await, "not ready")).await;
}

#[tokio::test]
async fn keys_are_fetched_only_from_a_verified_issuer() {
    let world = World::new("auth_https").await;
    let (ca, other, key) = (Ca::new("issuer"), Ca::new("other"), SigningKey::new("first"));
    let files = Files::new(&[("ca.crt", &other.pem())]);
    let issuer = KeyServer::start_over_tls(&ca.sign(&LOCAL)).await;
    issuer.publish(&[&key]);
    let gateway = world.gateway("gateway", |spec| {
        asks_for_tokens(spec).env("AUTH_JWKS_URL", &issuer.url).env("AUTH_JWKS_CA_FILE", files.text("ca.crt"))
    });
    gateway.service.launch().unwrap();
    let client = client(&gateway).await;
    let (token, hello) = (key.token("alice", ""), msg("alice", "bob", "1", "hello"));
    wait_gateway_not_ready(&gateway, &["auth", "UnknownIssuer"]).await;
    assert_not_sent(send_as(&client, &token, &hello).await, Code::Unavailable);
    // The file of the CA is followed like every other.
    files.replace(&[("ca.crt", &ca.pem())]);
    hang_up(&gateway.service);
    eventually("the keys are fetched", async || Ok(send_as(&client, &token, &hello).await?)).await;
    eventually("the gateway is ready", async || ensure(gateway.service.is_ready().await, "not ready")).await;
}
