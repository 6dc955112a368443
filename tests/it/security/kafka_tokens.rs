//! Logins to Kafka with tokens (OAUTHBEARER), which come from a file or from an issuer, and expire while the services run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use msg_common::proto::{SendMsgRequest, WaitFor};
use msg_stack::{Service, ServiceSpec};
use tokio::time::interval;

use super::kafka::{BROKER, Secure, Settings, USER, assert_stores, borrowed, with};
use crate::gateway::calls::client;
use crate::process::readiness;
use crate::support::certificates::{Ca, LOCAL};
use crate::support::issuer::SigningKey;
use crate::support::kafka::msg;
use crate::support::token_server::{CLIENT, SCOPE, SECRET, TokenServer, accepted, kafka_token};
use crate::support::world::count_rows;
use crate::support::{ensure, within};
use crate::transfer::commands::run_with;

/// A cluster that accepts tokens of the returned key.
async fn start(name: &str) -> (Secure, SigningKey) {
    let key = SigningKey::new("kafka");
    (Secure::start_with_tokens(name, BROKER, accepted(&key)).await, key)
}

fn settings(secure: &Secure, source: Settings) -> Settings {
    let tls = [
        ("KAFKA_BROKERS", secure.stack.kafka().bootstrap_with_login()),
        ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl".into()),
        ("KAFKA_SASL_MECHANISM", "OAUTHBEARER".into()),
        ("KAFKA_SSL_CA_FILE", secure.path("ca.crt".as_ref())),
    ];
    tls.into_iter().chain(source).collect()
}

/// The settings of clients whose token is in a file, which has this one now.
fn from_file(secure: &Secure, token: &str) -> Settings {
    settings(secure, vec![("KAFKA_OAUTH_TOKEN_FILE", secure.write("token", token))])
}

/// The settings of clients that get their tokens from this URL.
fn from_issuer(secure: &Secure, url: &str) -> Settings {
    let source = vec![
        ("KAFKA_OAUTH_TOKEN_URL", url.into()),
        ("KAFKA_OAUTH_CLIENT_ID", CLIENT.into()),
        ("KAFKA_OAUTH_CLIENT_SECRET_FILE", secure.write("secret", &format!("{SECRET}\n"))),
        ("KAFKA_OAUTH_SCOPE", SCOPE.into()),
    ];
    settings(secure, source)
}

#[tokio::test]
async fn kafka_token_file_logs_in_and_bad_tokens_are_named() {
    let (secure, key) = start("kafka_token_file").await;
    secure.assert_carries_a_message("file", &from_file(&secure, &kafka_token(&key, USER, 3600))).await;
    let foreign = from_file(&secure, &kafka_token(&SigningKey::new("kafka"), USER, 3600));
    secure.assert_reported(&foreign, &["invalid_token", "Kafka refuses the token"]).await;
    let expired = from_file(&secure, &kafka_token(&key, USER, -60));
    secure.assert_reported(&expired, &["KAFKA_OAUTH", "the token expired", "no client can log in"]).await;
    secure.stack.stop().await;
}

#[tokio::test]
async fn replaced_kafka_token_file_needs_no_restart() {
    let (secure, key) = start("kafka_token_replaced").await;
    let settings = from_file(&secure, &kafka_token(&key, USER, -60));
    let configure = |spec: ServiceSpec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value));
    let (gateway, transfer) = (secure.world.gateway("g", configure), secure.world.transfer("t", configure));
    for service in [&gateway.service, &transfer] {
        service.launch().unwrap();
        readiness(service, 503, "the token expired").await;
    }
    secure.write("token", &kafka_token(&key, USER, 3600));
    for service in [&gateway.service, &transfer] {
        readiness(service, 200, "ready").await;
    }
    assert_stores(&gateway, "with the new token").await;
    secure.stop([&gateway.service, &transfer]).await;
}

#[tokio::test]
async fn kafka_client_credentials_log_in_and_rejections_are_named() {
    let (secure, key) = start("kafka_credentials").await;
    let issuer = TokenServer::start(key, USER, 3600).await;
    let good = from_issuer(&secure, &issuer.url);
    secure.assert_carries_a_message("issuer", &good).await;
    assert!(issuer.given() >= 3, "both services and the command: {}", issuer.given());
    assert!(issuer.last_request().starts_with("POST /token HTTP/1.1\r\n"), "{}", issuer.last_request());
    let wrong = with(good.clone(), "KAFKA_OAUTH_CLIENT_SECRET_FILE", secure.write("wrong", "hunter2"));
    secure.assert_reported(&wrong, &["401 Unauthorized, invalid_client, wrong secret", "no client can log in"]).await;
    let closed = with(good, "KAFKA_OAUTH_TOKEN_URL", "http://127.0.0.1:1/token".into());
    secure.assert_reported(&closed, &["kafka-oauth-token-url", "Connection refused"]).await;
    secure.stack.stop().await;
}

/// The client's secret goes to no server that the CA file does not confirm.
#[tokio::test]
async fn kafka_tokens_are_requested_only_from_a_verified_issuer() {
    let (secure, key) = start("kafka_https").await;
    let (ca, other) = (Ca::new("issuer"), Ca::new("other"));
    let issuer = TokenServer::start_over_tls(key, USER, 3600, &ca.sign(&LOCAL)).await;
    let trusting = |ca: &Ca, file: &str| {
        let mut settings = from_issuer(&secure, &issuer.url);
        settings.push(("KAFKA_OAUTH_CA_FILE", secure.write(file, &ca.pem())));
        settings
    };
    let distrusting = trusting(&other, "other-ca.crt");
    secure.assert_reported(&distrusting, &["kafka-oauth-token-url", "UnknownIssuer", "no client can log in"]).await;
    assert_eq!((issuer.given(), issuer.last_request().as_str()), (0, ""), "the secret was sent");
    secure.assert_carries_a_message("https", &trusting(&ca, "issuer-ca.crt")).await;
    assert!(issuer.given() >= 2, "both services: {}", issuer.given());
    secure.stack.stop().await;
}

