//! The grpcurl lines of docs/security.md, with the certificates and tokens that the scripts in `deploy/` make.

use std::path::Path;

use msg_stack::ServiceSpec;
use tokio::process::Command;

use crate::gateway::readme::{ADDRESS, Example, assert_examples};
use crate::support::stack::stack;
use crate::support::world::{Gateway, World};

const PAGE: &str = include_str!("../../../docs/security.md");
/// The folder of the certificates on the page.
const FOLDER: &str = "deploy/certificates";

/// Makes the files of the secure stack, and a client certificate for each of these callers.
async fn make_certificates(folder: &Path, callers: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dev-certificates");
    let made = Command::new(script).args(callers).env("SECRETS_DIR", folder).output().await.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Starts a gateway with these settings, whose values may be files of `folder`.
async fn gateway(world: &World, folder: &Path, name: &str, settings: &[(&str, &str)]) -> Gateway {
    let value = |value: &str| match folder.join(value) {
        file if file.is_file() => file.display().to_string(),
        _ => value.to_owned(),
    };
    let configure = |spec: ServiceSpec| settings.iter().fold(spec, |spec, &(name, text)| spec.env(name, value(text)));
    let gateway = world.gateway(name, configure);
    gateway.service.start().await.unwrap();
    gateway
}

#[tokio::test]
async fn security_grpcurl_lines_give_the_output_shown() {
    let (stack, temporary) = (stack().await, tempfile::tempdir().unwrap());
    let folder = temporary.path();
    make_certificates(folder, &["bob"]).await;
    let world = World::on(stack, "security_page", 16);
    world.create(stack).await;
    let _transfer = world.running_transfer().await;
    let tls = [("TLS_CERT_FILE", "msg-gateway.pem"), ("TLS_KEY_FILE", "msg-gateway.key")];
    // The settings of deploy/secure.yml.
    let tokens = [
        ("AUTH_MODE", "jwt"),
        ("AUTH_JWT_PEM_FILE", "token-issuer.pem"),
        ("AUTH_JWT_ALGORITHMS", "RS256"),
        ("AUTH_JWT_ISSUER", "https://issuer.example"),
        ("AUTH_JWT_AUDIENCE", "msg-gateway"),
    ];
    let by_token = gateway(&world, folder, "tokens", &[&tls[..], &tokens].concat()).await;
    let certificates = [("AUTH_MODE", "mtls"), ("AUTH_MTLS_NAME", "dns"), ("TLS_CLIENT_CA_FILE", "ca.pem")];
    let by_certificate = gateway(&world, folder, "certificates", &[&tls[..], &certificates].concat()).await;
    let made = folder.to_str().unwrap();
    let change = |Example { command, output }: Example| {
        let gateway = if command.contains("-cert ") { &by_certificate } else { &by_token };
        let at = |text: &str| text.replace(ADDRESS, &gateway.address).replace(FOLDER, made);
        let token = format!("SECRETS_DIR={made} deploy/dev-token");
        Example { command: at(&command).replace("deploy/dev-token", &token), output: at(&output) }
    };
    assert_examples(&world, PAGE, 6, change).await;
}
