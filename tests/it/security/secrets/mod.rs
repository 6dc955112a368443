//! No secret and no content of a message is in anything that the services print, and the audit log has what it should.

mod audit;
mod calls;
mod settings;

use std::path::PathBuf;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use msg_stack::{Service, ServiceSpec};
use serde_json::{Value, json};
use tonic::transport::Channel;

use self::calls::make_every_call;
use super::kafka::{BROKER, Secure, Settings, USER, borrowed, with};
use super::server_files;
use crate::process::readiness;
use crate::support::certificates::{Ca, Files, LOCAL, Pair, caller, channel};
use crate::support::hosts::{PasswordRole, host_and_port};
use crate::support::issuer::{AUDIENCE, ISSUER};
use crate::support::kafka::{RawRecord, msg, record_of};
use crate::support::leaks::{MARK, Seen};
use crate::support::world::{Gateway, count_rows};
use crate::support::{ensure, eventually};
use crate::transfer::commands::run_with;

/// The password of the database's role. Each part of it has the mark, because a parser may split it.
const DATABASE_PASSWORD: &str =
    "zq7xSecret93a@zq7xSecret93b/zq7xSecret93c:?zq7xSecret93d%41 zq7xSecret93e,='\"#&zq7xSecret93f";
/// The same, as a URL needs it.
const ENCODED_PASSWORD: &str = "zq7xSecret93a%40zq7xSecret93b%2Fzq7xSecret93c%3A%3Fzq7xSecret93d%2541%20zq7xSecret93e%2C%3D%27%22%23%26zq7xSecret93f";
const KAFKA_PASSWORD: &str = "zq7xSecret93-kafka";
const TOKEN_SECRET: &str = "zq7xSecret93-token-secret-of-the-issuer";
const INBOX: &str = "zq7xSecret93-inbox";

/// A token of the issuer, with the mark in its claims.
fn token(secret: &str, subject: &str, seconds: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let exp = now.saturating_add_signed(seconds);
    let scope = format!("msg.read:{INBOX} other:{MARK}");
    let claims = json!({ "sub": subject, "iss": ISSUER, "aud": AUDIENCE, "exp": exp, "scope": scope, "note": MARK });
    let key = EncodingKey::from_secret(secret.as_bytes()).unwrap();
    encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

/// A cluster and a database that ask for passwords, and the files with all secrets.
struct Marked {
    secure: Secure,
    role: PasswordRole,
    ca: Ca,
    clients: Ca,
    server: Pair,
    files: Files,
    settings: Settings,
}

impl Marked {
    async fn start(name: &str) -> Marked {
        let secure = Secure::start(name, BROKER).await;
        secure.stack.kafka().set_scram_password(USER, KAFKA_PASSWORD).await.unwrap();
        let role = PasswordRole::create(&secure.stack, &secure.world).await;
        let operator = secure.world.database().await;
        let grant =
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO app; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app";
        operator.batch_execute(&format!("ALTER ROLE app PASSWORD $x${DATABASE_PASSWORD}$x$; {grant}")).await.unwrap();
        let (ca, clients) = (Ca::new("ours"), Ca::new("clients"));
        let server = ca.sign(&LOCAL);
        let files = server_files(&server, Some(&clients.pem()));
        let mut settings = secure.login("SCRAM-SHA-512");
        // The line end after a password is not a part of it.
        let write = |name: &str, text: &str| secure.write(name, &format!("{text}\n"));
        settings = with(settings, "KAFKA_SASL_PASSWORD_FILE", write("password", KAFKA_PASSWORD));
        let database = format!("{}/{}", host_and_port(secure.world.database_url()), secure.world.topic());
        let properties = format!("# {MARK}\nssl.keystore.password={MARK}\ndebug=all");
        settings.extend([
            ("DATABASE_URL", format!("postgres://app@{database}")),
            ("DATABASE_PASSWORD_FILE", write("database-password", DATABASE_PASSWORD)),
            ("DATABASE_REPLICA_URL", format!("postgres://app:{ENCODED_PASSWORD}@{database}")),
            ("KAFKA_PROPERTIES_FILE", write("properties", &properties)),
            ("TLS_CERT_FILE", files.text("tls.crt")),
            ("TLS_KEY_FILE", files.text("tls.key")),
            ("TLS_CLIENT_CA_FILE", files.text("ca.crt")),
            ("AUTH_MODE", "jwt+mtls".to_owned()),
            ("AUTH_JWT_ISSUER", ISSUER.to_owned()),
            ("AUTH_JWT_AUDIENCE", AUDIENCE.to_owned()),
            ("AUTH_JWT_SECRET_FILE", write("token-secret", TOKEN_SECRET)),
            ("LOG_LEVEL", "trace".to_owned()),
        ]);
        Marked { secure, role, ca, clients, server, files, settings }
    }

    /// Connects with a certificate, if `named`.
    fn channel(&self, gateway: &Gateway, named: bool) -> Channel {
        let own = named.then(|| self.clients.sign(&["spiffe://test/proxy"]));
        channel(&gateway.address, &caller(&self.ca.pem(), own.as_ref()))
    }

    fn gateway(&self, name: &str, format: &str) -> Gateway {
        self.secure.world.gateway(name, |spec| self.configure(spec).env("LOG_FORMAT", format))
    }

    fn configure(&self, spec: ServiceSpec) -> ServiceSpec {
        self.settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value))
    }

    /// What must never be seen and has no mark.
    fn keep_secrets(&self, seen: &mut Seen) {
        seen.keep_secret("the server's key", &self.server.key);
        seen.keep_secret("the token", &token(TOKEN_SECRET, "alice", 3600));
    }
}

