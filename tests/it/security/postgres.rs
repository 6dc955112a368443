//! TLS between the services and PostgreSQL.

use std::time::Duration;

use msg_common::proto::PullMsgsRequest;
use rcgen::date_time_ymd;
use tonic::Request;

use crate::gateway::calls::{Client, client, wait_gateway_not_ready};
use crate::support::certificates::Ca;
use crate::support::hosts::host_and_port;
use crate::support::load::Load;
use crate::support::tls_postgres::{FirstMessages, HOST, TlsPostgres};
use crate::support::transfer::wait_not_ready;
use crate::support::world::{World, count_rows};
use crate::support::{NotYet, WAIT_TIMEOUT, ensure, eventually, within};
use crate::transfer::commands::run_with;

/// The first bytes of a connection that requests TLS.
const REQUEST_TLS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

const SCRAM: &str = "scram-sha-256";

/// What `check` finds about a database, in one text.
async fn check(world: &World, url: &str) -> String {
    let result = run_with(world, "check", &[("DATABASE_URL", url)]).await;
    format!("{}\n{}", result.stdout, result.stderr)
}

async fn expect(world: &World, url: &str, words: &[&str]) {
    let found = check(world, url).await;
    assert!(words.iter().all(|word| found.contains(word)), "{url}: {found}\nexpected: {words:?}");
    assert!(!found.contains("first"), "the password is in the text: {found}");
}

async fn pull(client: &Client) -> Result<usize, NotYet> {
    let mut request = Request::new(PullMsgsRequest { recv_id: "inbox-0".into(), ..PullMsgsRequest::default() });
    request.set_timeout(Duration::from_secs(10));
    Ok(client.clone().pull_msgs(request).await?.into_inner().msgs.len())
}

#[tokio::test]
async fn server_is_verified_by_ca_and_host_name() {
    let server = TlsPostgres::start("tls_verified", SCRAM).await;
    let world = &server.world;
    server.write("other.crt", &Ca::new("others").pem());
    let [ca, other] = ["ca.crt", "other.crt"].map(|name| format!("sslrootcert={}", server.path(name).display()));
    let url = |host: &str, parameters: &str| server.url(host, parameters);
    let full = url(HOST, &ca);
    run_with(world, "migrate", &[("DATABASE_URL", &full)]).await.assert_code(0);

    let responds = ["it responds", "each keeps its server process"];
    expect(world, &full, &responds).await;
    expect(world, &url("10.0.0.1", &format!("sslmode=verify-ca&{ca}")), &responds).await;
    expect(world, &url(HOST, &format!("channel_binding=require&{ca}")), &responds).await;
    let words = format!("host={HOST} hostaddr=127.0.0.1 port={} user=app password=first", port(world));
    expect(world, &format!("{words} dbname=tls_verified sslmode=verify-full {ca}"), &responds).await;

    let unknown = ["was not issued by a CA of", "other.crt", "give the CA of the server in sslrootcert"];
    for mode in ["verify-full", "verify-ca"] {
        expect(world, &url(HOST, &format!("sslmode={mode}&{other}")), &unknown).await;
    }
    expect(world, &url(HOST, "sslmode=verify-full"), &["was not issued by a CA of this system"]).await;
    let wrong_name = ["is for", HOST, "and not for elsewhere.internal", "name the server in the URL"];
    expect(world, &url("elsewhere.internal", &ca), &wrong_name).await;
    let plain = ["no encryption (28000)", "write sslmode=verify-full"];
    expect(world, &url(HOST, "sslmode=disable"), &plain).await;
    // The wrong password of a role that exists.
    let wrong = full.replace(":first@", ":wrong@");
    expect(world, &wrong, &["password authentication failed for user \"app\" (28P01)"]).await;

    let expired = server.ca.sign_with(&[HOST], |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 2, 3));
    });
    server.install(&expired, &server.ca).await;
    wait_for_finding(world, &full, "expired at 2021-02-03T00:00:00Z: renew it").await;
    server.install(&server.ca.own_pair(), &server.ca).await;
    wait_for_finding(world, &full, "the server's certificate is the certificate of a CA").await;
    server.stack.stop().await;
}

