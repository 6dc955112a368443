//! The quick starts over TLS: without and with a certificate of their own, and against a gateway that they do not trust.

use tokio::time::timeout;

use super::quick_start::{Language, QuickStart};
use super::{assert_all_sent_and_pulled, assert_rows};
use crate::support::WAIT_TIMEOUT;
use crate::support::certificates::{Ca, Files, LOCAL};
use crate::support::issuer::{AUDIENCE, ISSUER, SigningKey, jwks};
use crate::support::world::World;

const COUNT: usize = 10;
/// Connects without the quick start's loop, which would retry for 90 s: the first error shows the cause.
const SCRIPT: &str = r"
import sys, grpc
ca = open(sys.argv[2], 'rb').read()
channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials(ca))
call = channel.unary_unary('/msg.v1.MsgGateway/SendMsg')
try:
    call(b'', timeout=10)
except grpc.RpcError as error:
    print(error.code().name, error.details())
";

#[tokio::test]
async fn python_client_sends_over_tls() {
    sends_over_tls(Language::Python, "python_tls").await;
}

#[tokio::test]
async fn go_client_sends_over_tls() {
    sends_over_tls(Language::Go, "go_tls").await;
}

#[tokio::test]
async fn java_client_sends_over_tls() {
    sends_over_tls(Language::Java, "java_tls").await;
}

#[tokio::test]
async fn node_client_sends_over_tls() {
    sends_over_tls(Language::Node, "node_tls").await;
}

#[tokio::test]
async fn python_client_sends_with_a_token() {
    sends_with_a_token(Language::Python, "python_token").await;
}

#[tokio::test]
async fn go_client_sends_with_a_token() {
    sends_with_a_token(Language::Go, "go_token").await;
}

#[tokio::test]
async fn java_client_sends_with_a_token() {
    sends_with_a_token(Language::Java, "java_token").await;
}

#[tokio::test]
async fn node_client_sends_with_a_token() {
    sends_with_a_token(Language::Node, "node_token").await;
}

/// The token is in a file that is replaced while the program runs: the old one is then not accepted any more.
async fn sends_with_a_token(language: Language, name: &str) {
    const MANY: usize = 5000;
    let Some(program) = QuickStart::of(language) else { return };
    let world = World::new(name).await;
    let _transfer = world.running_transfer().await;
    let (ca, key) = (Ca::new("ours"), SigningKey::new("first"));
    let server = ca.sign(&LOCAL);
    let token = key.token("alice", "msg.read:token msg.read:twice");
    let files = Files::new(&[
        ("tls.crt", &server.certificate),
        ("tls.key", &server.key),
        ("ca.crt", &ca.pem()),
        ("keys.json", &jwks(&[&key])),
    ]);
    let tokens = Files::new(&[("token", &format!("{token}\n"))]);
    let gateway = world.gateway("gateway", |spec| {
        let tls = spec.env("TLS_CERT_FILE", files.text("tls.crt")).env("TLS_KEY_FILE", files.text("tls.key"));
        let auth = tls.env("AUTH_MODE", "jwt").env("AUTH_JWKS_FILE", files.text("keys.json"));
        auth.env("AUTH_JWT_ISSUER", ISSUER).env("AUTH_JWT_AUDIENCE", AUDIENCE)
    });
    gateway.service.start().await.unwrap();
    let (ca, file) = (files.text("ca.crt"), tokens.text("token"));
    let start = |to: &str, count: usize, args: &[&str]| {
        let count = count.to_string();
        program.start(&gateway.address, &[&["--recv-id", to, "--count", &count][..], args].concat())
    };
    let with_token = ["--tls-ca", &ca, "--token-file", &file];
    assert_all_sent_and_pulled(&start("token", COUNT, &with_token).totals().await, COUNT);
    let refused = start("token", 1, &["--tls-ca", &ca]).failure().await.to_uppercase();
    assert!(refused.contains("GAVE UP: UNAUTHENTICATED") && !refused.contains("THE OUTCOME IS UNKNOWN"), "{refused}");
    // No gateway gets a token in the clear.
    let plain = start("token", 1, &["--token-file", &file]).failure().await;
    assert!(!plain.contains("gave up"), "{plain}");
    // It sends with what the file has now, and not with what it had at the start.
    let mut running = start("twice", MANY, &with_token);
    running.until("sent 10").await;
    tokens.replace(&[("token", "x")]);
    let refused = running.failure().await.to_uppercase();
    assert!(refused.contains("GAVE UP: UNAUTHENTICATED"), "{refused}");
    world.wait_for_all_committed().await;
    assert_rows(&world, "token", COUNT).await;
}