async fn add_state(seen: &mut Seen, service: &Service, when: &str) {
    let (_, text) = service.readiness().await.unwrap();
    seen.add(format!("readiness of {} {when}", service.name()), text);
    let metrics = service.metrics().await.unwrap();
    assert!(metrics.contains("msg_log_lines_dropped_total 0"), "lines were dropped, so this test did not see them");
    seen.add(format!("metrics of {} {when}", service.name()), metrics);
}

/// Dead letters of every kind: their contents are in Kafka, in the table, and in no log.
async fn put_bad_records(marked: &Marked) {
    let writer = marked.secure.world.writer();
    let broken = [b"\xff\xff".as_slice(), MARK.as_bytes()].concat();
    let undecodable = RawRecord { key: Some(INBOX.into()), value: Some(broken), version: Some("1") };
    let wrong_key = RawRecord { key: Some(MARK.into()), ..record_of(&msg("alice", INBOX, "wrong key", MARK)) };
    writer.put(&undecodable);
    writer.put(&wrong_key);
    writer.put_with_header(0, &record_of(&msg("alice", INBOX, "header", MARK)), MARK.as_bytes(), MARK.as_bytes());
    writer.flush();
    let database = marked.secure.world.database().await;
    eventually("the bad records are dead letters", async || {
        let found = count_rows(&database, "dead_letters").await?;
        ensure(found >= 2, found)
    })
    .await;
}

/// Runs every command. What `list`, `show` and `export` print is what they are for; their logs must have none of it.
async fn run_commands(marked: &Marked, seen: &mut Seen) {
    let mut settings = marked.settings.clone();
    settings.push(("LOG_FORMAT", "json".into()));
    for (arguments, shows_messages) in [
        ("migrate", false),
        ("check --allow-unsafe-topic", false),
        ("check --output json", false),
        ("lag --output json", false),
        ("dead-letters list --output json", true),
        ("dead-letters show 0 0 --content", true),
        ("dead-letters export", true),
        ("dead-letters replay --all --dry-run", false),
        (format!("dead-letters replay --recv-id {INBOX}").as_str(), false),
        (format!("dead-letters discard --reason INVALID --older-than 0s --recv-id {INBOX}").as_str(), false),
        ("purge --older-than 90days --dead-letters", false),
        ("resume --all", false),
    ] {
        let ran = run_with(&marked.secure.world, arguments, &borrowed(&settings)).await;
        assert!([0, 1].contains(&ran.code), "{arguments}: {}", ran.stderr);
        seen.add(format!("log of {arguments}"), ran.stderr);
        if !shows_messages {
            seen.add(format!("output of {arguments}"), ran.stdout);
        }
    }
}

