//! Owns the TCP proxies that stand between the processes of a stack: toxiproxy as a child process, and what it does to the
//! connections.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::error::StackError;
use super::ports::Port;
use super::process::{Process, Signal, Spec};
use super::service::http;

/// A start takes some milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// What happens to the connections of a proxy, until it is taken off again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toxic {
    /// Everything arrives later, in both directions: by so many milliseconds, more or less so many.
    Delay {
        /// The mean.
        ms: u32,
        /// The most that it differs.
        jitter: u32,
    },
    /// Connections are reset (RST) and new ones refused.
    Cut,
    /// Connections stay open, new ones are taken, and nothing arrives in either direction. Taken off, they end.
    BlackHole,
    /// What the client sends arrives, and no answer comes back. Taken off, the connections end.
    HalfOpen,
    /// So many KiB a second in each direction.
    Bandwidth(u32),
}

/// All proxies of a stack, in one process.
#[derive(Debug)]
pub struct Proxies {
    admin: Port,
    process: Process,
}

impl Proxies {
    /// Starts the program without any proxy.
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

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Passes on what comes to `front`.
    pub async fn add(&self, name: &str, front: SocketAddr, behind: SocketAddr) -> Result<(), StackError> {
        let proxy =
            json!({ "name": name, "listen": front.to_string(), "upstream": behind.to_string(), "enabled": true });
        self.ask("POST", "/proxies", &proxy).await
    }

    /// Puts something on a proxy; one at a time.
    pub async fn put(&self, name: &str, toxic: Toxic) -> Result<(), StackError> {
        match toxic {
            Toxic::Cut => {
                // The reset is for the connections that are open: a proxy that is switched off only closes them.
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

    /// Takes off what was put on every proxy.
    pub async fn reset(&self) -> Result<(), StackError> {
        self.ask("POST", "/reset", &Value::Null).await
    }

    async fn enable(&self, name: &str, enabled: bool) -> Result<(), StackError> {
        self.ask("POST", &format!("/proxies/{name}"), &json!({ "enabled": enabled })).await
    }

    async fn toxic(&self, name: &str, stream: &str, kind: &str, attributes: &Value) -> Result<(), StackError> {
        let toxic = json!({ "type": kind, "stream": stream, "attributes": attributes });
        self.ask("POST", &format!("/proxies/{name}/toxics"), &toxic).await
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Result<(), StackError> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let asked = http(self.admin.addr(), method, path, &body).await;
        let (status, answer) = asked.map_err(StackError::io("ask", "toxiproxy"))?;
        if status < 300 {
            return Ok(());
        }
        Err(StackError::Setting(format!("toxiproxy: {method} {path}: {status} {}", answer.trim())))
    }
}
