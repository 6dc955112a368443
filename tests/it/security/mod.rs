//! TLS of the services to callers, Kafka and PostgreSQL, and who may call the gateway.

mod admin;
mod auth;
mod connections;
mod kafka;
mod kafka_tokens;
mod page;
mod postgres;
mod rotation;
mod secrets;
mod verification;

use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_common::tls::ClientConfig;
use msg_stack::{Service, ServiceSpec, Signal};

use crate::gateway::calls::Client;
use crate::support::certificates::{Files, Pair, channel};
use crate::support::world::{Gateway, World};
use crate::support::{NotYet, ensure};

/// The files of a gateway: its certificate, its key, and the CAs of its callers.
fn server_files(pair: &Pair, client_ca: Option<&str>) -> Files {
    Files::new(&contents(pair, client_ca))
}

fn contents<'a>(pair: &'a Pair, client_ca: Option<&'a str>) -> [(&'static str, &'a str); 3] {
    [("tls.crt", &pair.certificate), ("tls.key", &pair.key), ("ca.crt", client_ca.unwrap_or_default())]
}

/// Starts a gateway with these files; callers need a certificate if `mutual`.
async fn tls_gateway(
    world: &World,
    files: &Files,
    mutual: bool,
    change: impl FnOnce(ServiceSpec) -> ServiceSpec,
) -> Gateway {
    let gateway = world.gateway("gateway", |spec| {
        let spec = spec.env("TLS_CERT_FILE", files.text("tls.crt")).env("TLS_KEY_FILE", files.text("tls.key"));
        change(if mutual { spec.env("TLS_CLIENT_CA_FILE", files.text("ca.crt")) } else { spec })
    });
    gateway.service.start().await.unwrap();
    gateway
}

fn client(gateway: &Gateway, caller: &std::sync::Arc<ClientConfig>) -> Client {
    MsgGatewayClient::new(channel(&gateway.address, caller))
}

/// Sends SIGHUP, so that the service reads its files again.
fn hang_up(service: &Service) {
    assert!(service.signal(Signal::Hup), "it does not run");
}

/// The sum of the lines of a metric that contain all of these labels.
async fn sum(gateway: &Gateway, name: &str, labels: &[&str]) -> Result<f64, NotYet> {
    let metrics = gateway.service.metrics().await?;
    let lines =
        metrics.lines().filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
    let mut sum = 0.0;
    for line in lines {
        sum += line.rsplit(' ').next().unwrap_or_default().parse::<f64>()?;
    }
    Ok(sum)
}

async fn ensure_sum(gateway: &Gateway, name: &str, labels: &[&str], expected: f64) -> Result<(), NotYet> {
    let found = sum(gateway, name, labels).await?;
    ensure(found == expected, format!("{name} {labels:?} is {found}, expected {expected}"))
}