/// Reads the texts while neither the database nor Kafka accepts the passwords.
async fn withdraw_passwords(marked: &Marked, gateway: &Gateway, transfer: &Service, seen: &mut Seen) {
    let operator = marked.secure.world.database().await;
    operator.batch_execute("ALTER ROLE app PASSWORD 'another'").await.unwrap();
    marked.role.end_sessions().await;
    seen.add("readiness without a password", readiness(transfer, 503, "password").await);
    make_every_call(marked.channel(gateway, true), "without a database", seen).await;
    let check = run_with(&marked.secure.world, "check", &borrowed(&marked.settings)).await.assert_code(1);
    assert!(check.stdout.contains("password"), "{}", check.stdout);
    seen.add("check without the database's password", check.stdout + &check.stderr);
    let wrong = with(marked.settings.clone(), "KAFKA_SASL_PASSWORD_FILE", marked.secure.write("wrong", MARK));
    let check = run_with(&marked.secure.world, "check", &borrowed(&wrong)).await.assert_code(1);
    assert!(check.stdout.contains("refuses the user or the password"), "{}", check.stdout);
    seen.add("check with a wrong password of Kafka", check.stdout + &check.stderr);
    let restore = format!("ALTER ROLE app PASSWORD $x${DATABASE_PASSWORD}$x$");
    operator.batch_execute(&restore).await.unwrap();
    readiness(transfer, 200, "ready").await;
}

/// Replaces the files, so that the services read them again: with others that are valid, and with broken ones.
async fn replace_files(marked: &Marked, gateway: &Gateway, seen: &mut Seen) {
    let other = marked.ca.sign(&LOCAL);
    seen.keep_secret("the key of another certificate", &other.key);
    let client_ca = marked.clients.pem();
    for (certificate, outcome) in [(&marked.server.certificate, "rejected"), (&other.certificate, "applied")] {
        marked.files.replace(&[("tls.crt", certificate), ("tls.key", &other.key), ("ca.crt", &client_ca)]);
        wait_for_reload(gateway, "grpc", outcome).await;
    }
    marked.secure.write("token-secret", &format!("{MARK}-short"));
    wait_for_reload(gateway, "auth_keys", "rejected").await;
}

async fn wait_for_reload(gateway: &Gateway, usage: &str, outcome: &str) {
    super::hang_up(&gateway.service);
    eventually("the changed files were applied or rejected", async || {
        let labels = [format!("use=\"{usage}\""), format!("outcome=\"{outcome}\"")];
        let found = super::sum(gateway, "msg_file_reloads_total", &[&labels[0], &labels[1]]).await?;
        ensure(found >= 1.0, format!("{usage} {outcome}: {found}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_content_is_printed() {
    let marked = Marked::start("secrets").await;
    let mut seen = Seen::default();
    marked.keep_secrets(&mut seen);
    let (json, text) = (marked.gateway("json", "json"), marked.gateway("text", "text"));
    let transfer = marked.secure.world.transfer("transfer", |spec| marked.configure(spec).env("NO_MIGRATE", "true"));
    transfer.start().await.unwrap();
    for gateway in [&json, &text] {
        gateway.service.start().await.unwrap();
        make_every_call(marked.channel(gateway, true), gateway.service.name(), &mut seen).await;
        // Without a certificate, the handshake fails.
        make_every_call(marked.channel(gateway, false), "without a certificate", &mut seen).await;
    }
    put_bad_records(&marked).await;
    run_commands(&marked, &mut seen).await;
    for service in [&json.service, &text.service, &transfer] {
        add_state(&mut seen, service, "in service").await;
    }
    withdraw_passwords(&marked, &json, &transfer, &mut seen).await;
    replace_files(&marked, &text, &mut seen).await;
    for service in [&json.service, &text.service, &transfer] {
        add_state(&mut seen, service, "at the end").await;
        assert!(service.stop().await.unwrap().success());
        seen.add_file(service.log());
    }
    marked.secure.stack.stop().await;
    seen.assert_without_secrets();
    audit::assert_refusals_are_recorded(&json.service);
}

/// The path of a file with the audit log of a service.
fn audit_file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("audit.log")
}

/// The audit log's lines in a text of JSON lines.
fn audit_lines(text: &str) -> Vec<Value> {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "audit").collect()
}
