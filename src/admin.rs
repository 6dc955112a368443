//! Owns the admin port (`/healthz`, `/readyz`, `/metrics`), and the reasons that readiness consists of.

mod listener;

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::listener::TlsListener;
pub use self::listener::{AdminAddress, AdminListener, AdminTlsOptions, probe, probe_service};
use crate::repeat::Repeats;
use crate::telemetry;
use crate::tls::{self, TlsError, TlsFiles};

/// The label of the admin port's metrics.
const USAGE: &str = "admin";

static NOT_READY: Repeats = Repeats::new();

/// The reasons why the process is not ready: at most one for each component and scope. Without reasons it is ready.
#[derive(Clone, Debug)]
pub struct Readiness {
    reasons: Arc<Mutex<Reasons>>,
    ready: Arc<watch::Sender<bool>>,
    scope: u64,
}

#[derive(Debug, Default)]
struct Reasons {
    /// The reasons by component and scope.
    all: BTreeMap<(String, u64), String>,
    /// The number of scopes so far.
    scopes: u64,
}

impl Readiness {
    /// Returns a readiness with the reason "starting" for each of these components.
    pub fn waiting_for(components: &[&str]) -> Self {
        let all: BTreeMap<_, _> = components.iter().map(|c| (((*c).to_owned(), 0), "starting".to_owned())).collect();
        let ready = watch::Sender::new(all.is_empty());
        Readiness { reasons: Arc::new(Mutex::new(Reasons { all, scopes: 0 })), ready: Arc::new(ready), scope: 0 }
    }

    /// Returns a handle with a scope of its own, for one of several instances of the same component. A handle changes
    /// only the reasons of its scope.
    pub fn scope(&self) -> Self {
        let mut reasons = self.lock();
        reasons.scopes += 1;
        Readiness { scope: reasons.scopes, ..self.clone() }
    }

    /// Removes the reason of this component.
    pub fn ready(&self, component: &str) {
        self.change(component, None);
    }

    /// Sets the reason of this component: the process is not ready.
    pub fn not_ready(&self, component: &str, reason: impl Into<String>) {
        self.change(component, Some(&reason.into()));
    }

    /// Replaces the reason of this component, if it has one.
    pub fn explain(&self, component: &str, reason: impl Into<String>) {
        let has_reason = self.lock().all.contains_key(&(component.to_owned(), self.scope));
        if has_reason {
            self.change(component, Some(&reason.into()));
        }
    }

    /// Removes every reason of this scope, because the instance that it belongs to has ended.
    pub fn clear(&self) {
        let components: Vec<String> =
            self.lock().all.keys().filter(|(_, scope)| *scope == self.scope).map(|(name, _)| name.clone()).collect();
        for component in components {
            self.change(&component, None);
        }
    }

    /// Returns a channel that holds whether the process is ready.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Returns the reasons why the process is not ready, by component. Without reasons it is ready.
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
        // Send under the lock. Otherwise two concurrent changes could be sent in the wrong order, and the older one would
        // remain.
        let ready = reasons.all.is_empty();
        self.ready.send_if_modified(|old| std::mem::replace(old, ready) != ready);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reasons> {
        self.reasons.lock().expect("no holder of the lock panics")
    }
}

/// Why the admin port ended.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The TLS files changed after the settings were checked, and cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The listener failed.
    #[error(transparent)]
    Serve(#[from] std::io::Error),
}

/// Serves the admin port, over TLS if there are files for it, until `stop` is cancelled.
pub async fn serve(
    listener: AdminListener,
    tls: Option<TlsFiles>,
    readiness: Readiness,
    stop: CancellationToken,
) -> Result<(), AdminError> {
    // Create the recorder before the first request. Otherwise everything that was counted until then would be lost.
    telemetry::metrics();
    let reloader = tls.map(|files| tls::reloader(USAGE, files, |material| tls::server_config(material, &[])));
    let reloader = reloader.transpose()?;
    let listener = TlsListener { listener, tls: reloader.as_ref().map(|reloader| reloader.value()) };
    let reload = async {
        match reloader {
            Some(reloader) => reloader.run(stop.clone()).await,
            None => stop.cancelled().await,
        }
    };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(|| async { telemetry::render() }))
        .with_state(readiness);
    // The recorder keeps every sample of a histogram until its upkeep adds the samples to the buckets.
    let upkeep = async {
        let mut every = tokio::time::interval(Duration::from_secs(5));
        loop {
            every.tick().await;
            telemetry::metrics().run_upkeep();
        }
    };
    tokio::select! {
        served = axum::serve(listener, app).into_future() => Ok(served?),
        () = upkeep => Ok(()),
        () = reload => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_does_not_clear_the_reason_of_another() {
        let base = Readiness::waiting_for(&["schema"]);
        let (one, two) = (base.scope(), base.scope());
        one.not_ready("starts", "partition 1");
        two.not_ready("starts", "partition 2");
        base.ready("schema");
        base.ready("starts");
        two.ready("starts");
        assert_eq!(base.reasons(), BTreeMap::from([("starts".to_owned(), "partition 1".to_owned())]));
        two.explain("starts", "not its own");
        one.explain("starts", "its leader is unavailable");
        assert_eq!(base.reasons()["starts"], "its leader is unavailable");
        assert!(!*base.watch().borrow());
        one.clear();
        assert!(*base.watch().borrow() && base.reasons().is_empty());
    }
}
