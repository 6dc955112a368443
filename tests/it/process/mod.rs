//! The processes: their logs, settings and signals, and the cause that they give if Kafka cannot be used.

pub(crate) mod causes;
mod logs;
mod rights;
mod role_settings;
mod settings;
mod signals;

use std::process::Stdio;

use msg_stack::Service;
use msg_stack::service::find_binary;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::support::{ensure, eventually};

/// Starts the service as a child of the test, with these further settings and this standard error. It is killed when
/// dropped.
fn spawn(service: &Service, settings: &[(&str, &str)], stderr: impl Into<Stdio>) -> Child {
    let spec = service.spec();
    Command::new(find_binary(&spec.binary).unwrap())
        .args(&spec.args)
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Waits until readiness has this status and text; returns the whole body.
pub(crate) async fn readiness(service: &Service, status: u16, text: &str) -> String {
    eventually("readiness has the expected text", async || {
        let (found, body) = msg_common::admin::probe(service.spec().admin.unwrap(), "/readyz").await?;
        ensure(found == status && body.contains(text), format!("{found}: {body}"))?;
        Ok(body)
    })
    .await
}

/// A server that accepts connections and never responds.
struct Silent {
    address: String,
    accepted: tokio::sync::watch::Receiver<usize>,
}

impl Silent {
    async fn start() -> Silent {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (count, accepted) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                held.push(connection);
                count.send_modify(|count| *count += 1);
            }
        });
        Silent { address, accepted }
    }

    /// Waits until there are more than `before` connections.
    async fn wait_for_connection(&self, before: usize) {
        let mut accepted = self.accepted.clone();
        let reached = accepted.wait_for(|count| *count > before);
        tokio::time::timeout(crate::support::WAIT_TIMEOUT, reached).await.expect("it connects").unwrap();
    }
}
