//! The admin port: `/healthz`, `/readyz`, `/metrics`, what readiness is made of, and the probe of a health check.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::repeat::Repeats;
use crate::telemetry;

static NOT_READY: Repeats = Repeats::new();

/// Whether the process is ready, and if not, why: each component speaks for itself, and a scope for what is made again.
#[derive(Clone, Debug)]
pub struct Readiness {
    reasons: Arc<Mutex<Reasons>>,
    ready: Arc<watch::Sender<bool>>,
    scope: u64,
}

#[derive(Debug, Default)]
struct Reasons {
    /// By component and scope.
    all: BTreeMap<(String, u64), String>,
    scopes: u64,
}

impl Readiness {
    /// Not ready yet, for the sake of these components.
    pub fn waiting_for(components: &[&str]) -> Self {
        let all: BTreeMap<_, _> = components.iter().map(|c| (((*c).to_owned(), 0), "starting".to_owned())).collect();
        let ready = watch::Sender::new(all.is_empty());
        Readiness { reasons: Arc::new(Mutex::new(Reasons { all, scopes: 0 })), ready: Arc::new(ready), scope: 0 }
    }

    /// The same, for one of several that speak for the same component: what it says changes no other's reason.
    pub fn scope(&self) -> Self {
        let mut reasons = self.lock();
        reasons.scopes += 1;
        Readiness { scope: reasons.scopes, ..self.clone() }
    }

    /// This component is fine.
    pub fn ready(&self, component: &str) {
        self.change(component, None);
    }

    /// This component keeps the process from being ready.
    pub fn not_ready(&self, component: &str, reason: impl Into<String>) {
        self.change(component, Some(&reason.into()));
    }

    /// If this component keeps the process from being ready, this is why. Nothing changes if it does not.
    pub fn explain(&self, component: &str, reason: impl Into<String>) {
        let waits = self.lock().all.contains_key(&(component.to_owned(), self.scope));
        if waits {
            self.change(component, Some(&reason.into()));
        }
    }

    /// Takes back every reason of this scope: what it spoke for is gone.
    pub fn clear(&self) {
        let components: Vec<String> =
            self.lock().all.keys().filter(|(_, scope)| *scope == self.scope).map(|(name, _)| name.clone()).collect();
        for component in components {
            self.change(&component, None);
        }
    }

    /// Whether all components are fine, now and as it changes.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Why the process is not ready, by component: empty when it is.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        let mut reasons: BTreeMap<String, String> = BTreeMap::new();
        for ((component, _), reason) in &self.lock().all {
            let all = reasons.entry(component.clone()).or_default();
            if !all.is_empty() {
                all.push_str("; ");
            }
            all.push_str(reason);
        }
        reasons
    }

    fn change(&self, component: &str, reason: Option<&String>) {
        let key = (component.to_owned(), self.scope);
        let mut reasons = self.lock();
        let before = match reason {
            Some(reason) => reasons.all.insert(key, reason.clone()),
            None => reasons.all.remove(&key),
        };
        match (&before, reason) {
            (was, Some(reason)) if was.as_ref() != Some(reason) => {
                // A component that is retried may be ready in between.
                if let Some(repeated) = NOT_READY.occurred(&format!("{component}: {reason}")) {
                    tracing::warn!(component, reason, repeated, "not ready");
                }
            }
            (Some(_), None) => tracing::info!(component, "ready"),
            _ => {}
        }
        // Under the lock, so that the last change is also the last one that is seen.
        let ready = reasons.all.is_empty();
        self.ready.send_if_modified(|old| std::mem::replace(old, ready) != ready);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reasons> {
        self.reasons.lock().expect("nobody panics while holding it")
    }
}

/// Serves the admin port until told to stop.
pub async fn serve(listener: TcpListener, readiness: Readiness, stop: CancellationToken) -> std::io::Result<()> {
    // Before the first request, so that nothing counted until then is lost.
    telemetry::metrics();
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(|| async { telemetry::render() }))
        .with_state(readiness);
    // Histograms grow until somebody folds them in.
    let upkeep = async {
        let mut every = tokio::time::interval(Duration::from_secs(5));
        loop {
            every.tick().await;
            telemetry::metrics().run_upkeep();
        }
    };
    tokio::select! {
        served = axum::serve(listener, app).into_future() => served,
        () = upkeep => Ok(()),
        () = stop.cancelled() => Ok(()),
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let reasons = readiness.reasons();
    if reasons.is_empty() {
        return (StatusCode::OK, "ready\n".into());
    }
    let lines = reasons.iter().map(|(component, reason)| format!("{component}: {reason}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

/// Asks a running process's admin port for `path`: the status code and the body. For health checks.
pub async fn probe(mut admin: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    // What listens everywhere is asked here.
    match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => admin.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => admin.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        status.map(|status| (status, body)).ok_or(std::io::ErrorKind::InvalidData.into())
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_scope_does_not_clear_the_reason_of_another() {
        let base = Readiness::waiting_for(&["schema"]);
        let (one, two) = (base.scope(), base.scope());
        one.not_ready("starts", "partition 1");
        two.not_ready("starts", "partition 2");
        base.ready("schema");
        base.ready("starts");
        two.ready("starts");
        assert_eq!(base.reasons(), BTreeMap::from([("starts".to_owned(), "partition 1".to_owned())]));
        two.explain("starts", "not its own");
        one.explain("starts", "its leader is away");
        assert_eq!(base.reasons()["starts"], "its leader is away");
        assert!(!*base.watch().borrow());
        one.clear();
        assert!(*base.watch().borrow() && base.reasons().is_empty());
    }
}
