//! Owns the TCP proxies between the processes of a stack: toxiproxy as a child process, and the faults that it injects
//! into connections.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::error::StackError;
use super::ports::Port;
use super::process::{Process, Signal, Spec};
use super::service::http;

/// A start needs some milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A fault on the connections of a proxy, until the fault is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toxic {
    /// Delays all bytes in both directions by `ms` milliseconds, plus or minus up to `jitter`.
    Delay {
        ms: u32,
        /// The maximum deviation from the mean delay, in milliseconds.
        jitter: u32,
    },
    /// Resets open connections (RST) and refuses new ones.
    Cut,
    /// Keeps connections open, accepts new ones, and forwards no bytes. The connections end when the fault is removed.
    BlackHole,
    /// Forwards what the client sends, and no response. The connections end when the fault is removed.
    HalfOpen,
    /// Limits each direction to this many KiB a second.
    Bandwidth(u32),
}

/// All proxies of a stack. One process runs them.
#[derive(Debug)]
pub struct Proxies {
    admin: Port,
    process: Process,
}

impl Proxies {
    pub async fn start(program: PathBuf, logs: &Path) -> Result<Proxies, StackError> {
        let admin = Port::free().map_err(StackError::io("reserve a port on", "127.0.0.1"))?;
        let args = ["-host", "127.0.0.1", "-port", &admin.number().to_string()].map(Into::into).to_vec();
        let process = Process::spawn(Spec {
            name: "toxiproxy".to_owned(),
            program,
            args,
            env: vec![("LOG_LEVEL".to_owned(), "error".to_owned())],
            log: logs.join("toxiproxy.log"),
            owner: None,
            stop: Signal::Term,
        })?;
        process.until_ready(READY_WITHIN, async || TcpStream::connect(admin.addr()).await.is_ok()).await?;
        Ok(Proxies { admin, process })
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub async fn add(&self, name: &str, front: SocketAddr, behind: SocketAddr) -> Result<(), StackError> {
        let proxy =
            json!({ "name": name, "listen": front.to_string(), "upstream": behind.to_string(), "enabled": true });
        self.post("/proxies", &proxy).await
    }

    /// Puts a fault on a proxy, which must have none.
    pub async fn put(&self, name: &str, toxic: Toxic) -> Result<(), StackError> {
        match toxic {
            Toxic::Cut => {
                // Reset the open connections first: disabling a proxy closes them without a reset.
                self.toxic(name, "upstream", "reset_peer", &json!({ "timeout": 0 })).await?;
                self.enable(name, false).await
            }
            Toxic::Delay { ms, jitter } => {
                let late = json!({ "latency": ms / 2, "jitter": jitter / 2 });
                self.toxic(name, "upstream", "latency", &late).await?;
                self.toxic(name, "downstream", "latency", &late).await
            }
            Toxic::BlackHole => {
                self.toxic(name, "upstream", "timeout", &json!({ "timeout": 0 })).await?;
                self.toxic(name, "downstream", "timeout", &json!({ "timeout": 0 })).await
            }
            Toxic::HalfOpen => self.toxic(name, "downstream", "timeout", &json!({ "timeout": 0 })).await,
            Toxic::Bandwidth(rate) => {
                self.toxic(name, "upstream", "bandwidth", &json!({ "rate": rate })).await?;
                self.toxic(name, "downstream", "bandwidth", &json!({ "rate": rate })).await
            }
        }
    }

    /// Removes the faults of all proxies.
    pub async fn reset(&self) -> Result<(), StackError> {
        self.post("/reset", &Value::Null).await
    }

    async fn enable(&self, name: &str, enabled: bool) -> Result<(), StackError> {
        self.post(&format!("/proxies/{name}"), &json!({ "enabled": enabled })).await
    }

    async fn toxic(&self, name: &str, stream: &str, kind: &str, attributes: &Value) -> Result<(), StackError> {
        let toxic = json!({ "type": kind, "stream": stream, "attributes": attributes });
        self.post(&format!("/proxies/{name}/toxics"), &toxic).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<(), StackError> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = http(self.admin.addr(), "POST", path, &body).await;
        let (status, text) = response.map_err(StackError::io("send a request to", "toxiproxy"))?;
        if status < 300 {
            return Ok(());
        }
        Err(StackError::Setting(format!("toxiproxy: POST {path}: {status} {}", text.trim())))
    }
}