/// The server uses a new certificate soon after it was installed.
async fn wait_for_finding(world: &World, url: &str, text: &str) {
    eventually("check finds it", async || {
        let found = check(world, url).await;
        ensure(found.contains(text), found)
    })
    .await;
}

fn port(world: &World) -> &str {
    host_and_port(world.database_url()).rsplit_once(':').unwrap().1
}

#[tokio::test]
async fn server_without_tls_is_not_used() {
    let world = World::new("tls_without").await;
    let url = format!("{}?sslmode=verify-full", world.database_url());
    expect(&world, &url, &["the server does not support TLS", "turn on its `ssl` setting"]).await;
}

#[tokio::test]
async fn client_certificate_is_required_and_named() {
    let server = TlsPostgres::start("tls_client", &format!("{SCRAM} clientcert=verify-full")).await;
    let world = &server.world;
    let url = |more: &str| server.url(HOST, &format!("sslrootcert={}{more}", server.path("ca.crt").display()));
    let with_pair = url(&server.client_pair());
    expect(world, &with_pair, &["it responds"]).await;
    expect(world, &url(""), &["requires a valid client certificate", "give the certificate in sslcert"]).await;
    server.write_client(&Ca::new("others"));
    let rejected = ["the server rejects our certificate (UnknownCA)", "ssl_ca_file"];
    expect(world, &with_pair, &rejected).await;
    server.stack.stop().await;
}

#[tokio::test]
async fn readiness_names_a_certificate_that_is_rejected() {
    let server = TlsPostgres::start("tls_ready", SCRAM).await;
    server.write("ca.crt", &Ca::new("others").pem());
    let transfer = server.world.transfer("transfer", |spec| server.role.configure(spec));
    let gateway = server.world.gateway("gateway", |spec| server.role.configure(spec));
    transfer.launch().unwrap();
    gateway.service.launch().unwrap();
    let reason = "the server's certificate was not issued by a CA of";
    wait_not_ready(&transfer, &["schema", reason]).await;
    wait_gateway_not_ready(&gateway, &["database", reason]).await;
    // The services read the file again without a restart.
    server.write("ca.crt", &server.ca.pem());
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    gateway.service.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert_eq!(pull(&client(&gateway).await).await.unwrap(), 0);
    server.stack.stop().await;
}

#[tokio::test]
async fn certificates_and_password_rotate_under_load() {
    let mut server = TlsPostgres::start("tls_rotated", &format!("{SCRAM} clientcert=verify-full")).await;
    let ca_file = format!("sslrootcert={}", server.path("ca.crt").display());
    let parameters = format!("?hostaddr=127.0.0.1&{ca_file}{}&channel_binding=require", server.client_pair());
    server.role.set_parameters("first", &parameters);
    let transfer = server.world.transfer("transfer", |spec| server.role.configure(spec));
    transfer.start().await.unwrap();
    let gateway = server.world.gateway("gateway", |spec| {
        let file = server.role.url_file();
        server.role.configure(spec).env("DATABASE_REPLICA_URL_FILE", file.display())
    });
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let load = Load::start(server.world.writer(), 10);
    server.world.wait_for_more_rows(500).await;

    // A new pair of a new CA on both sides, whose files do not change at the same moment.
    let (new, clients) = (Ca::new("new servers"), Ca::new("new clients"));
    server.install(&new.sign(&[HOST]), &clients).await;
    server.role.end_sessions().await;
    server.write_client(&clients);
    server.write("ca.crt", &new.pem());
    server.world.wait_for_more_rows(500).await;
    wait_for_messages(&client).await;

    // Broken files: the previous content stays in use.
    server.write("ca.crt", "-----BEGIN CERTIFICATE-----\nbroken");
    server.role.rotate("second").await;
    server.world.wait_for_more_rows(500).await;
    wait_for_messages(&client).await;
    server.write("ca.crt", &new.pem());

    let newest = Ca::new("newest servers");
    server.write("ca.crt", &newest.pem());
    server.install(&newest.sign(&[HOST]), &clients).await;
    server.stack.postgres().stop().await;
    server.stack.postgres().start().await.unwrap();
    server.world.wait_for_more_rows(500).await;
    wait_for_messages(&client).await;
    let sent = load.finish(&server.world).await;
    assert!(sent >= 2000, "{sent}");
    assert_no_secret(&server, transfer.log());
    assert_no_secret(&server, gateway.service.log());
    server.stack.stop().await;
}

