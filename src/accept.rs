//! What a server does when it cannot accept a connection.

use std::io;
use std::time::Duration;

use crate::repeat::Repeats;

/// Callers decide how often a connection is not accepted.
static NOT_ACCEPTED: Repeats = Repeats::new();

/// Logs the error, at growing intervals, and waits before the next attempt. `port` names what is served.
pub async fn failed(error: &io::Error, port: &'static str) {
    if let Some(repeated) = NOT_ACCEPTED.occurred(&format!("{port}: {error}")) {
        tracing::warn!(%error, port, repeated, "cannot accept a connection");
    }
    // Most likely the process is out of file descriptors. The listener stays readable, so without a pause the caller's loop
    // would spin.
    tokio::time::sleep(Duration::from_millis(50)).await;
}