#[tokio::test]
async fn kafka_token_issuer_that_returns_needs_no_restart() {
    let (secure, key) = start("kafka_issuer").await;
    let issuer = TokenServer::start(key, USER, 10).await;
    let (gateway, transfer) = secure.services("s", &from_issuer(&secure, &issuer.url)).await;
    assert_stores(&gateway, "while the issuer responds").await;
    issuer.set_away(true);
    for service in [&gateway.service, &transfer] {
        within(Duration::from_secs(120), "readiness names the issuer", async || {
            let (ready, body) = service.readiness().await.ok_or("no response")?;
            ensure(!ready && body.contains("kafka-oauth-token-url"), body)
        })
        .await;
    }
    issuer.set_away(false);
    for service in [&gateway.service, &transfer] {
        readiness(service, 200, "ready").await;
    }
    assert_stores(&gateway, "after the issuer returned").await;
    secure.stop([&gateway.service, &transfer]).await;
}

/// The lifetime of a token in the tests under load, in seconds.
const LIFETIME: i64 = 30;

#[tokio::test(flavor = "multi_thread")]
async fn kafka_tokens_expire_under_load_and_fail_no_send() {
    assert_no_send_fails("kafka_tokens", Duration::from_secs(90)).await;
}

#[ignore = "it needs 5 minutes"]
#[tokio::test(flavor = "multi_thread")]
async fn kafka_tokens_expire_for_minutes_and_fail_no_send() {
    assert_no_send_fails("kafka_tokens_long", Duration::from_secs(300)).await;
}

/// Sends for this time, while each client has to log in again every 30 s. The gateway gets its tokens from an issuer, and
/// the transfer from a file that is replaced.
async fn assert_no_send_fails(name: &str, time: Duration) {
    let (secure, key) = start(name).await;
    let secure = Arc::new(secure);
    let in_file = from_file(&secure, &kafka_token(&key, USER, LIFETIME));
    let (writing, file_key) = (secure.clone(), key.clone());
    let writer = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_secs(10));
        loop {
            ticks.tick().await;
            writing.write("token", &kafka_token(&file_key, USER, LIFETIME));
        }
    });
    let issuer = TokenServer::start(key.clone(), USER, LIFETIME).await;
    let configure = |settings: &Settings| {
        let settings = settings.clone();
        move |spec: ServiceSpec| {
            // The errors of clients that only send requests are logged at this level.
            let spec = spec.env("LOG_LEVEL", "info,msg_common=debug,msg_gateway=debug,msg_transfer=debug");
            settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value))
        }
    };
    let gateway = secure.world.gateway("g", configure(&from_issuer(&secure, &issuer.url)));
    let transfer = secure.world.transfer("t", configure(&in_file));
    gateway.service.start().await.unwrap();
    transfer.start().await.unwrap();

    let (end, sent) = (Instant::now() + time, AtomicU64::new(0));
    join_all((0..4).map(async |sender: usize| {
        let mut client = client(&gateway).await;
        for i in 0.. {
            if Instant::now() >= end {
                break;
            }
            // Some sends wait for the hints, and with them for the whole way.
            let wait_for = if i % 2 == 0 { WaitFor::Stored.into() } else { 0 };
            let msg = Some(msg("a", &format!("inbox-{sender}"), &format!("{sender}-{i}"), "x"));
            let result = client.send_msg(SendMsgRequest { msg, wait_for }).await;
            result.unwrap_or_else(|error| panic!("send {i} of sender {sender}: {error:?}"));
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }))
    .await;

    let sent = i64::try_from(sent.into_inner()).unwrap();
    assert!(sent > 100, "only {sent} sends");
    secure.world.wait_for_rows(sent).await;
    assert_eq!(count_rows(&secure.world.database().await, "messages").await.unwrap(), sent);
    // A token is replaced after 70 % of its life at the latest.
    let least = time.as_secs_f64() / (0.7 * LIFETIME as f64) - 1.0;
    for service in [&gateway.service, &transfer] {
        assert!(service.is_ready().await, "{:?}", service.readiness().await);
        let fetched = service.metric("msg_kafka_token_fetches_total{outcome=\"OK\"}").await.unwrap();
        assert!(fetched >= least, "{} fetched {fetched} tokens, expected {least}", service.name());
        assert_no_login_failed(service);
    }
    run_with(&secure.world, "check --allow-unsafe-topic", &borrowed(&in_file)).await.assert_code(0);
    writer.abort();
    secure.stop([&gateway.service, &transfer]).await;
}

/// Checks that no client of a service was ever without a valid token.
fn assert_no_login_failed(service: &Service) {
    let log = std::fs::read_to_string(service.log()).unwrap();
    let failed =
        |line: &&str| ["invalid_token", "uthentication", "OAUTHBEARER token"].iter().any(|text| line.contains(text));
    let lines: Vec<&str> = log.lines().filter(failed).take(10).collect();
    assert!(lines.is_empty(), "{}: {lines:#?}", service.name());
}