async fn wait_for_messages(client: &Client) {
    eventually("reads succeed over new connections", async || {
        let found = pull(client).await?;
        ensure(found > 0, found)
    })
    .await;
}

fn assert_no_secret(server: &TlsPostgres, log: &std::path::Path) {
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("cannot read the files for TLS to the database, using the previous ones"), "no warning");
    let key = std::fs::read_to_string(server.path("client.key")).unwrap();
    let secrets = ["first", "second", key.lines().nth(1).unwrap()];
    assert!(secrets.iter().all(|secret| !log.contains(secret)), "a secret is in the log");
}

#[tokio::test]
async fn cancel_requests_and_stall_detection_work_over_tls() {
    let server = TlsPostgres::start("tls_cancel", SCRAM).await;
    let _transfer = server.world.running_transfer().await;
    let database = server.world.database().await;
    database.batch_execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO app").await.unwrap();
    let behind = host_and_port(server.world.database_url()).parse().unwrap();
    let proxy = FirstMessages::forward(behind).await;
    let url = server.url(HOST, &format!("sslrootcert={}", server.path("ca.crt").display()));
    let url = url.replace(&format!(":{}/", port(&server.world)), &format!(":{}/", proxy.address.port()));
    let gateway =
        server.world.gateway("gateway", |spec| spec.env("DATABASE_URL", &url).env("DATABASE_CONNECT_TIMEOUT", "1s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    assert_eq!(pull(&client).await.unwrap(), 0);

    // While another session holds the lock, only a cancel request ends the read before its timeout of 30 s: the server
    // does not detect that its client has disconnected.
    let holder = server.world.database().await;
    holder.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // The gateway's check of its rights waits too.
    let waiting =
        "pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock' AND query NOT LIKE '%WHERE false'";
    let read = tokio::spawn({
        let client = client.clone();
        async move { pull(&client).await.is_ok() }
    });
    eventually("the read waits", async || ensure(count_rows(&database, waiting).await? > 0, "it does not")).await;
    read.abort();
    within(Duration::from_secs(15), "the read is cancelled", async || {
        ensure(count_rows(&database, waiting).await? == 0, "it waits")
    })
    .await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    let seen = proxy.seen();
    assert!(seen.len() >= 2 && seen.iter().all(|first| *first == REQUEST_TLS), "a connection without TLS: {seen:?}");

    // Requests and responses are counted above TLS: a frozen server is detected.
    assert_eq!(pull(&client).await.unwrap(), 0);
    assert!(server.stack.postgres().freeze());
    assert!(pull(&client).await.is_err());
    eventually("the stalled connection is closed", async || {
        let log = std::fs::read_to_string(gateway.service.log())?;
        ensure(log.contains("closed stalled database connection"), "it is not")
    })
    .await;
    assert!(server.stack.postgres().thaw());
    eventually("reads succeed again", async || ensure(pull(&client).await? == 0, "other messages")).await;
    server.stack.stop().await;
}

#[tokio::test]
async fn plain_text_beyond_loopback_is_logged_once() {
    let world = World::new("tls_plain").await;
    // An address for documentation: no host has it.
    let url = "postgres://app:first@192.0.2.1/x?sslmode=disable";
    let transfer =
        world.transfer("transfer", |spec| spec.env("DATABASE_URL", url).env("DATABASE_CONNECT_TIMEOUT", "100ms"));
    transfer.launch().unwrap();
    wait_not_ready(&transfer, &["schema", "192.0.2.1:5432"]).await;
    let log = std::fs::read_to_string(transfer.log()).unwrap();
    assert_eq!(log.matches("connections to the database leave this machine without TLS").count(), 1, "{log}");
    assert!(log.contains("192.0.2.1:5432") && !log.contains("first"), "{log}");
}