async fn sends_over_tls(language: Language, name: &str) {
    let Some(program) = QuickStart::of(language) else { return };
    let world = World::new(name).await;
    let _transfer = world.running_transfer().await;
    let (ca, clients) = (Ca::new("ours"), Ca::new("clients"));
    let (server, own) = (ca.sign(&LOCAL), clients.sign(&["spiffe://test/alice"]));
    let files = Files::new(&[
        ("tls.crt", &server.certificate),
        ("tls.key", &server.key),
        ("ca.crt", &ca.pem()),
        ("clients.crt", &clients.pem()),
        ("own.crt", &own.certificate),
        ("own.key", &own.key),
    ]);
    let start = async |name: &str, mutual: bool| {
        let gateway = world.gateway(name, |spec| {
            let spec = spec.env("TLS_CERT_FILE", files.text("tls.crt")).env("TLS_KEY_FILE", files.text("tls.key"));
            if mutual { spec.env("TLS_CLIENT_CA_FILE", files.text("clients.crt")) } else { spec }
        });
        gateway.service.start().await.unwrap();
        gateway
    };
    let (tls, mutual) = (start("tls", false).await, start("mutual", true).await);
    let [ca, cert, key] = ["ca.crt", "own.crt", "own.key"].map(|name| files.text(name));
    let count = COUNT.to_string();
    let args = ["--recv-id", "tls", "--count", &count, "--tls-ca", &ca];
    assert_all_sent_and_pulled(&program.start(&tls.address, &args).totals().await, COUNT);
    let args = ["--recv-id", "mutual", "--count", &count, "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    assert_all_sent_and_pulled(&program.start(&mutual.address, &args).totals().await, COUNT);
    world.wait_for_all_committed().await;
    for inbox in ["tls", "mutual"] {
        assert_rows(&world, inbox, COUNT).await;
    }
}

#[tokio::test]
async fn python_caller_does_not_trust_a_gateway_of_another_ca() {
    let Some(program) = QuickStart::of(Language::Python) else { return };
    let world = World::new("python_middle").await;
    let (ca, other) = (Ca::new("ours"), Ca::new("other"));
    let script = Files::new(&[("call.py", SCRIPT), ("ca.crt", &ca.pem())]);
    for (name, stolen, problem) in [
        ("other-ca", other.sign(&LOCAL), "CERTIFICATE_VERIFY_FAILED"),
        ("other-host", ca.sign(&["elsewhere.test"]), "Hostname Verification Check failed"),
    ] {
        let files = Files::new(&[("tls.crt", &stolen.certificate), ("tls.key", &stolen.key)]);
        let gateway = world.gateway(name, |spec| {
            spec.env("TLS_CERT_FILE", files.text("tls.crt")).env("TLS_KEY_FILE", files.text("tls.key"))
        });
        gateway.service.start().await.unwrap();
        let mut command = program.python(&script.text("call.py"));
        let run = command.args([&gateway.address, &script.text("ca.crt")]).output();
        let output = timeout(WAIT_TIMEOUT, run).await.expect("the script ends in time").unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(printed.starts_with("UNAVAILABLE") && printed.contains(problem), "{printed}{stderr}");
    }
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 0);
}
